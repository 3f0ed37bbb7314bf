"""How long a run is expected to take."""


def clock(seconds: float) -> str:
    """``3:07`` or ``1:02:05``."""
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


class Expectation:
    """The time of a run's stages, corrected by those that are done: the rest is expected to go at their pace.

    Attributes
    ----------
    planned : seconds of each stage on a machine that was timed.
    known : whether this machine is like that; otherwise the end is not known before a stage is done.
    end_s : when the run is expected to end, in seconds from its start; None while that is not known.
    """

    def __init__(self, planned: dict[str, float], known: bool) -> None:
        self.planned, self.known = planned, known
        self.ahead, self.behind_s = dict(planned), 0.0
        self.end_s = sum(planned.values()) if known else None

    def once_more(self, stage: str) -> None:
        """A stage will be repeated."""
        self.ahead[stage] = self.ahead.get(stage, 0.0) + self.planned[stage]

    def past(self, stage: str, elapsed_s: float) -> None:
        """A stage is done, ``elapsed_s`` after the start, and so are those before it, which a resumed run skips."""
        planned = list(self.planned)
        for earlier in planned[: planned.index(stage) + 1] if stage in planned else []:
            self.behind_s += self.ahead.pop(earlier, 0.0)
        # where the plan knew nothing, the finished stages ran on another device than those to come
        pace = min(max(elapsed_s / max(self.behind_s, 1e-9), 0.1), 10.0) if self.known else 1.0
        self.end_s = elapsed_s + pace * sum(self.ahead.values())
