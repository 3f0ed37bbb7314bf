"""Checkpoint of a run, RUN/checkpoint.pt: a resumed run gives the same result, bit for bit, as an uninterrupted one.

A run is a sequence of named steps. The checkpoint contains the results of finished steps and the last saved state of the current
one. Images are not saved; they are read again.
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
FORMAT = 4


class StopRequested(KeyboardInterrupt):
    """The file RUN/stop exists."""


@dataclass
class Checkpoint:
    """Results of finished steps, and the state of the current step.

    Attributes
    ----------
    fingerprint : of the particles; a checkpoint for other particles is refused.
    every_s : minimum time between two writes, except at the end of a step.
    done : results by name.
    present : name of the current step, and its last saved state.
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
        """Load the last checkpoint and discard later records; False if there is no checkpoint.

        Raises
        ------
        InputError : the checkpoint is from another version or for other particles.
        """
        state = self.run.read_checkpoint()
        if state is None:
            os.truncate(self.run.metrics, 0)
            return False
        if state.get("format") != FORMAT:
            raise InputError(f"{self.run.checkpoint}: written by another version of ace-em; expected format {FORMAT}")
        if state["fingerprint"] != self.fingerprint:
            raise InputError(
                f"{self.run.path}: the run there has other particles: {_differences(state['fingerprint'], self.fingerprint)}"
            )
        self.done = state["done"]
        self.present = (state["name"], state["state"]) if state["name"] else None
        os.truncate(self.run.metrics, min(state["metrics_bytes"], self.run.metrics.stat().st_size))
        self.reporter.resume_from(state["elapsed_s"])
        return True

    def load_done(self, kind: type[T], name: str) -> T | None:
        """The result of a finished step; None if it is not finished."""
        return unpacked(kind, self.done[name]) if name in self.done else None

    def load_progress(self, name: str) -> Plain | None:
        """The saved state of an unfinished step; None if there is none."""
        return self.present[1] if self.present is not None and self.present[0] == name else None

    def save_progress(self, name: str, state: object) -> None:
        """Save a state from which the step can be resumed; written every ``every_s`` seconds and when a stop is requested."""
        self.present = (name, packed(state))
        self._snapshot()
        self.raise_if_stop_requested()
        if time.monotonic() - self._saved_at >= self.every_s:
            self.flush()

    def raise_if_stop_requested(self) -> None:
        """Raise StopRequested if RUN/stop exists; the last saved state is written before the run exits."""
        if self.run.stop.exists():
            raise StopRequested

    def save_done(self, name: str, result: object, instead_of: str = "") -> None:
        """Save the result of a step; results whose names begin with ``instead_of`` are deleted."""
        if instead_of:
            self.done = {key: value for key, value in self.done.items() if not key.startswith(instead_of)}
        self.done[name] = packed(result)
        self.present = None
        self._snapshot()
        self.flush()

    def where(self) -> str:
        """Progress of the run, for messages."""
        if self.present is not None:
            step = self.present[1].get("training", {}).get("step")
            return f"in {self.present[0]}" + (f", after update {step}" if step else "")
        return f"after {list(self.done)[-1]}" if self.done else "before the training"

    def _snapshot(self) -> None:
        """Keep the current state for ``flush``: later records and time are not part of it."""
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
        """Write the last saved state, unless it has been written."""
        if self._unsaved is not None:
            self.run.write_checkpoint(self._unsaved)
            self._unsaved, self._saved_at = None, time.monotonic()


def _differences(old: Plain, new: Plain) -> str:
    return "; ".join(f"{name} was {old.get(name)}, now {value}" for name, value in new.items() if old.get(name) != value)
