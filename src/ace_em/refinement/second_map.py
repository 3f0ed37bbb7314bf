"""One map or two in the ab initio search: the second is for images that fit the first less well.

Images of another particle fit a wrong arrangement of views as well as the particle does: they take views of their own and bend
the arrangement of the others, and no residual gives them away. With two maps to choose from they soon share one, and the
first map is free to find its arrangement, as with the classes of RELION's and cryoSPARC's ab initio reconstruction.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ace_em.config import SearchConfig
from ace_em.data.particle_stack import ParticleStack
from ace_em.maths.slices import VolumeFT
from ace_em.physics.image_content import Content, ContentTest, ShellPower
from ace_em.physics.pose import Pose
from ace_em.refinement.noise_scale import shell_power
from ace_em.refinement.pose_refinement import LocalResult
from ace_em.refinement.search import PoseGrid, find_poses

WORST = 0.4
"""Share of the images that a second map begins with."""
LEAST_IMAGES = 40
"""Fewer images than this make no second map."""


@dataclass(frozen=True)
class PosedMap:
    """A map ``volume`` (n, n, n), and the poses (N,) of all images against it."""

    volume: Tensor
    pose: Pose


@dataclass(frozen=True)
class Searched:
    """n images searched against each of one or two maps.

    Attributes
    ----------
    found : of each map, the poses and residuals against it.
    nearest : (n,) which map fits an image better, 0 or 1.
    content : what the images show, by the map that fits better.
    """

    found: tuple[LocalResult, ...]
    nearest: Tensor
    content: Content

    def rows_of(self, which: int) -> Tensor:
        """(n,) bool, the images that show a particle and fit map ``which`` better."""
        return self.content.shows_particle & (self.nearest == which)

    def divided(self, excess: Tensor) -> "Searched":
        """With a second map for the images of one map whose residuals have the largest ``excess`` (n,) over the noise."""
        shown = self.content.shows_particle
        worst = excess > excess[shown].quantile(1 - WORST)
        return replace(self, found=(*self.found, *self.found), nearest=worst.long())

    def swapped(self) -> "Searched":
        """The maps in the other order."""
        return replace(self, found=self.found[::-1], nearest=1 - self.nearest)


def search_maps(
    references: Sequence[VolumeFT],
    stack: ParticleStack,
    before: Sequence[Pose],
    grid: PoseGrid,
    config: SearchConfig,
    on_block: Callable[[int], None] = lambda done: None,
) -> Searched:
    """Search the n images of a stack against each map from their poses ``before`` (n,) against it; see :func:`find_poses`."""
    found, shells = [], []
    for reference, pose in zip(references, before, strict=True):
        found.append(find_poses(reference, stack, pose, grid, config, on_block=on_block))
        shells.append(shell_power(reference, stack, found[-1].pose))
    nearest = torch.stack([f.residual for f in found]).argmin(0)
    rows = torch.arange(len(stack))
    left = torch.stack([s.residual for s in shells])[nearest, rows]
    log_sum = torch.stack([f.of_grid for f in found])[nearest, rows]
    test = ContentTest(len(references) * len(grid), grid.independent)
    content = test.content(ShellPower(shells[0].power, left, shells[0].n_coefficients), log_sum)
    return Searched(tuple(found), nearest, content)
