"""Stage 2, first part: the ab initio search, which turns the map and poses of stage 1 into a correct initial model.

Each round searches a new random subset of the particles. A small subset is cheap, and changing it helps the map escape local
optima in which only part of the poses are right. Some particles are held out of all subsets; how well the map explains them
ranks the starts.
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
    pose : (N,) poses at the working box. Images outside the subset keep the pose of an earlier round.
    halves : maps from two halves of the subset. Their poses share a reference, so the halves are not independent: their FSC
        sets the prior but does not measure the resolution.
    band : last shell searched.
    moved_deg : (n,) change of orientation of each image of the subset.
    stable : fraction of the subset that moved by less than ``stable_deg``.
    explained : fraction of the subset's signal power (power above the noise, inside the band) explained by the map from before
        the round at the best poses. It is near 1 for a correct map. A partly wrong set of poses can be perfectly stable, so
        stability alone is not enough.
    shown : fraction of the subset that shows a particle. Blank images enter no map and are excluded from ``stable`` and
        ``explained``.
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
    stack : images on the full half-plane of the working box, moved to ``device`` in blocks. Poses and maps stay on the CPU.
    mask : (box, box, box) soft spherical mask of the maps.
    space : the poses to search.
    """

    stack: ParticleStack
    mask: Tensor
    space: SearchSpace
    config: SearchConfig
    device: torch.device = CPU

    def shown(self, stack: ParticleStack, found: LocalResult, grid: PoseGrid) -> Tensor:
        """Whether each image searched on a grid shows a particle, (N,) bool."""
        blank = BlankTest(len(grid), self.space.independent)
        return blank.shown(stack.power() - found.residual, found.of_grid)


def band_per_diameter(number: int, config: SearchConfig) -> float:
    """Band of round ``number`` (from 1), in cycles per particle diameter. It grows linearly with the rounds."""
    fraction = min(1.0, (number - 1) / max(1, config.ab_initio_rounds))
    return config.first_band + (config.last_band - config.first_band) * fraction


def ab_initio(
    setup: AbInitioSetup,
    volume: Tensor,
    pose: Pose,
    rows_seen: Tensor,
    generator: torch.Generator,
    on_block: Callable[[int, int, int], None] = lambda number, total, done: None,
    history: list[Round] | None = None,
) -> Iterator[Round]:
    """Yield the state after each round, until the search has converged or the maximum number of rounds is reached.

    Parameters
    ----------
    volume : (box, box, box) initial reference.
    pose : (N,) poses from the encoder of stage 1. Their shifts centre the first search.
    rows_seen : particles from which the subsets are drawn. The others are held out.
    on_block : called with the round, the number of images to search and the number searched so far.
    history : rounds already completed; the search resumes from the last. New rounds are appended.
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
    """The rounds; all but the last lose their poses and maps, which are no longer needed."""
    return [replace(r, pose=r.pose[:0], halves=r.halves.without_maps(), moved_deg=r.moved_deg[:0]) for r in history[:-1]] + [
        *history[-1:]
    ]


def held_out_rows(n: int, config: SearchConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows held out of the ab initio search, at most a fifth of ``n``, and the remaining rows."""
    order, n_held_out = torch.randperm(n, generator=generator), min(config.held_out, n // 5)
    return order[:n_held_out], order[n_held_out:]


@dataclass(frozen=True)
class HeldOut:
    """How well a map explains images that were not used to make it.

    Attributes
    ----------
    explained : log-likelihood of the images that show a particle, scaled so that pure noise is 0 and the correct map and poses
        are 1.
    expected : lower bound of ``explained`` for a correct map made from the same number of images (see
        :func:`expected_share`).
    against_null : z-score of the improvement in fit over a null map, which has the same radial mean and power spectrum but
        random phases. The null is needed because a search fits any map to noise to some extent, and because the radial mean
        comes out the same for any set of poses.
    """

    explained: float
    expected: float
    against_null: float


def judge_held_out(setup: AbInitioSetup, last: Round, rows: Tensor, generator: torch.Generator) -> tuple[Round, HeldOut]:
    """Search the held-out images ``rows``. Return the state with their poses, and how well the map explains them."""
    grid = setup.space.grid(last.band, generator)
    stack, volume = setup.stack.subset(rows).band(last.band).in_memory(), last.halves.combined
    found = find_poses(reference_on(setup.device, volume), stack, last.pose[rows], grid, setup.config)
    radial = radial_mean(volume)
    null = radial + with_spectrum_of(features(randomise_phases(volume - radial, 1, generator) * setup.mask), volume - radial)
    found_null = find_poses(reference_on(setup.device, null), stack, last.pose[rows], grid, setup.config)
    gain = found_null.residual - found.residual
    z = gain.mean() / (gain.std() / len(gain) ** 0.5).clamp(min=1e-12)
    n_subset = min(setup.config.ab_initio_images, len(setup.stack) - len(rows))
    shown = setup.shown(stack, found, grid)
    power, noise = stack.power()[shown], stack.noise_power()[shown]
    explained = explained_share(power, found.residual[shown], noise)
    expected = expected_share(power, noise, len(stack.half_plane), last.band, max(1, round(n_subset * last.shown)))
    held_out = HeldOut(explained, expected, z.item())
    return replace(last, pose=_updated(last.pose, rows, found.pose)), held_out


def expected_share(power: Tensor, noise: Tensor, n_coefficients: int, band: float, n_images: int) -> float:
    """Least fraction of the signal power of held-out images that a correct map from ``n_images`` other images explains.

    The map itself is noisy. About ``n_images / 2r`` images contribute to a coefficient of shell r, so a slice of the map
    carries ``2 pi band^3 / 3 n_images`` times the noise of one image coefficient, summed over the half-plane. The bound allows
    twice that, plus a 3 % error of the noise power.

    Parameters
    ----------
    power : (N,) squared norms of the held-out images, inside the band.
    noise : (N,) expected squared norms of their noise.
    n_coefficients : coefficients per image inside the band.
    """
    allowed = 2 * (2 * math.pi * band**3 / (3 * n_images)) * noise.mean() / n_coefficients + 0.03 * noise.mean()
    return max(0.0, (1 - allowed / (power.mean() - noise.mean()).clamp(min=1e-6)).item())


def with_spectrum_of(volume: Tensor, other: Tensor) -> Tensor:
    """The volume (n, n, n), scaled shell by shell to the power of ``other``."""
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
    """``(power - residual) / (power - noise)``, each averaged over the images.

    Parameters
    ----------
    power, residual, noise : (N,) squared norms of the images, of their residuals, and the expected noise power.
    """
    mean = power.mean()
    return ((mean - residual.mean()) / (mean - noise.mean()).clamp(min=1e-6)).item()


def finished(history: list[Round], config: SearchConfig) -> bool:
    """Whether to stop: after the maximum number of rounds, or once ``explained`` is high enough and has levelled off."""
    if len(history) >= config.ab_initio_rounds:
        return True
    explained = [r.explained for r in history[-4:]]
    return len(explained) == 4 and explained[-1] >= config.ab_initio_explained and explained[-1] - explained[0] <= 0.01
