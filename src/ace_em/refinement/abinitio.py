"""Stage 2, first part: the ab initio search, from stage 1's map to the right arrangement of views.

Each round searches a fresh random subset: a small one is cheap, and the change of images moves the map out of half-right
arrangements. Some images are held out of every subset: how well the map explains those decides how good a start is.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ace_em.config import SearchConfig
from ace_em.data.particle_stack import CPU, ParticleStack
from ace_em.maths.fourier import centred_fft, centred_ifft, radius_grid, shell_sums
from ace_em.maths.radial_mean import features, radial_mean
from ace_em.maths.rotations import angular_distance_deg
from ace_em.metrics.fsc import randomise_phases, resolution_shell
from ace_em.physics.pose import Pose
from ace_em.refinement.backprojection import Halves, accumulate, reconstruct_halves
from ace_em.refinement.blank import BlankTest
from ace_em.refinement.pose_refinement import LocalResult, reference_on
from ace_em.refinement.search import PoseGrid, SearchSpace, find_poses


@dataclass(frozen=True)
class Round:
    """State after a round.

    Attributes
    ----------
    number : from 1.
    pose : (N,) poses at the working box; those of images outside the subset are from an earlier round.
    halves : maps from two halves of the subset (their poses share a reference: the FSC sets the prior and is no evidence).
    band : last shell searched.
    moved_deg : change of orientation of the images of the subset.
    stable : share of them that moved by less than ``stable_deg``.
    explained : share of the subset's power above the noise, inside the band, that the map *before* the round accounts for at the
        best poses; near 1 when it is right. Half-right arrangements can be perfectly stable: this share tells them.
    shown : share of the subset that shows a particle. The other images are in no map, and ``stable`` and ``explained`` do not
        count them.
    """

    number: int
    pose: Pose
    halves: Halves
    band: float
    moved_deg: Tensor
    stable: float
    explained: float
    shown: float

    @property
    def fsc143_shell(self) -> float:
        return resolution_shell(self.halves.fsc, 0.143)


@dataclass(frozen=True)
class AbInitioSetup:
    """What stays the same from round to round.

    Attributes
    ----------
    stack : the images, on the whole working half-plane, brought to ``device`` block by block; poses and maps are on the CPU.
    mask : soft ball for the maps.
    space : the poses that are searched.
    """

    stack: ParticleStack
    mask: Tensor
    space: SearchSpace
    config: SearchConfig
    device: torch.device = CPU

    def shown(self, stack: ParticleStack, found: LocalResult, grid: PoseGrid) -> Tensor:
        """Which images (N,), searched on a grid, show a particle."""
        blank = BlankTest(len(grid), self.space.independent)
        return blank.shown(stack.power() - found.residual, found.of_grid)


def band_per_diameter(number: int, config: SearchConfig) -> float:
    """Band of round ``number`` (from 1), in cycles per diameter: it grows from round to round."""
    share = min(1.0, (number - 1) / max(1, config.ab_initio_rounds))
    return config.first_band + (config.last_band - config.first_band) * share


def ab_initio(
    setup: AbInitioSetup,
    volume: Tensor,
    pose: Pose,
    rows_seen: Tensor,
    generator: torch.Generator,
    on_block: Callable[[int, int, int], None] = lambda number, total, done: None,
    history: list[Round] | None = None,
) -> Iterator[Round]:
    """Yield the state after each round, until the map explains the images and no longer gains, or the rounds are used up.

    Parameters
    ----------
    volume : (box, box, box) reference to start from.
    pose : (N,) of stage 1's encoder; its shifts centre the first search.
    rows_seen : the subsets are drawn from these; the others are held out.
    on_block : called with the round, the number of images it searches and how many are done.
    history : rounds that were already made, to resume from the last; new ones are appended.
    """
    config, stack = setup.config, setup.stack
    history = [] if history is None else history
    if history:
        volume, pose = history[-1].halves.combined, history[-1].pose
    while not finished(history, config):
        number = len(history) + 1
        rows = rows_seen[torch.randperm(len(rows_seen), generator=generator)[: config.ab_initio_images]]
        band = setup.space.band(band_per_diameter(number, config))
        subset, before = stack.subset(rows).in_memory(), pose[rows]
        inner = subset.band(band)
        grid = setup.space.grid(band, generator)
        report = partial(on_block, number, len(rows))
        found = find_poses(reference_on(setup.device, volume), inner, before, grid, config, on_block=report)
        moved = angular_distance_deg(before.rotation, found.pose.rotation)
        pose = _updated(pose, rows, found.pose)
        shown = setup.shown(inner, found, grid)
        of_particles = torch.nonzero(shown)[:, 0]
        one, two = (accumulate(subset, found.pose, p, device=setup.device) for p in of_particles.tensor_split(2))
        halves = reconstruct_halves(one, two, setup.mask)
        volume = halves.combined
        stable = (moved[shown] < config.stable_deg).float().mean().item()
        explained = explained_share(inner.power()[shown], found.residual[shown], inner.noise_power()[shown])
        history.append(Round(number, pose, halves, band, moved, stable, explained, shown.float().mean().item()))
        yield history[-1]


def without_old_maps(history: list[Round]) -> list[Round]:
    """The rounds, all but the last without poses and maps, which are no longer needed."""
    return [replace(r, pose=r.pose[:0], halves=r.halves.without_maps(), moved_deg=r.moved_deg[:0]) for r in history[:-1]] + [
        *history[-1:]
    ]


def held_out_rows(n: int, config: SearchConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows held out of the ab initio search, a fifth of ``n`` at most, and the others."""
    order, n_held_out = torch.randperm(n, generator=generator), min(config.held_out, n // 5)
    return order[:n_held_out], order[n_held_out:]


@dataclass(frozen=True)
class HeldOut:
    """How well a map explains images that it was not made from.

    Attributes
    ----------
    explained : the log-likelihood of those that show a particle, from that of noise alone (0) to that of the right map and
        poses (1).
    expected : what the right map of as many images would explain at least (see :func:`expected_share`).
    against_null : by how many standard errors the map fits them better than one of the same radial mean and spectrum with random
        phases. A search finds some likeness to anything, and every arrangement gives the radial mean.
    """

    explained: float
    expected: float
    against_null: float


def judge_held_out(setup: AbInitioSetup, last: Round, rows: Tensor, generator: torch.Generator) -> tuple[Round, HeldOut]:
    """Search images that no round has searched; the state with their poses, and how well the map explains them."""
    grid = setup.space.grid(last.band, generator)
    stack, volume = setup.stack.subset(rows).band(last.band).in_memory(), last.halves.combined
    found = find_poses(reference_on(setup.device, volume), stack, last.pose[rows], grid, setup.config)
    radial = radial_mean(volume)
    null = radial + with_spectrum_of(features(randomise_phases(volume - radial, 1, generator) * setup.mask), volume - radial)
    by_chance = find_poses(reference_on(setup.device, null), stack, last.pose[rows], grid, setup.config)
    gain = by_chance.residual - found.residual
    z = gain.mean() / (gain.std() / len(gain) ** 0.5).clamp(min=1e-12)
    n_made_from = min(setup.config.ab_initio_images, len(setup.stack) - len(rows))
    shown = setup.shown(stack, found, grid)
    power, noise = stack.power()[shown], stack.noise_power()[shown]
    explained = explained_share(power, found.residual[shown], noise)
    expected = expected_share(power, noise, len(stack.half_plane), last.band, max(1, round(n_made_from * last.shown)))
    held_out = HeldOut(explained, expected, z.item())
    return replace(last, pose=_updated(last.pose, rows, found.pose)), held_out


def expected_share(power: Tensor, noise: Tensor, n_coefficients: int, band: float, n_images: int) -> float:
    """Share of held-out images' power above the noise that the right map, made from ``n_images`` others, explains at least.

    Such a map has noise of its own: a coefficient of shell r is seen by ``n_images / 2r`` images, which leaves
    ``2 pi band^3 / 3 n_images`` times the noise of one coefficient in an image's half-plane. Twice that is allowed, and an
    error of 3 % in the noise power.

    Parameters
    ----------
    power : (N,) squared norms of the held-out images, inside the band.
    noise : (N,) expected squared norms of their noise.
    n_coefficients : of an image, inside the band.
    """
    allowed = 2 * (2 * math.pi * band**3 / (3 * n_images)) * noise.mean() / n_coefficients + 0.03 * noise.mean()
    return max(0.0, (1 - allowed / (power.mean() - noise.mean()).clamp(min=1e-6)).item())


def with_spectrum_of(volume: Tensor, other: Tensor) -> Tensor:
    """The volume (n, n, n) with each shell's power that of ``other``."""
    volume_ft, other_ft = centred_fft(volume, 3), centred_fft(other, 3)
    shells = radius_grid(volume.shape[-1], 3).round().long().flatten()
    n_shells = int(shells.max()) + 1
    power = [shell_sums(v.abs().square().flatten(), shells, n_shells) for v in (other_ft, volume_ft)]
    factor = (power[0] / power[1].clamp(min=1e-20)).sqrt()
    return centred_ifft(volume_ft * factor[shells].view(volume.shape), 3).real


def _updated(pose: Pose, rows: Tensor, new: Pose) -> Pose:
    rotation, shift = pose.rotation.clone(), pose.shift_px.clone()
    rotation[rows], shift[rows] = new.rotation, new.shift_px
    return Pose(rotation, shift)


def explained_share(power: Tensor, residual: Tensor, noise: Tensor) -> float:
    """``(power - residual) / (power - noise)``: means over images' squared norms, residuals and noise power, (N,) each."""
    mean = power.mean()
    return ((mean - residual.mean()) / (mean - noise.mean()).clamp(min=1e-6)).item()


def finished(history: list[Round], config: SearchConfig) -> bool:
    """After the set number of rounds; earlier once the map explains the images and no longer gains."""
    if len(history) >= config.ab_initio_rounds:
        return True
    explained = [r.explained for r in history[-4:]]
    return len(explained) == 4 and explained[-1] >= config.ab_initio_explained and explained[-1] - explained[0] <= 0.01
