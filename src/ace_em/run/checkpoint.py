"""The progress of a run, saved in RUN/checkpoint.pt, so that a resumed run ends as if it had never stopped.

A run is a sequence of steps with names. The checkpoint holds the results of those that are done, and the last saved state of
the present one, from which the same code takes the same steps, bit for bit. Images are not in it: they are read again.
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
FORMAT = 3


class StopRequested(KeyboardInterrupt):
    """The file RUN/stop was made."""


@dataclass
class Checkpoint:
    """Which steps are done, and the state of the present one.

    Attributes
    ----------
    fingerprint : of the particles; a checkpoint of others is refused.
    every_s : least time between two writes, apart from those at the end of a step.
    done : results by name.
    present : the name of the present step, and its last saved state.
    """

    run: RunFolder
    reporter: Reporter
    fingerprint: Plain
    every_s: float
    done: dict[str, Plain] = field(default_factory=dict)
    present: tuple[str, Plain] | None = None
    _saved_at: float = field(default_factory=time.monotonic)
    _unsaved: Plain = None

    def reload(self) -> bool:
        """Load the last checkpoint, and drop the records that came after it; False if there is none.

        Raises
        ------
        InputError : the checkpoint is of another version, or of other particles.
        """
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
        self.done = state["done"]
        self.present = (state["name"], state["state"]) if state["name"] else None
        os.truncate(self.run.metrics, min(state["metrics_bytes"], self.run.metrics.stat().st_size))
        self.reporter.resume_from(state["elapsed_s"])
        return True

    def load_done(self, kind: type[T], name: str) -> T | None:
        """The result of a step that is done; None if it is not."""
        return unpacked(kind, self.done[name]) if name in self.done else None

    def load_progress(self, name: str) -> Plain | None:
        """The saved state of a step that was begun; None if it was not."""
        return self.present[1] if self.present is not None and self.present[0] == name else None

    def save_progress(self, name: str, state: object) -> None:
        """A state that the step can be resumed from. It is written every ``every_s`` seconds, or when a stop is requested."""
        self.present = (name, packed(state))
        self._note()
        self.raise_if_stop_requested()
        if time.monotonic() - self._saved_at >= self.every_s:
            self.flush()

    def raise_if_stop_requested(self) -> None:
        """End the run when RUN/stop is there; the last saved state is written on the way out."""
        if self.run.stop.exists():
            raise StopRequested

    def save_done(self, name: str, result: object, instead_of: str = "") -> None:
        """A step is done; results whose names begin with ``instead_of`` are no longer needed."""
        if instead_of:
            self.done = {key: value for key, value in self.done.items() if not key.startswith(instead_of)}
        self.done[name] = packed(result)
        self.present = None
        self._note()
        self.flush()

    def where(self) -> str:
        """Where the run is, in words."""
        if self.present is not None:
            step = self.present[1].get("training", {}).get("step")
            return f"in {self.present[0]}" + (f", after update {step}" if step else "")
        return f"after {list(self.done)[-1]}" if self.done else "before the training"

    def _note(self) -> None:
        """The state of now, which ``flush`` writes: records and time go on."""
        name, state = self.present or ("", None)
        self._unsaved = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "metrics_bytes": self.run.metrics.stat().st_size,
            "elapsed_s": self.reporter.elapsed_s,
            "done": dict(self.done),
            "name": name,
            "state": state,
        }

    def flush(self) -> None:
        """Write the last saved state if that has not been done."""
        if self._unsaved is not None:
            self.run.write_checkpoint(self._unsaved)
            self._unsaved, self._saved_at = None, time.monotonic()


def _differences(old: Plain, new: Plain) -> str:
    return "; ".join(f"{name} was {old.get(name)}, now {value}" for name, value in new.items() if old.get(name) != value)
