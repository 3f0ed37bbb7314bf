"""How well the map of the ab initio search explains images that it was not made from: what a start is judged by."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ace_em.config import SearchConfig
from ace_em.maths.fourier import centred_fft, centred_ifft, radius_grid, shell_sums
from ace_em.maths.radial_mean import features, radial_mean
from ace_em.metrics.fsc import randomise_phases
from ace_em.refinement.abinitio import AbInitioSetup, Round, updated_poses
from ace_em.refinement.explained import expected_share, explained_share
from ace_em.refinement.pose_refinement import reference_on
from ace_em.refinement.search import find_poses
from ace_em.refinement.second_map import search_maps


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
    searched = search_maps([reference_on(setup.device, volume)], stack, [last.pose[rows]], grid, setup.config)
    found, shown = searched.found[0], searched.rows_of(0)
    radial = radial_mean(volume)
    null = radial + with_spectrum_of(features(randomise_phases(volume - radial, 1, generator) * setup.mask), volume - radial)
    by_chance = find_poses(reference_on(setup.device, null), stack, last.pose[rows], grid, setup.config)
    gain = by_chance.residual - found.residual
    z = gain.mean() / (gain.std() / len(gain) ** 0.5).clamp(min=1e-12)
    n_made_from = min(setup.config.ab_initio_images, len(setup.stack) - len(rows))
    power, noise = stack.power()[shown], stack.noise_power()[shown]
    explained = explained_share(power, found.residual[shown], noise)
    expected = expected_share(power, noise, len(stack.half_plane), last.band, max(1, round(n_made_from * last.shown)))
    held_out = HeldOut(explained, expected, z.item())
    return replace(last, pose=updated_poses(last.pose, rows, found.pose)), held_out


def with_spectrum_of(volume: Tensor, other: Tensor) -> Tensor:
    """The volume (n, n, n) with each shell's power that of ``other``."""
    volume_ft, other_ft = centred_fft(volume, 3), centred_fft(other, 3)
    shells = radius_grid(volume.shape[-1], 3).round().long().flatten()
    n_shells = int(shells.max()) + 1
    power = [shell_sums(v.abs().square().flatten(), shells, n_shells) for v in (other_ft, volume_ft)]
    factor = (power[0] / power[1].clamp(min=1e-20)).sqrt()
    return centred_ifft(volume_ft * factor[shells].view(volume.shape), 3).real
