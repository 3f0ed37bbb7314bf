"""Stage 2: rounds of search, local steps and back-projection, until the poses stop moving."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ace_em.config import SearchConfig
from ace_em.data.preprocess import WorkingSet
from ace_em.maths.rotations import angular_distance_deg, so3_grid
from ace_em.maths.slices import volume_to_ft
from ace_em.metrics.fsc import resolution_shell
from ace_em.physics.pose import Pose
from ace_em.refinement.backprojection import Halves, accumulate, reconstruct_halves
from ace_em.refinement.local import better, refine_poses
from ace_em.refinement.search import search, shift_grid

RADIAN_DEG = 57.29578


@dataclass(frozen=True)
class Round:
    """State after a round.

    Attributes
    ----------
    number : from 1.
    exploring : whether the round looked at a random subset only.
    pose : (N,) poses at the working box; those of images not looked at are as old as their last round.
    halves : maps from two halves of the images looked at (their poses share a reference: the FSC steers the prior, it is no
        claim).
    band : last shell searched.
    moved_deg : change of orientation of the images looked at.
    stable : share of them that moved by less than ``stable_deg``.
    explained : share of the images' power above the noise, inside the band, that map and poses account for; near 1 when
        they are right. Half-right arrangements can be perfectly stable: this tells them.
    """

    number: int
    exploring: bool
    pose: Pose
    halves: Halves
    band: float
    moved_deg: Tensor
    stable: float
    explained: float

    @property
    def fsc143_shell(self) -> float:
        return resolution_shell(self.halves.fsc, 0.143)


def band_per_diameter(number: int, config: SearchConfig) -> float:
    """Band of round ``number`` (from 1), in cycles per diameter: grows while exploring."""
    share = min(1.0, (number - 1) / max(1, config.explore_rounds))
    return config.first_band + (config.last_band - config.first_band) * share


def search_rounds(
    images: WorkingSet,
    volume: Tensor,
    pose: Pose,
    mask: Tensor,
    diameter_px: float,
    config: SearchConfig,
    generator: torch.Generator,
    on_block: Callable[[int, int, int], None] = lambda number, total, done: None,
) -> Iterator[Round]:
    """Yield the state after each round; the caller decides when to leave (see :func:`finished`).

    Parameters
    ----------
    images : whole working half-plane.
    volume : (box, box, box) reference to start from.
    pose : what stage 1's encoder says; its shifts centre the first search.
    mask : (box, box, box) soft ball for maps.
    diameter_px : particle diameter in pixels of the working box.
    on_block : called with the round, the number of images it looks at and how many are done.
    """
    shells_per_band = images.box / diameter_px
    history: list[Round] = []
    shifts = shift_grid(config.shift * diameter_px, config.shift_step * diameter_px)
    for number in range(1, config.explore_rounds + config.max_rounds + 1):
        exploring = len(images) > config.explore_images and still_exploring(history, config)
        order = torch.randperm(len(images), generator=generator)
        rows = order[: config.explore_images] if exploring else order
        per_diameter = band_per_diameter(number, config)
        band = min(per_diameter * shells_per_band, images.box / 2 - 1)
        looked_at, before = images.rows(rows), pose[rows]
        inner = looked_at.band(band)
        rotations = so3_grid(RADIAN_DEG / per_diameter * config.spacing, generator)
        volume_ft = volume_to_ft(volume)
        report = partial(on_block, number, len(rows))
        found = search(volume_ft, inner, rotations, shifts, before.shift_px, on_block=report)
        local = better(
            refine_poses(volume_ft, inner, found.best, config.local_steps),
            refine_poses(volume_ft, inner, before, config.local_steps),
        )
        moved = angular_distance_deg(before.rotation, local.pose.rotation)
        pose = _updated(pose, rows, local.pose)
        half = len(rows) // 2
        halves = reconstruct_halves(
            accumulate(looked_at.rows(slice(0, half)), local.pose[:half]),
            accumulate(looked_at.rows(slice(half, None)), local.pose[half:]),
            mask,
        )
        volume = halves.combined
        stable = (moved < config.stable_deg).float().mean().item()
        history.append(Round(number, exploring, pose, halves, band, moved, stable, explained_share(inner, local.residual)))
        yield history[-1]


def _updated(pose: Pose, rows: Tensor, new: Pose) -> Pose:
    rotation, shift = pose.rotation.clone(), pose.shift_px.clone()
    rotation[rows], shift[rows] = new.rotation, new.shift_px
    return Pose(rotation, shift)


def explained_share(images: WorkingSet, residual: Tensor) -> float:
    """``(power - residual) / (power - noise)``, means over images (N, n) and their residuals (N,)."""
    power = torch.view_as_real(images.image_ft).square().sum((-1, -2)).mean()
    noise = images.noise_variance.sum()
    return ((power - residual.mean()) / (power - noise).clamp(min=1e-6)).item()


def still_exploring(history: list[Round], config: SearchConfig) -> bool:
    """Explore for the set number of rounds; leave early once the map explains the images and no longer gains."""
    if len(history) >= config.explore_rounds or (history and not history[-1].exploring):
        return False
    explained = [r.explained for r in history[-4:]]
    return len(explained) < 4 or explained[-1] < config.explored or explained[-1] - explained[0] > 0.01


def finished(history: list[Round], config: SearchConfig) -> bool:
    """Whether the rounds may stop: nearly all poses stable in a round on all images, or no more than in the last three."""
    full = [r for r in history if not r.exploring]
    stable = [r.stable for r in full]
    if len(full) >= config.max_rounds:
        return True
    if len(full) < 2:
        return False
    if stable[-1] >= config.stable_share:
        return True
    return len(full) >= 4 and stable[-1] < max(stable[-4:-1]) + 0.01
