"""The global rotation, hand and origin that relate two sets of poses, tested on poses and on images."""

import pytest
import roma
import torch
from torch import Tensor

from ace_em.maths.half_plane import HalfPlane
from ace_em.maths.rotations import angular_distance_deg
from ace_em.metrics.alignment import Frame, align_poses, apply_frame, turn_volume
from ace_em.metrics.fsc import fourier_shell_correlation
from ace_em.metrics.pose_error import pose_error
from ace_em.physics.imaging import shift_phase
from ace_em.physics.pose import Pose
from ace_em.simulation.density import density_map, project_atoms
from ace_em.simulation.structure import Atoms

N = 500
# take the mark away when turn_volume moves the map by -origin_px, as apply_frame needs it


def random_rotations(n: int, seed: int) -> Tensor:
    return roma.random_rotmat(n, generator=torch.Generator().manual_seed(seed))


def truth() -> Pose:
    return Pose(random_rotations(N, 0), torch.randn(N, 2, generator=torch.Generator().manual_seed(1)) * 2)


def estimate_of(true: Pose, turn: Tensor, origin_px: Tensor, mirrored: bool) -> Pose:
    """Poses in another frame, by inverting the definition of Frame."""
    rotation = turn.T @ true.rotation
    moved = (true.rotation.mT @ origin_px)[:, :2].flip(-1)
    pose = Pose(rotation, true.shift_px - moved)
    return pose.mirrored() if mirrored else pose


def with_errors(pose: Pose, outliers: float, noise_deg: float, noise_px: float) -> Pose:
    generator = torch.Generator().manual_seed(2)
    n_wrong = int(outliers * len(pose))
    small = torch.randn(len(pose), 3, generator=generator) * torch.deg2rad(torch.tensor(noise_deg))
    rotation = pose.rotation @ roma.rotvec_to_rotmat(small)
    shift = pose.shift_px + torch.randn(len(pose), 2, generator=generator) * noise_px
    wrong = torch.randperm(len(pose), generator=generator)[:n_wrong]
    rotation[wrong] = roma.random_rotmat(n_wrong, generator=generator)
    shift[wrong] = torch.randn(n_wrong, 2, generator=generator) * 4
    return Pose(rotation, shift)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(
    ("outliers", "noise_deg", "noise_px"), [(0.0, 0.0, 0.0), (0.2, 0.0, 0.0), (0.2, 3.0, 0.3), (0.4, 1.0, 0.1)]
)
def test_recovers_turn_hand_and_origin(mirrored: bool, outliers: float, noise_deg: float, noise_px: float) -> None:
    true, turn, origin = truth(), random_rotations(1, 5)[0], torch.tensor([3.0, -2.0, 1.0])
    estimate = with_errors(estimate_of(true, turn, origin, mirrored), outliers, noise_deg, noise_px)
    frame = align_poses(estimate, true)
    assert frame.mirrored == mirrored
    assert angular_distance_deg(frame.rotation, turn) < 0.1 + 0.2 * noise_deg
    torch.testing.assert_close(frame.origin_px, origin, atol=0.01 + 0.2 * noise_px, rtol=0)
    assert frame.rotation.det() == pytest.approx(1, abs=1e-5)
    error = pose_error(apply_frame(estimate, frame), true)
    assert error.within_10deg >= 1 - outliers - 0.01
    # 2 a^2 for a small angle a; with 40 % outliers the median is the 83rd percentile of the rest: chi^2 of 5.1 times sigma^2
    assert error.rot_median < 1e-6 + 2 * (noise_deg / 57.3) ** 2 * 6


@pytest.mark.parametrize("mirrored", [False, True])
def test_pseudo_symmetric_poses_are_aligned(mirrored: bool) -> None:
    """A pseudo-three-fold particle, for which the median error is that of the wrong poses."""
    true, turn = truth(), random_rotations(1, 5)[0]
    generator = torch.Generator().manual_seed(9)
    copy = torch.multinomial(torch.tensor([0.4, 0.3, 0.3]), N, replacement=True, generator=generator)
    axis = torch.nn.functional.normalize(torch.tensor([1.0, 2.0, -0.5]), dim=0)
    confused = Pose(roma.rotvec_to_rotmat(2 * torch.pi / 3 * copy[:, None] * axis) @ true.rotation, true.shift_px)
    estimate = with_errors(estimate_of(confused, turn, torch.zeros(3), mirrored), 0.1, 2.0, 0.1)
    frame = align_poses(estimate, true)
    assert frame.mirrored == mirrored and angular_distance_deg(frame.rotation, turn) < 1
    assert frame.origin_px.norm() < 0.3
    assert pose_error(apply_frame(estimate, frame), true).within_10deg == pytest.approx(0.9 * 0.4, abs=0.06)


