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
    searched = search_maps([reference_on(setup.device, volume)], stack, [last.pose[rows]], grid, setup.config)
    found, shown = searched.found[0], searched.rows_of(0)
    radial = radial_mean(volume)
    null = radial + with_spectrum_of(features(randomise_phases(volume - radial, 1, generator) * setup.mask), volume - radial)
    found_null = find_poses(reference_on(setup.device, null), stack, last.pose[rows], grid, setup.config)
    gain = found_null.residual - found.residual
    z = gain.mean() / (gain.std() / len(gain) ** 0.5).clamp(min=1e-12)
    n_subset = min(setup.config.ab_initio_images, len(setup.stack) - len(rows))
    power, noise = stack.power()[shown], stack.noise_power()[shown]
    explained = explained_share(power, found.residual[shown], noise)
    expected = expected_share(power, noise, len(stack.half_plane), last.band, max(1, round(n_subset * last.shown)))
    held_out = HeldOut(explained, expected, z.item())
    return replace(last, pose=updated_poses(last.pose, rows, found.pose)), held_out


def with_spectrum_of(volume: Tensor, other: Tensor) -> Tensor:
    """The volume (n, n, n), scaled shell by shell to the power of ``other``."""
    volume_ft, other_ft = centred_fft(volume, 3), centred_fft(other, 3)
    shells = radius_grid(volume.shape[-1], 3).round().long().flatten()
    n_shells = int(shells.max()) + 1
    power = [shell_sums(v.abs().square().flatten(), shells, n_shells) for v in (other_ft, volume_ft)]
    factor = (power[0] / power[1].clamp(min=1e-20)).sqrt()
    return centred_ifft(volume_ft * factor[shells].view(volume.shape), 3).real
