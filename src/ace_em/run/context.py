"""What every stage of a run needs."""

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ace_em.config import RunConfig
from ace_em.refinement.search import SearchSpace
from ace_em.run.checkpoint import Journal
from ace_em.run.folder import RunFolder
from ace_em.run.plan import Plan
from ace_em.run.reporter import Reporter

SHOW_MAP_EVERY_S = 60.0


def search_space(plan: Plan, box: int, config: RunConfig) -> SearchSpace:
    """Which poses are searched at a working box, symmetric copies left out."""
    return SearchSpace(box, plan.diameter_px(box), config.search, plan.group, plan.independent)


def poses_tried(plan: Plan, config: RunConfig) -> int:
    """For every image, by a search at its finest."""
    space = search_space(plan, plan.working_box, config)
    return len(space.grid(space.band(config.search.last_band), torch.Generator()))


@dataclass
class Job:
    """What every stage needs: what to do and how, where to, and how far it has come; ``half_set`` (N,) is 1 or 2."""

    plan: Plan
    config: RunConfig
    half_set: Tensor
    run: RunFolder
    reporter: Reporter
    journal: Journal
    _shown_at: float = field(default=-SHOW_MAP_EVERY_S)

    def show(self, volume: Tensor) -> None:
        """The map so far, every minute, for whoever looks on."""
        if time.monotonic() - self._shown_at >= SHOW_MAP_EVERY_S:
            self.run.write_current_map(volume, self.plan.box_angstrom / volume.shape[-1])
            self._shown_at = time.monotonic()

    def show_fsc(self, fsc: Tensor) -> None:
        """The FSC so far, shell by shell (n // 2 + 1,)."""
        self.run.write_fsc({"fsc": fsc}, self.plan.box_angstrom)