def test_apply_frame_inverts_the_definition() -> None:
    true, turn, origin = truth(), random_rotations(1, 5)[0], torch.tensor([3.0, -2.0, 1.0])
    for mirrored in (False, True):
        aligned = apply_frame(estimate_of(true, turn, origin, mirrored), Frame(turn, mirrored, origin))
        torch.testing.assert_close(aligned.rotation, true.rotation, atol=1e-5, rtol=0)
        torch.testing.assert_close(aligned.shift_px, true.shift_px, atol=1e-4, rtol=0)


@pytest.mark.parametrize("mirrored", [False, True])
def test_frame_agrees_with_the_images(mirrored: bool) -> None:
    """Two maps and two sets of poses that give the same images; the frame must map the atoms of one to the other.

    An atom of the true map at p stands in the estimated map at ``p_e``, where ``p = A J p_e - origin`` (J the mirror).
    """
    box, pixel, resolution = 32, 1.0, 7.0
    generator = torch.Generator().manual_seed(3)
    p_e = torch.randn(30, 3, generator=generator).clamp(-2, 2) * torch.tensor([4.0, 3.0, 1.5])
    weight = torch.rand(30, generator=generator) + 0.5
    true = truth()[:40]
    turn, origin = random_rotations(1, 6)[0], torch.tensor([2.0, -1.0, 1.5])
    estimate = estimate_of(true, turn, origin, mirrored)
    hand = torch.tensor([1.0, 1, -1 if mirrored else 1])
    p = (p_e * hand) @ turn.T - origin
    half_plane = HalfPlane.within(box)

    def images(position: Tensor, pose: Pose) -> Tensor:
        plane = project_atoms(Atoms(position, weight), pose.rotation, box, pixel, resolution)
        return half_plane.to_image(half_plane.gather(plane) * shift_phase(half_plane, pose.shift_px))

    wanted = images(p, true)
    assert (images(p_e, estimate) - wanted).norm() / wanted.norm() < 0.01
    # the sign of the origin matters here
    assert (images(p_e, Pose(estimate.rotation, 2 * true.shift_px - estimate.shift_px)) - wanted).norm() / wanted.norm() > 0.3
    frame = align_poses(estimate, true)
    assert frame.mirrored == mirrored
    torch.testing.assert_close((p_e * hand) @ frame.rotation.T - frame.origin_px, p, atol=1e-3, rtol=0)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("mirrored", [False, True])
def test_turn_volume_gives_the_true_map(mirrored: bool, shifted: bool) -> None:
    """The same maps and poses: the frame found from the poses aligns the estimated map with the true map."""
    box, resolution = 32, 7.0
    generator = torch.Generator().manual_seed(3)
    p_e = torch.randn(30, 3, generator=generator).clamp(-2, 2) * torch.tensor([4.0, 3.0, 1.5])
    weight = torch.rand(30, generator=generator) + 0.5
    turn, origin = random_rotations(1, 6)[0], torch.tensor([2.0, -1.0, 1.5]) * shifted
    p = (p_e * torch.tensor([1.0, 1, -1 if mirrored else 1])) @ turn.T - origin
    true = truth()
    frame = align_poses(estimate_of(true, turn, origin, mirrored), true)
    turned = turn_volume(density_map(Atoms(p_e, weight), box, 1.0, resolution), frame)
    fsc = fourier_shell_correlation(turned, density_map(Atoms(p, weight), box, 1.0, resolution))
    assert fsc[: box // 4].min() > 0.98


def test_random_poses_stay_random_after_alignment() -> None:
    """Alignment does not make random poses look correct."""
    true = truth()
    guess = Pose(random_rotations(N, 9), true.shift_px)
    error = pose_error(apply_frame(guess, align_poses(guess, true)), true)
    assert error.rot_median > 5 and error.within_10deg < 0.02
