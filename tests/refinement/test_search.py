"""Exhaustive search: the true pose is found on a grid that contains it, with the expected likelihood."""

import dataclasses
from dataclasses import dataclass
from typing import Any, get_args

import pytest
import roma
import torch

from ace_em.config import SearchConfig
from ace_em.data.particle_stack import Batch
from ace_em.maths.half_plane import HalfPlane
from ace_em.maths.point_group import nearest_copy, point_group
from ace_em.maths.products import BFLOAT16_ROUNDOFF, Factors
from ace_em.maths.rotations import angular_distance_deg
from ace_em.maths.slices import volume_to_ft
from ace_em.physics.imaging import project, shift_phase
from ace_em.physics.pose import Pose
from ace_em.refinement import search as search_module
from ace_em.refinement.pose_refinement import refine_candidates, refine_poses
from ace_em.refinement.search import (
    PoseGrid,
    SearchResult,
    SearchSpace,
    find_or_follow_poses,
    find_poses,
    search,
    shift_grid,
)
from stacks import FixedStack
from volumes import symmetrise_volume

CONFIG = SearchConfig(top_k=4, local_steps=3)


def grid_with(truth: Pose, n_wrong: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    """A shuffled set of rotations that contains the true ones, and their indices."""
    wrong = roma.random_rotmat(n_wrong, generator=torch.Generator().manual_seed(8))
    order = torch.randperm(n_wrong + len(truth), generator=torch.Generator().manual_seed(9))
    return torch.cat([truth.rotation, wrong])[order], order.argsort()[: len(truth)]


def test_shift_grid_fills_a_circle() -> None:
    shifts = shift_grid(2.0, 1.0)
    wanted = {(y, x) for y in range(-2, 3) for x in range(-2, 3) if x * x + y * y <= 4}
    assert {(int(y), int(x)) for y, x in shifts.tolist()} == wanted and len(shifts) == len(wanted)
    assert shift_grid(0.3, 1.0).tolist() == [[0, 0]]
    # 3 x 0.1 is the radius 0.3, up to rounding
    assert shift_grid(0.3, 0.1).abs().max() == pytest.approx(0.3)


@pytest.mark.parametrize("centred", [False, True])
def test_finds_the_true_pose_on_the_grid(particle: Any, centred: bool) -> None:
    """The true shift of each image is a different grid point about its own centre."""
    p = particle(20).double()
    shifts = shift_grid(2.0, 1.0).double()
    true_shift = shifts[torch.arange(20) % len(shifts)]
    centre = torch.randn(20, 2, generator=torch.Generator().manual_seed(3)) if centred else torch.zeros(20, 2)
    pose = Pose(p.pose.rotation, true_shift + centre)
    images = p.images.with_images(project(p.volume_ft, p.images.effective_ctf, p.images.half_plane, pose))
    rotations, where = grid_with(pose)
    found = search(p.volume_ft, images, rotations, shifts, centre.double())
    assert torch.equal(found.pose.column(0).rotation, rotations[where])
    torch.testing.assert_close(found.pose.column(0).shift_px, pose.shift_px)
    # noise-free: the best likelihood is the images' power
    torch.testing.assert_close(found.log_likelihood[:, 0], images.image_ft.abs().square().sum(-1))


@dataclass(frozen=True)
class Scored:
    """Every pose of a grid in float64: log-likelihoods, bounds of their rounding error, and their standard deviation by noise.

    All are (N, g, t) for N images, g rotations and t shifts.
    """

    likelihood: torch.Tensor
    rounding: torch.Tensor
    noise_sd: torch.Tensor

    @staticmethod
    def of(p: Any, rotations: torch.Tensor, shifts: torch.Tensor, centre: torch.Tensor, roundoff: float) -> "Scored":
        parts = []
        for i in range(len(p.images)):
            pose = Pose(rotations[:, None].expand(-1, len(shifts), -1, -1), (centre[i] + shifts).expand(len(rotations), -1, -1))
            image, h = p.images.image_ft[i], p.images.effective_ctf[i]
            predicted = project(p.volume_ft, h, p.images.half_plane, pose)
            likelihood = image.abs().square().sum() - (image - predicted).abs().square().sum(-1)
            # 2 Re(conj(h S phase) y) is the product of S and h conj(phase) y, with separate real and imaginary parts
            slices = project(p.volume_ft, torch.ones_like(h), p.images.half_plane, Pose(rotations, torch.zeros(1, 2).to(h)))
            moved = image * h * shift_phase(p.images.half_plane, -(centre[i] + shifts))
            terms = torch.view_as_real(slices).flatten(1).abs() @ torch.view_as_real(moved).flatten(1).abs().T
            summed = 4 * image.shape[-1] * torch.finfo(torch.float32).eps
            whole = terms + (slices.abs() * h).square().sum(-1)[:, None]
            rounding = 2 * (2 * roundoff + roundoff**2) * terms + summed * whole
            parts.append((likelihood, rounding, (2 * predicted.abs().square().sum(-1)).sqrt()))
        return Scored(*(torch.stack(part) for part in zip(*parts, strict=True)))


def test_likelihood_is_minus_the_squared_residual(particle: Any) -> None:
    """``|y|^2 - |y - h S|^2`` of every rotation at its best shift, computed directly; best first."""
    p = particle(6, noise=1.0).double()
    p = dataclasses.replace(p, images=p.images.band(6))
    rotations = grid_with(p.pose, 20)[0]
    shifts, centre = shift_grid(1.0, 0.5).double(), torch.randn(6, 2, generator=torch.Generator().manual_seed(3)).double()
    found = search(p.volume_ft, p.images, rotations, shifts, centre, top_k=len(rotations))
    assert found.pose.rotation.shape == (6, 26, 3, 3) and found.pose.shift_px.shape == (6, 26, 2)
    best, at = Scored.of(p, rotations, shifts, centre, 0).likelihood.max(2)
    order = best.argsort(dim=1, descending=True)
    torch.testing.assert_close(found.log_likelihood, best.gather(1, order))
    assert torch.equal(found.pose.rotation, rotations[order])
    assert torch.equal(found.pose.shift_px, centre[:, None] + shifts[at.gather(1, order)])
    torch.testing.assert_close(found.log_sum, best.logsumexp(1))
    few = search(p.volume_ft, p.images, rotations, shifts, centre, independent=0.3)
    torch.testing.assert_close(few.log_sum, (0.3 * best).logsumexp(1))
    assert (found.log_likelihood.diff(dim=1) <= 0).all()


@pytest.mark.parametrize("factors", get_args(Factors))
def test_rounding_error_of_the_likelihood_is_bounded(particle: Any, factors: Factors) -> None:
    """Each score is within the bound, far below the noise, and the chosen shift is as good as the best."""
    p = particle(12, noise=1.0, brightness=0.5)
    rotations, shifts = grid_with(p.pose, 40)[0], shift_grid(1.0, 0.5)
    found = search(p.volume_ft, p.images, rotations, shifts, p.pose.shift_px, top_k=len(rotations), factors=factors)
    roundoff = 0.0 if factors == "float32" else BFLOAT16_ROUNDOFF
    exact = Scored.of(p.double(), rotations.double(), shifts.double(), p.pose.shift_px.double(), roundoff)
    same = (found.pose.rotation[:, :, None] == rotations).all(-1).all(-1)
    rotation = same.float().argmax(2)
    shift = (found.pose.shift_px[:, :, None] - p.pose.shift_px[:, None, None] - shifts).norm(dim=-1).argmin(2)
    image = torch.arange(12)[:, None]
    assert same.any(2).all() and len(rotation.unique(dim=1).T) == len(rotations)
    error = (found.log_likelihood - exact.likelihood[image, rotation, shift]).abs()
    bound = exact.rounding[image, rotation, shift]
    assert (error <= bound).all()
    lost = exact.likelihood[image, rotation].amax(2) - exact.likelihood[image, rotation, shift]
    assert (lost <= 2 * exact.rounding[image, rotation].amax(2)).all()
    assert (error / exact.noise_sd[image, rotation, shift]).max() < 0.02


def test_top_k_is_a_prefix(particle: Any) -> None:
    p = particle(6, noise=1.0).double()
    rotations, shifts = grid_with(p.pose, 20)[0], shift_grid(1.0, 1.0).double()
    many = search(p.volume_ft, p.images, rotations, shifts, p.pose.shift_px, top_k=5)
    one = search(p.volume_ft, p.images, rotations, shifts, p.pose.shift_px)
    assert torch.equal(one.pose.rotation[:, 0], many.pose.rotation[:, 0])
    assert torch.equal(one.log_likelihood, many.log_likelihood[:, :1])


def test_blocks_shrink_when_memory_runs_out(
    particle: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    p = particle(11, noise=1.0).double()
    rotations, shifts = grid_with(p.pose, 20)[0], shift_grid(1.0, 1.0).double()
    whole = search(p.volume_ft, p.images, rotations, shifts, p.pose.shift_px, 3)
    batch = FixedStack.batch

    def no_more_than_three(images: FixedStack, some: Any, *device: Any) -> Batch:
        found = batch(images, some, *device)
        if len(found) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return found

    monkeypatch.setattr(FixedStack, "batch", no_more_than_three)
    parts = search(p.volume_ft, p.images, rotations, shifts, p.pose.shift_px, 3)
    assert torch.equal(parts.pose.rotation[:, 0], whole.pose.rotation[:, 0])
    torch.testing.assert_close(parts.log_likelihood, whole.log_likelihood)
    assert "continuing in blocks of 2 images" in caplog.text


def test_blocks_do_not_change_the_result(particle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    p = particle(11, noise=1.0).double()
    rotations, shifts = grid_with(p.pose, 20)[0], shift_grid(1.0, 1.0).double()
    done: list[int] = []
    whole = search(p.volume_ft, p.images, rotations, shifts, p.pose.shift_px, 3, done.append)
    assert done == [11]
    monkeypatch.setattr(search_module, "BLOCK_BYTES", 4 * len(rotations) * len(shifts) * 4)
    done.clear()
    parts = search(p.volume_ft, p.images, rotations, shifts, p.pose.shift_px, 3, done.append)
    assert done == [4, 8, 11]
    assert torch.equal(parts.pose.rotation, whole.pose.rotation) and torch.equal(parts.pose.shift_px, whole.pose.shift_px)
    torch.testing.assert_close(parts.log_likelihood, whole.log_likelihood)
    # with too little memory for one image, it is still one image at a time
    monkeypatch.setattr(search_module, "BLOCK_BYTES", 1)
    assert torch.equal(search(p.volume_ft, p.images, rotations, shifts, p.pose.shift_px, 3).pose.rotation, whole.pose.rotation)


def test_only_the_band_is_used(particle: Any) -> None:
    p = particle(8).double()
    rotations, where = grid_with(p.pose)
    beyond = p.images.half_plane.radius > 5
    images = p.images.with_images(torch.where(beyond, 1e4, p.images.image_ft))
    found = search(p.volume_ft, images.band(5), rotations, torch.zeros(1, 2).double(), p.pose.shift_px)
    assert torch.equal(found.pose.column(0).rotation, rotations[where])
    assert len(HalfPlane.within(20, 5)) == len(p.images.band(5).half_plane)


def test_chunks_of_references_do_not_change_the_result(particle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    p = particle(11, noise=1.0).double()
    rotations, shifts = grid_with(p.pose, 20)[0], shift_grid(1.0, 1.0).double()
    whole = search(p.volume_ft, p.images, rotations, shifts, p.pose.shift_px, 5)
    done: list[int] = []
    # four rotations at a time, fewer than top_k: 31 rotations make 8 chunks
    monkeypatch.setattr(search_module, "REFERENCE_BYTES", 4 * 12 * len(p.images.half_plane))
    parts = search(p.volume_ft, p.images, rotations, shifts, p.pose.shift_px, 5, done.append)
    assert done == [11] * 8
    assert torch.equal(parts.pose.rotation, whole.pose.rotation) and torch.equal(parts.pose.shift_px, whole.pose.shift_px)
    torch.testing.assert_close(parts.log_likelihood, whole.log_likelihood)
    # with too little memory for one reference, it is still one at a time
    monkeypatch.setattr(search_module, "REFERENCE_BYTES", 1)
    alone = search(p.volume_ft, p.images, rotations, shifts, p.pose.shift_px, 5)
    assert torch.equal(alone.pose.rotation[:, 0], whole.pose.rotation[:, 0]) and alone.log_likelihood.shape == (11, 5)


def result_of(likelihood: list[list[float]], label: float) -> SearchResult:
    """Poses with identifiers: the likelihood is encoded in the rotation, and a label in the shift."""
    values = torch.tensor(likelihood)
    rotation = values[..., None, None].expand(*values.shape, 3, 3).clone()
    return SearchResult(Pose(rotation, torch.full((*values.shape, 2), label)), values, values.logsumexp(1))


def test_merged_keeps_the_best_of_both() -> None:
    one, other = result_of([[9.0, 2.0], [4.0, 3.0]], 1.0), result_of([[5.0, 4.0], [8.0, 7.0]], 2.0)
    best = one.merged(other, 3)
    assert best.log_likelihood.tolist() == [[9, 5, 4], [8, 7, 4]]
    assert best.pose.rotation[..., 0, 0].tolist() == best.log_likelihood.tolist()
    assert best.pose.shift_px[..., 0].tolist() == [[1, 2, 2], [2, 2, 1]]
    # log_sum includes poses that are not kept
    torch.testing.assert_close(best.log_sum, torch.cat([one.log_likelihood, other.log_likelihood], 1).logsumexp(1))
    # more than available
    assert one.merged(other, 9).log_likelihood.shape == (2, 4)


def far_from(pose: Pose, seed: int = 3) -> Pose:
    """Every rotation perturbed by 60 to 180 degrees."""
    n = len(pose)
    axis = torch.nn.functional.normalize(torch.randn(n, 3, generator=torch.Generator().manual_seed(seed)), dim=-1)
    return Pose(pose.rotation @ roma.rotvec_to_rotmat(axis * torch.linspace(1.05, 3.1, n)[:, None]), pose.shift_px)


def degrees_off(pose: Pose, truth: Pose) -> torch.Tensor:
    return angular_distance_deg(pose.rotation, truth.rotation)


def test_keep_before_controls_the_earlier_pose(particle: Any) -> None:
    """On a grid without the correct pose, the correct earlier pose wins, unless keep_before is False."""
    p = particle(12, noise=0.5)
    wrong = roma.random_rotmat(30, generator=torch.Generator().manual_seed(8))
    away = angular_distance_deg(wrong[:, None], p.pose.rotation[None]).amin(1) > 25
    grid = PoseGrid(wrong[away], torch.zeros(1, 2))
    assert 5 < len(grid.rotations)
    kept = find_poses(p.volume_ft, p.images, p.pose, grid, CONFIG)
    forgotten = find_poses(p.volume_ft, p.images, p.pose, grid, CONFIG, keep_before=False)
    assert degrees_off(kept.pose, p.pose).max() < 2
    assert (degrees_off(forgotten.pose, p.pose) > 10).float().mean() > 0.4
    assert (kept.residual <= forgotten.residual).all()
    # only the shift of the earlier pose is used then
    other = find_poses(p.volume_ft, p.images, far_from(p.pose), grid, CONFIG, keep_before=False)
    assert torch.equal(other.pose.rotation, forgotten.pose.rotation) and torch.equal(other.residual, forgotten.residual)


def test_correct_poses_are_found_without_earlier_poses(particle: Any) -> None:
    p = particle(40, noise=0.7)
    space = SearchSpace(20, 13.0, dataclasses.replace(CONFIG, spacing=1.2, shift=0.1, shift_step=0.05), torch.eye(3)[None])
    grid = space.grid(6.0, torch.Generator().manual_seed(0))
    start = Pose(far_from(p.pose).rotation, p.pose.shift_px + 0.4)
    images = p.images.band(6.0)
    many = find_poses(p.volume_ft, images, start, grid, space.config)
    assert (degrees_off(many.pose, p.pose) < 8).float().mean() > 0.9
    # more candidates are never worse, and better where the best grid pose is misleading
    one = find_poses(p.volume_ft, images, start, grid, dataclasses.replace(space.config, top_k=1), keep_before=False)
    many = find_poses(p.volume_ft, images, start, grid, space.config, keep_before=False)
    assert (many.residual <= one.residual + 0.5).float().mean() > 0.9
    assert (many.residual < one.residual - 1).any()
    assert many.residual.mean() < one.residual.mean()


def test_more_candidates_are_tried_by_find_poses(particle: Any) -> None:
    """The ``top_k`` best grid poses are refined."""
    p = particle(10, noise=1.0)
    rotations, shifts = grid_with(far_from(p.pose), 40)[0], shift_grid(1.0, 0.5)
    found = find_poses(p.volume_ft, p.images, p.pose, PoseGrid(rotations, shifts), CONFIG, keep_before=False)
    candidates = search(p.volume_ft, p.images, rotations, shifts, p.pose.shift_px, CONFIG.top_k).pose
    expected = refine_candidates(p.volume_ft, p.images, candidates, CONFIG.local_steps).best
    assert torch.equal(found.pose.rotation, expected.pose.rotation) and torch.equal(found.residual, expected.residual)


@pytest.mark.parametrize("name", ["C3", "D2", "T"])
def test_grid_covers_one_asymmetric_unit(name: str) -> None:
    group = point_group(name).float()
    alone, with_group = (
        SearchSpace(20, 13.0, SearchConfig(spacing=1.0), g).grid(6.0, torch.Generator().manual_seed(0))
        for g in (group[:1], group)
    )
    assert len(with_group.rotations) / len(alone.rotations) == pytest.approx(1 / len(group), rel=0.1)
    assert torch.equal(with_group.shifts_px, alone.shifts_px)
    # some symmetry copy of every rotation is as close to this grid as any rotation is to the full grid
    some = roma.random_rotmat(50, generator=torch.Generator().manual_seed(1))
    copies = group @ some[:, None]
    nearest = angular_distance_deg(copies[:, :, None], with_group.rotations).amin((1, 2))
    assert nearest.max() < angular_distance_deg(some[:, None], alone.rotations).amin(1).max() * 1.3


def test_poses_of_a_symmetric_map_are_found_up_to_its_group(particle: Any) -> None:
    p, group = particle(30), point_group("D2").float()
    volume_ft = volume_to_ft(symmetrise_volume(p.volume * p.mask, group))
    images = p.images.with_images(project(volume_ft, p.images.effective_ctf, p.images.half_plane, p.pose))
    config = dataclasses.replace(CONFIG, spacing=1.0, shift=0.05, shift_step=0.05)
    grid = SearchSpace(20, 13.0, config, group).grid(6.0, torch.Generator().manual_seed(0))
    found = find_poses(volume_ft, images.band(6.0), p.pose, grid, config, keep_before=False)
    copy = nearest_copy(found.pose.rotation, p.pose.rotation, group)
    assert (angular_distance_deg(copy, p.pose.rotation) < 5).float().mean() > 0.9
    # the grid has one of four copies, for most images not the true pose itself
    assert (degrees_off(found.pose, p.pose) > 30).float().mean() > 0.5


def test_band_of_a_search_stays_below_nyquist() -> None:
    space = SearchSpace(40, 20.0, CONFIG, torch.eye(3)[None])
    assert space.band(4.5) == 9 and space.band(100.0) == 19


def test_spacing_of_the_grid_is_a_radian_over_the_band() -> None:
    """At 4 cycles per diameter (half the box), every rotation is within one spacing of the grid, but not within half."""
    space = SearchSpace(40, 20.0, dataclasses.replace(CONFIG, spacing=1.0), torch.eye(3)[None])
    grid = space.grid(8.0, torch.Generator().manual_seed(0))
    some = roma.random_rotmat(100, generator=torch.Generator().manual_seed(1))
    nearest = torch.deg2rad(angular_distance_deg(some[:, None], grid.rotations[None]).amin(1))
    assert 0.5 / 4 < nearest.max() < 1 / 4
    # the whole grid is rotated at random
    other = space.grid(8.0, torch.Generator().manual_seed(1))
    assert len(other.rotations) == len(grid.rotations) and not torch.allclose(other.rotations, grid.rotations, atol=0.01)
    # shifts, of a tenth and a fifth of 20 px
    config = dataclasses.replace(CONFIG, shift=0.2, shift_step=0.1)
    assert torch.equal(dataclasses.replace(space, config=config).grid(3.0, torch.Generator()).shifts_px, shift_grid(4.0, 2.0))


def test_settled_images_are_only_refined_locally(particle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    p = particle(20, noise=0.5)
    # shifts beyond local refinement: the search is centred on the earlier shift of each image
    far = torch.tensor([5.0, -5.0])
    p = dataclasses.replace(p, images=p.images.with_images(p.images.image_ft * shift_phase(p.images.half_plane, far)))
    p.pose.shift_px.add_(far)
    before, settled = far_from(p.pose), torch.arange(20) % 3 == 0
    grid = PoseGrid(p.pose.rotation, torch.zeros(1, 2))
    searched: list[int] = []
    original = search_module.search

    def counted(volume_ft: Any, images: Any, *args: Any) -> SearchResult:
        searched.append(len(images))
        return original(volume_ft, images, *args)

    monkeypatch.setattr(search_module, "search", counted)
    found = find_or_follow_poses(p.volume_ft, p.images, before, settled, grid, CONFIG)
    assert searched == [int((~settled).sum())]
    followed = refine_poses(p.volume_ft, p.images, before, CONFIG.local_steps)
    for a, b in [
        (found.pose.rotation, followed.pose.rotation),
        (found.pose.shift_px, followed.pose.shift_px),
        (found.residual, followed.residual),
    ]:
        torch.testing.assert_close(a[settled], b[settled])
    # settled images keep their wrong poses, while the others find their poses on the grid
    assert degrees_off(found.pose, p.pose)[settled].median() > 30
    assert degrees_off(found.pose, p.pose)[~settled].max() < 2
    all_settled = find_or_follow_poses(p.volume_ft, p.images, before, torch.ones(20, dtype=torch.bool), grid, CONFIG)
    assert len(searched) == 1
    assert torch.equal(all_settled.pose.rotation, followed.pose.rotation)
    none_settled = find_or_follow_poses(p.volume_ft, p.images, before, torch.zeros(20, dtype=torch.bool), grid, CONFIG)
    assert searched[1:] == [20] and degrees_off(none_settled.pose, p.pose).max() < 2
