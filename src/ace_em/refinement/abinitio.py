"""Stage 2, first part: from stage 1's map to the right arrangement, by rounds on a fresh random subset each.

A small subset is cheap, and the change of images shakes the map out of half-right arrangements. Some images are held out
of every subset: how well the map explains those, which it has never seen, says how good a start is.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ace_em.config import SearchConfig
from ace_em.data.working_set import CPU, Images, WorkingSet, image_power
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
    pose : (N,) poses at the working box; those of images not looked at are as old as their last round.
    halves : maps from two halves of the images looked at (their poses share a reference: the FSC steers the prior, it is no
        claim).
    band : last shell searched.
    moved_deg : change of orientation of the images looked at.
    stable : share of them that moved by less than ``stable_deg``.
    explained : share of the power above the noise, inside the band, of the images looked at that the map *before* the round
        accounts for with the best poses; near 1 when it is right. Half-right arrangements can be perfectly stable: this
        tells them.
    shown : share of the images looked at that show a particle. The others are in no map, and ``stable`` and ``explained`` do
        not count them.
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
class Explorer:
    """What does not change from round to round: the whole working half-plane, a soft ball for maps, where to search.

    Images are brought to ``device`` block by block; poses and maps are on the CPU.
    """

    images: Images
    mask: Tensor
    space: SearchSpace
    config: SearchConfig
    device: torch.device = CPU

    def shown(self, images: WorkingSet, found: LocalResult, grid: PoseGrid) -> Tensor:
        """Which images (N,), searched on a grid, show a particle."""
        blank = BlankTest(len(grid), self.space.independent)
        return blank.shown(image_power(images) - found.residual, found.of_grid)


def band_per_diameter(number: int, config: SearchConfig) -> float:
    """Band of round ``number`` (from 1), in cycles per diameter: grows while exploring."""
    share = min(1.0, (number - 1) / max(1, config.explore_rounds))
    return config.first_band + (config.last_band - config.first_band) * share


def explore(
    explorer: Explorer,
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
    pose : what stage 1's encoder says; its shifts centre the first search.
    rows_seen : the subsets are drawn from these; the others are held out.
    on_block : called with the round, the number of images it looks at and how many are done.
    history : rounds that were already made, to go on from the last; new ones are appended.
    """
    config, images = explorer.config, explorer.images
    history = [] if history is None else history
    if history:
        volume, pose = history[-1].halves.combined, history[-1].pose
    while still_exploring(history, config):
        number = len(history) + 1
        rows = rows_seen[torch.randperm(len(rows_seen), generator=generator)[: config.explore_images]]
        band = explorer.space.band(band_per_diameter(number, config))
        looked_at, before = images.rows(rows), pose[rows]
        inner = looked_at.band(band)
        grid = explorer.space.grid(band, generator)
        report = partial(on_block, number, len(rows))
        found = find_poses(reference_on(explorer.device, volume), inner, before, grid, config, on_block=report)
        moved = angular_distance_deg(before.rotation, found.pose.rotation)
        pose = _updated(pose, rows, found.pose)
        shown = explorer.shown(inner, found, grid)
        of_particles = torch.nonzero(shown)[:, 0]
        one, two = (accumulate(looked_at, found.pose, p, device=explorer.device) for p in of_particles.tensor_split(2))
        halves = reconstruct_halves(one, two, explorer.mask)
        volume = halves.combined
        stable = (moved[shown] < config.stable_deg).float().mean().item()
        explained = explained_share(image_power(inner)[shown], found.residual[shown], inner.noise_variance)
        history.append(Round(number, pose, halves, band, moved, stable, explained, shown.float().mean().item()))
        yield history[-1]


def without_past(history: list[Round]) -> list[Round]:
    """The rounds, all but the last without the poses and maps that nothing asks for any more."""
    return [replace(r, pose=r.pose[:0], halves=r.halves.without_maps(), moved_deg=r.moved_deg[:0]) for r in history[:-1]] + [
        *history[-1:]
    ]


def held_out_rows(n: int, config: SearchConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows held out of exploring, a fifth of ``n`` at most, and the others."""
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
    against_null : by how many standard errors that beats a map of the same radial mean and spectrum, with random phases. A
        search finds some likeness to anything, and every arrangement gives the radial mean; where there is no more, the map
        says nothing about the images.
    """

    explained: float
    expected: float
    against_null: float


def judge_held_out(explorer: Explorer, last: Round, rows: Tensor, generator: torch.Generator) -> tuple[Round, HeldOut]:
    """Search images that no round has looked at; the state with their poses, and how well the map explains them."""
    grid = explorer.space.grid(last.band, generator)
    images, volume = explorer.images.rows(rows).band(last.band), last.halves.combined
    found = find_poses(reference_on(explorer.device, volume), images, last.pose[rows], grid, explorer.config)
    radial = radial_mean(volume)
    null = radial + with_spectrum_of(features(randomise_phases(volume - radial, 1, generator) * explorer.mask), volume - radial)
    by_chance = find_poses(reference_on(explorer.device, null), images, last.pose[rows], grid, explorer.config)
    gain = by_chance.residual - found.residual
    z = gain.mean() / (gain.std() / len(gain) ** 0.5).clamp(min=1e-12)
    n_made_from = min(explorer.config.explore_images, len(explorer.images) - len(rows))
    shown, power, noise = explorer.shown(images, found, grid), image_power(images), images.noise_variance
    explained = explained_share(power[shown], found.residual[shown], noise)
    expected = expected_share(power[shown], noise, last.band, max(1, round(n_made_from * last.shown)))
    held_out = HeldOut(explained, expected, z.item())
    return replace(last, pose=_updated(last.pose, rows, found.pose)), held_out


def expected_share(power: Tensor, noise_variance: Tensor, band: float, n_images: int) -> float:
    """Share of held-out images' power above the noise that the right map, made from ``n_images`` others, explains at least.

    Such a map has noise of its own: a coefficient of shell r is seen by ``n_images / 2r`` images, which leaves
    ``2 pi band^3 / 3 n_images`` times the noise of one coefficient in an image's half-plane. Twice that is allowed, and an
    error of 3 % in the noise power.

    Parameters
    ----------
    power : (N,) squared norms of the held-out images, inside the band.
    noise_variance : (n,) of their coefficients.
    """
    noise = noise_variance.sum()
    allowed = 2 * (2 * math.pi * band**3 / (3 * n_images)) * noise_variance.mean() + 0.03 * noise
    return max(0.0, (1 - allowed / (power.mean() - noise).clamp(min=1e-6)).item())


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


def explained_share(power: Tensor, residual: Tensor, noise_variance: Tensor) -> float:
    """``(power - residual) / (power - noise)``, means over images' squared norms (N,) and residuals (N,)."""
    mean, noise = power.mean(), noise_variance.sum()
    return ((mean - residual.mean()) / (mean - noise).clamp(min=1e-6)).item()


def still_exploring(history: list[Round], config: SearchConfig) -> bool:
    """Explore for the set number of rounds; leave early once the map explains the images and no longer gains."""
    if len(history) >= config.explore_rounds:
        return False
    explained = [r.explained for r in history[-4:]]
    return len(explained) < 4 or explained[-1] < config.explored or explained[-1] - explained[0] > 0.01
