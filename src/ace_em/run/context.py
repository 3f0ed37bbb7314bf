"""The context of a run that every stage receives."""

import time
from dataclasses import dataclass, field

from torch import Tensor

from ace_em.config import RunConfig
from ace_em.run.checkpoint import Checkpoint
from ace_em.run.folder import RunFolder
from ace_em.run.plan import Plan
from ace_em.run.reporter import Reporter

SHOW_MAP_EVERY_S = 60.0


@dataclass
class RunContext:
    """Plan, settings, half-sets (N,) of 1 and 2, and the run folder, reporter and checkpoint."""

    plan: Plan
    config: RunConfig
    half_set: Tensor
    run: RunFolder
    reporter: Reporter
    checkpoint: Checkpoint
    _shown_at: float = field(default=-SHOW_MAP_EVERY_S)

    def show(self, volume: Tensor) -> None:
        """Write the current map for the live page, at most once a minute."""
        if time.monotonic() - self._shown_at >= SHOW_MAP_EVERY_S:
            self.run.write_current_map(volume, self.plan.box_angstrom / volume.shape[-1])
            self._shown_at = time.monotonic()

    def show_fsc(self, fsc: Tensor) -> None:
        """Write the current FSC, one value per shell (n // 2 + 1,)."""
        self.run.write_fsc({"fsc": fsc}, self.plan.box_angstrom)
