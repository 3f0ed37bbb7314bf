"""Solvent flattening: references without the noise around the particle, and the FSC inside the mask."""

import roma
import torch

from ace_em.maths.half_plane import HalfPlane
from ace_em.maths.masks import soft_ball
from ace_em.maths.slices import volume_to_ft
from ace_em.metrics.fsc import fourier_shell_correlation, resolution_shell
from ace_em.physics.imaging import project
from ace_em.physics.pose import Pose
from ace_em.refinement.backprojection import accumulate, reconstruct_halves
from ace_em.refinement.solvent import fsc_in_mask, solvent_mask
from stacks import FixedStack

BOX = 32


def rod(seed: int) -> torch.Tensor:
    """Density (n, n, n) of a rod of random beads, which fills a small part of the ball."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.arange(BOX) - BOX / 2
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    beads = [(-9 + 2 * i, *torch.randn(2, generator=generator).tolist()) for i in range(10)]
    return sum((torch.exp(-((z - a) ** 2 + (y - b) ** 2 + (x - c) ** 2) / 3) for a, b, c in beads), torch.zeros(BOX, BOX, BOX))


def noise(sd: float, seed: int) -> torch.Tensor:
    return sd * torch.randn(BOX, BOX, BOX, generator=torch.Generator().manual_seed(seed))


def test_mask_covers_the_particle_and_little_else() -> None:
    volume, ball = rod(0), soft_ball(BOX, 14)
    halves = [volume + noise(0.25, seed) for seed in (1, 2)]
    mask = solvent_mask(*halves, fourier_shell_correlation(halves[0] * ball, halves[1] * ball), ball)
    inside = volume > 0.3
    assert mask[inside].min() > 0.9
    assert mask.sum() < 0.4 * ball.sum()
    assert 0 <= mask.min() and mask.max() <= 1


def test_fsc_inside_the_mask_is_higher_and_not_by_the_mask_alone() -> None:
    volume, ball = rod(0), soft_ball(BOX, 14)
    halves = [volume + noise(0.5, seed) for seed in (1, 2)]
    fsc = fourier_shell_correlation(halves[0] * ball, halves[1] * ball)
    mask = solvent_mask(*halves, fsc, ball)
    assert resolution_shell(fsc_in_mask(*halves, mask).corrected, 0.143) > resolution_shell(fsc, 0.143) + 1
    # the same mask on noise alone correlates nothing
    empty = fsc_in_mask(noise(0.5, 3), noise(0.5, 4), mask)
    assert empty.corrected[4:].abs().mean() < 0.1


def test_references_are_closer_to_the_truth_and_the_map_stays() -> None:
    volume, ball = rod(0), soft_ball(BOX, 14)
    half_plane, generator = HalfPlane.within(BOX), torch.Generator().manual_seed(5)
    pose = Pose(roma.random_rotmat(600, generator=generator), torch.zeros(600, 2))
    ctf = torch.ones(600, len(half_plane))
    clean = project(volume_to_ft(volume), ctf, half_plane, pose)
    images = clean + 60 * torch.randn(clean.shape, dtype=clean.dtype, generator=generator)
    stack = FixedStack.of(half_plane, images, ctf, 60.0**2)
    one, two = (accumulate(stack, pose, torch.arange(h, 600, 2)) for h in range(2))
    plain, flat = reconstruct_halves(one, two, ball), reconstruct_halves(one, two, ball, flatten_solvent=True)
    assert torch.equal(plain.combined, flat.combined) and torch.equal(plain.fsc, flat.fsc)
    assert torch.equal(plain.fsc_of_references, plain.fsc)
    assert resolution_shell(flat.fsc_of_references, 0.143) > resolution_shell(flat.fsc, 0.143)

    def error(half: torch.Tensor) -> torch.Tensor:
        return (half - volume * ball).square().sum()

    for before, after in ((plain.half1, flat.half1), (plain.half2, flat.half2)):
        assert error(after) < 0.8 * error(before)
