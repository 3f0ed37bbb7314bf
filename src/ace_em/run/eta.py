"""Expected time of a run."""


def clock(seconds: float) -> str:
    """``3:07`` or ``1:02:05``."""
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


class Expectation:
    """Expected time of the stages; the remaining stages are scaled by the pace of the finished ones.

    Attributes
    ----------
    planned : seconds of each stage on the machine of the benchmarks.
    known : whether such times exist for this device; otherwise the end is unknown until a stage is done.
    end_s : expected end of the run in seconds from its start; None while unknown.
    """

    def __init__(self, planned: dict[str, float], known: bool) -> None:
        self.planned, self.known = planned, known
        self.ahead, self.behind_s = dict(planned), 0.0
        self.end_s = sum(planned.values()) if known else None

    def once_more(self, stage: str) -> None:
        """Add another pass of a stage."""
        self.ahead[stage] = self.ahead.get(stage, 0.0) + self.planned[stage]

    def past(self, stage: str, elapsed_s: float) -> None:
        """Mark a stage as done at ``elapsed_s``, and all stages before it, which a resumed run skips."""
        planned = list(self.planned)
        for earlier in planned[: planned.index(stage) + 1] if stage in planned else []:
            self.behind_s += self.ahead.pop(earlier, 0.0)
        # on a device without benchmarks the pace of one stage does not predict the others
        pace = min(max(elapsed_s / max(self.behind_s, 1e-9), 0.1), 10.0) if self.known else 1.0
        self.end_s = elapsed_s + pace * sum(self.ahead.values())
