"""How far a run has come, kept in RUN/checkpoint.pt so that it can go on from there and end as if nothing had happened.

A run is a row of pieces of work with names. The journal holds the results of those that are finished, and the present
one's last safe point: a state from which the same code takes the same steps, bit for bit. The images are not in it: they are
read again.
"""

import os
import time
from dataclasses import dataclass, field
from typing import TypeVar

from ace_em.errors import InputError
from ace_em.io.plain import Plain, packed, unpacked
from ace_em.run.folder import RunFolder
from ace_em.run.reporter import Reporter

T = TypeVar("T")
FORMAT = 2


class StopAsked(KeyboardInterrupt):
    """Someone made the file RUN/stop."""


@dataclass
class Journal:
    """What is finished, and where the present piece stands.

    Attributes
    ----------
    fingerprint : of the particles; a checkpoint of others is refused.
    every_s : seconds between checkpoints at least, unless a piece is finished.
    finished : results by name.
    present : the name of the piece under way, and its last safe point.
    """

    run: RunFolder
    reporter: Reporter
    fingerprint: Plain
    every_s: float
    finished: dict[str, Plain] = field(default_factory=dict)
    present: tuple[str, Plain] | None = None
    _saved_at: float = field(default_factory=time.monotonic)
    _unsaved: Plain = None

    def reload(self) -> bool:
        """Take up the last checkpoint; False when there is none. What was recorded after it is forgotten."""
        state = self.run.read_checkpoint()
        if state is None:
            os.truncate(self.run.metrics, 0)
            return False
        if state.get("format") != FORMAT:
            raise InputError(f"{self.run.checkpoint}: written by another version of ace-em; expected format {FORMAT}")
        if state["fingerprint"] != self.fingerprint:
            raise InputError(
                f"{self.run.path}: the run there is of other particles: {_differences(state['fingerprint'], self.fingerprint)}"
            )
        self.finished = state["finished"]
        self.present = (state["name"], state["state"]) if state["name"] else None
        os.truncate(self.run.metrics, min(state["metrics_bytes"], self.run.metrics.stat().st_size))
        self.reporter.go_on_from(state["elapsed_s"])
        return True

    def result(self, kind: type[T], name: str) -> T | None:
        """What a finished piece has given."""
        return unpacked(kind, self.finished[name]) if name in self.finished else None

    def safe_point(self, name: str) -> Plain | None:
        """Where a piece is to be gone on from; None when it has not begun."""
        return self.present[1] if self.present is not None and self.present[0] == name else None

    def at(self, name: str, state: object) -> None:
        """A safe point. It is written now and then; when someone asks to stop, at once."""
        self.present = (name, packed(state))
        self._note()
        self.heed_stop()
        if time.monotonic() - self._saved_at >= self.every_s:
            self.flush()

    def heed_stop(self) -> None:
        """Leave, when someone asks to; the last safe point is written on the way out."""
        if self.run.stop.exists():
            raise StopAsked

    def finish(self, name: str, result: object, instead_of: str = "") -> None:
        """A piece is done; results whose names begin with ``instead_of`` are no longer needed."""
        if instead_of:
            self.finished = {key: value for key, value in self.finished.items() if not key.startswith(instead_of)}
        self.finished[name] = packed(result)
        self.present = None
        self._note()
        self.flush()

    def where(self) -> str:
        """Where the run stands, in words."""
        if self.present is not None:
            step = self.present[1].get("training", {}).get("step")
            name = self.present[0].replace(": ace", ": training").replace(": explore", ": exploring")
            return f"in {name}" + (f", after update {step}" if step else "")
        return f"after {list(self.finished)[-1]}" if self.finished else "before the training"

    def _note(self) -> None:
        """The state of now, to be written by ``flush``: a record or a second later it would be another."""
        name, state = self.present or ("", None)
        self._unsaved = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "metrics_bytes": self.run.metrics.stat().st_size,
            "elapsed_s": self.reporter.elapsed_s,
            "finished": dict(self.finished),
            "name": name,
            "state": state,
        }

    def flush(self) -> None:
        """Write the last safe point if that has not been done."""
        if self._unsaved is not None:
            self.run.write_checkpoint(self._unsaved)
            self._unsaved, self._saved_at = None, time.monotonic()


def _differences(old: Plain, new: Plain) -> str:
    return "; ".join(f"{name} was {old.get(name)}, now {value}" for name, value in new.items() if old.get(name) != value)
