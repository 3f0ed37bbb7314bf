"""Masks from noisy maps of real structures, and from empty maps."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ace_em.io.mrc import read_volume
from ace_em.maths.masks import soft_ball
from ace_em.refinement import mask as mask_module
from ace_em.refinement.mask import _distance_px, _smoothed, _without_dust, soft_mask
from ace_em.simulation.density import density_map
from ace_em.simulation.structure import read_structure

ROOT = Path(__file__).parents[2]
SHARED = ROOT / "../shared/data"
EXAMPLE = ROOT / "examples/data/5nrl_every10th_atom.npz"

# structure, box, pixel size, resolution, period of the low-pass, all in Angstrom
CASES = [
    pytest.param(EXAMPLE, 48, 8.0, 16.0, 30.0, id="tenth of a spliceosome"),
    *(
        pytest.param(
            SHARED / "structures" / name,
            *sizes,
            id=name,
            marks=pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is absent"),
        )
        for name, *sizes in (
            ("5ni1.cif", 48, 2.5, 5.0, 15.0),
            ("6vyb.pdb.gz", 64, 4.0, 8.0, 15.0),
            ("1aon.pdb.gz", 64, 4.0, 8.0, 15.0),
        )
    ),
]


def noise(n: int, seed: int) -> Tensor:
    return torch.randn(n, n, n, generator=torch.Generator().manual_seed(seed))


def blob(n: int, centre: tuple[int, int, int], radius: float) -> Tensor:
    """A ball of density 1 with a smooth edge."""
    grids = torch.meshgrid(*[torch.arange(n)] * 3, indexing="ij")
    distance = sum((g - c).square() for g, c in zip(grids, centre, strict=True)).sqrt()  # type: ignore[union-attr]
    return torch.sigmoid(radius - distance)


@pytest.mark.parametrize(("path", "box", "pixel", "resolution", "period"), CASES)
def test_mask_contains_the_particle_and_little_else(path: Path, box: int, pixel: float, resolution: float, period: float) -> None:
    volume = density_map(read_structure(path), box, pixel, resolution)
    envelope = volume > 0.1 * volume[volume > 0.2 * volume.max()].mean()
    # the rest is ringing from the band limit
    density = torch.where(volume > 0.02 * volume.max(), volume, 0.0)
    ball = soft_ball(box, box / 2 - 1.5)
    for snr in (3.0, 0.5, 0.1):
        noisy = volume + noise(box, 1) * volume[envelope].std() / snr**0.5
        for what, given, inside in (("whole box", noisy, None), ("zero outside the ball", noisy * ball, ball)):
            mask = soft_mask(given, box * pixel / period, 1, 3, inside)
            assert 0 <= mask.min() and mask.max() <= 1
            kept = (density * mask).sum() / (density * (1 if inside is None else ball)).sum()
            assert kept > 0.99, (snr, what)
            assert envelope.sum() < mask.sum() < 2.7 * envelope.sum(), (snr, what)


def test_dust_is_removed_and_large_components_are_kept() -> None:
    n = 48
    particle = blob(n, (20, 20, 20), 8) + blob(n, (20, 20, 37), 6)
    volume = particle + 2 * blob(n, (42, 42, 8), 1.5) + 0.2 * noise(n, 0)
    mask = soft_mask(volume, 10, 2, 3)
    assert mask[20, 20, 20] == 1 and mask[20, 20, 37] == 1
    assert mask[38:, 38:, :12].max() == 0
    assert (particle * mask).sum() > 0.98 * particle.sum()


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_grey_values_do_not_matter(scale: float) -> None:
    volume = blob(32, (16, 14, 18), 7) + 0.5 * noise(32, 0)
    torch.testing.assert_close(soft_mask(scale * (volume + 3), 6, 2, 3), soft_mask(volume, 6, 2, 3))


@pytest.mark.parametrize("shell", [4.0, 8.0])
@pytest.mark.parametrize("inside", [None, soft_ball(32, 12)], ids=["box", "ball"])
def test_empty_maps(inside: Tensor | None, shell: float) -> None:
    whole = torch.ones(32, 32, 32) if inside is None else inside
    # rounding leaves ripples in a filtered constant map, different on each processor, which must not count as a particle
    constant = torch.full((32, 32, 32), 2.5)
    rippled = constant * (1 + 8 * torch.finfo(torch.float32).eps * blob(32, (16, 14, 18), 7))
    for volume in (torch.zeros(32, 32, 32), constant, rippled, 1e4 * constant, noise(32, 1), noise(32, 2) * whole):
        assert torch.equal(soft_mask(volume, shell, 2, 3, inside), whole)
    assert soft_mask(noise(32, 1), shell, 2, 3, torch.zeros(32, 32, 32)).max() == 0


def test_a_hot_voxel_is_dust() -> None:
    volume = noise(32, 1)
    volume[16, 10, 20] = 500
    assert torch.equal(soft_mask(volume, 6, 2, 3), torch.ones(32, 32, 32))


@pytest.mark.parametrize("shell", [3.0, 8.0])
def test_particle_at_the_edge_of_the_box(shell: float) -> None:
    n = 40
    particle = blob(n, (20, 20, 0), 9)
    mask = soft_mask(particle + 0.3 * noise(n, 0), shell, 2, 3)
    assert (particle * mask).sum() > 0.99 * particle.sum()
    # no wrap-around to the opposite face
    assert mask[:, :, 22:].max() == 0
    assert _smoothed(particle, shell)[:, :, 25:].abs().max() < 0.01


def test_mask_stays_inside() -> None:
    ball = soft_ball(40, 14)
    mask = soft_mask((blob(40, (20, 20, 28), 5) + 0.2 * noise(40, 0)) * ball, 8, 3, 5, ball)
    assert (mask <= ball).all() and mask[20, 20, 28] > 0.99 and mask[20, 20, 10] == 0
    assert (mask < ball - 0.1).sum() > 1000


def test_particle_that_fills_its_ball() -> None:
    """Without visible solvent the mask is the whole ball, not part of the particle."""
    ball = soft_ball(48, 16)
    for radius in (14, 16, 20):
        volume = (blob(48, (24, 24, 24), radius) * (1 + 0.3 * noise(48, 0)) + 0.5 * noise(48, 1)) * ball
        mask = soft_mask(volume, 8, 2, 3, ball)
        assert (blob(48, (24, 24, 24), radius) * mask).sum() > 0.98 * (blob(48, (24, 24, 24), radius) * ball).sum()


@pytest.mark.parametrize(("dilate", "edge"), [(0.0, 4.0), (2.5, 3.5), (3.0, 0.0)])
def test_edge_is_a_cosine_of_the_true_distance(dilate: float, edge: float) -> None:
    volume = blob(28, (13, 14, 12), 5) + 0.3 * noise(28, 0)
    core = soft_mask(volume, 6, 0, 0) == 1
    assert 300 < core.sum() < 1500
    distance = torch.cdist(torch.ones_like(core).nonzero().double(), core.nonzero().double()).amin(1).view(core.shape)
    wanted = torch.where(distance <= dilate, 1.0, 0.0)
    if edge:
        wanted = 0.5 + 0.5 * torch.cos(math.pi * ((distance - dilate) / edge).clamp(0, 1))
    torch.testing.assert_close(soft_mask(volume, 6, dilate, edge), wanted.float(), atol=1e-5, rtol=0)


def test_distance_is_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    core = torch.rand(14, 14, 14, generator=generator) > 0.997
    points, voxels = core.nonzero().double(), torch.ones_like(core).nonzero().double()
    assert 3 < len(points) < 20
    wanted = torch.cdist(voxels, points).amin(1).view(core.shape).float()
    found = _distance_px(core)
    near = wanted <= 6
    assert 0.1 < near.float().mean() < 0.99
    torch.testing.assert_close(found[near], wanted[near])
    assert found[~near].min() > 6


def test_components_match_a_flood_fill() -> None:
    generator = torch.Generator().manual_seed(0)
    # near the percolation threshold: long, winding parts
    core = torch.rand(18, 18, 18, generator=generator) < 0.31
    label = torch.where(core, torch.arange(core.numel()).view(core.shape), -1)
    while True:
        flood = label.clone()
        for axis in range(3):
            for to, start in ((0, 1), (1, 0)):
                target = flood.narrow(axis, to, 17)
                torch.maximum(target, label.narrow(axis, start, 17), out=target)
        flood[~core] = -1
        if torch.equal(flood, label):
            break
        label = flood
    size = torch.bincount(label[core])
    assert (size > 0).sum() > 50
    # dust is the small components of the flood fill
    for smallest in (5, 20):
        keep = core & (size[label.clamp(min=0)] >= max(smallest, mask_module.DUST_FRACTION * size.max()))
        assert torch.equal(_without_dust(core, smallest), keep) and 0 < keep.sum() < core.sum()
    assert not _without_dust(torch.zeros(5, 5, 5, dtype=torch.bool), 1).any()


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is absent")
def test_real_map() -> None:
    """EMD-3488, haemoglobin of 64 kDa: the mask is the volume of the protein plus a margin of a few Angstrom."""
    array, pixel = read_volume(SHARED / "maps/emd_3488.mrc")
    volume = torch.from_numpy(array)
    mask = soft_mask(volume, 100 * pixel / 15, 3, 5)
    protein = 64 * 1210
    assert 1.2 * protein < mask.sum() * pixel**3 < 3.5 * protein
    assert (volume > 0.1)[mask < 0.5].float().mean() < 1e-3
