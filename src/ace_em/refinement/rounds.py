"""Stage 2: rounds of search, local steps and back-projection, until the poses stop moving."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ace_em.config import SearchConfig
from ace_em.data.preprocess import WorkingSet
from ace_em.maths.rotations import angular_distance_deg, so3_grid
from ace_em.maths.slices import volume_to_ft
from ace_em.metrics.fsc import resolution_shell
from ace_em.physics.pose import Pose
from ace_em.refinement.backprojection import Halves, accumulate, reconstruct_halves
from ace_em.refinement.local import refine_poses
from ace_em.refinement.search import search, shift_grid

RADIAN_DEG = 57.29578


@dataclass(frozen=True)
class Round:
    """State after a round.

    Attributes
    ----------
    number : from 1.
    pose : (N,) poses at the working box.
    halves : maps from even and odd particles (their poses share a reference: the FSC steers the prior, it is no claim).
    band : last shell searched.
    moved_deg : (N,) change of orientation in this round.
    stable : share of poses that moved by less than ``stable_deg``.
    residual : mean squared residual per coefficient of the band; 1 is noise alone.
    """

    number: int
    pose: Pose
    halves: Halves
    band: float
    moved_deg: Tensor
    stable: float
    residual: float

    @property
    def fsc143_shell(self) -> float:
        return resolution_shell(self.halves.fsc, 0.143)


def band_per_diameter(number: int, config: SearchConfig) -> float:
    """Band of round ``number`` (from 1), in cycles per diameter."""
    share = min(1.0, (number - 1) / max(1, config.rounds_to_last - 1))
    return config.first_band + (config.last_band - config.first_band) * share


def search_rounds(
    images: WorkingSet,
    volume: Tensor,
    pose: Pose,
    mask: Tensor,
    diameter_px: float,
    config: SearchConfig,
    generator: torch.Generator,
    on_block: Callable[[int, int], None] = lambda number, done: None,
) -> Iterator[Round]:
    """Yield the state after each round; the caller decides when to leave (see :func:`finished`).

    Parameters
    ----------
    images : whole working half-plane.
    volume : (box, box, box) reference to start from.
    pose : its poses, for the first round's measure of movement.
    mask : (box, box, box) soft ball for maps.
    diameter_px : particle diameter in pixels of the working box.
    """
    shells_per_band = images.box / diameter_px
    even = torch.arange(len(images)) % 2 == 0
    centre = torch.zeros(len(images), 2)
    for number in range(1, config.max_rounds + 1):
        per_diameter = band_per_diameter(number, config)
        band = min(per_diameter * shells_per_band, images.box / 2 - 1)
        inner = images.band(band)
        rotations = so3_grid(RADIAN_DEG / per_diameter * config.spacing, generator)
        radius, step = (config.first_shift, 0.05) if number == 1 else (config.shift, 0.025)
        shifts = shift_grid(radius * diameter_px, step * diameter_px)
        volume_ft = volume_to_ft(volume)
        found = search(volume_ft, inner, rotations, shifts, centre, on_block=lambda done, n=number: on_block(n, done))
        local = refine_poses(volume_ft, inner, found.best, config.local_steps)
        moved = angular_distance_deg(pose.rotation, local.pose.rotation)
        pose, centre = local.pose, local.pose.shift_px
        halves = reconstruct_halves(
            accumulate(images.rows(even), pose[even]), accumulate(images.rows(~even), pose[~even]), mask
        )
        volume = halves.combined
        stable = (moved < config.stable_deg).float().mean().item()
        yield Round(number, pose, halves, band, moved, stable, local.residual.mean().item() / len(inner.half_plane))


def finished(history: list[Round], config: SearchConfig) -> bool:
    """Whether the rounds may stop: at the last band, with nearly all poses stable, or no more of them than two rounds ago."""
    last = history[-1]
    if last.number < config.rounds_to_last + 1:
        return False
    if last.stable >= config.stable_share or last.number >= config.max_rounds:
        return True
    before = history[-4:-1]
    return len(before) == 3 and last.number >= config.rounds_to_last + 3 and last.stable < max(r.stable for r in before) + 0.01
