"""The pose of a particle: a rotation and an in-plane shift."""

from collections.abc import Sequence
from dataclasses import dataclass

import roma
import torch
from torch import Tensor


@dataclass(frozen=True)
class Pose:
    """Rotation and in-plane shift of particles.

    Attributes
    ----------
    rotation : (..., 3, 3) matrices ``R`` acting on column vectors in x, y, z order. The central slice of the image is
        ``V_hat(R k)`` with ``k = (kx, ky, 0)`` (eq. 26).
    shift_px : (..., 2) in (y, x) order, in pixels of the image. Image content is moved by ``+shift_px``; the paper's tau
        (eq. 23) and RELION's origin are its negative.
    """

    rotation: Tensor
    shift_px: Tensor

    def __len__(self) -> int:
        return len(self.rotation)

    def __getitem__(self, rows: Tensor | slice | int) -> "Pose":
        return Pose(self.rotation[rows], self.shift_px[rows])

    def rescaled(self, factor: float) -> "Pose":
        """The same pose for images whose pixel size is ``1 / factor`` times as large."""
        return Pose(self.rotation, self.shift_px * factor)

    def to(self, device: torch.device) -> "Pose":
        return Pose(self.rotation.to(device), self.shift_px.to(device))

    @staticmethod
    def cat(poses: Sequence["Pose"]) -> "Pose":
        return Pose(torch.cat([p.rotation for p in poses]), torch.cat([p.shift_px for p in poses]))

    @staticmethod
    def stack(poses: Sequence["Pose"]) -> "Pose":
        """Stack K sets of poses (N,) into one of shape (N, K)."""
        return Pose(torch.stack([p.rotation for p in poses], dim=1), torch.stack([p.shift_px for p in poses], dim=1))

    def column(self, index: int) -> "Pose":
        """The poses (N,) with one index of (N, K)."""
        return Pose(self.rotation[:, index], self.shift_px[:, index])

    def in_turned_image(self, turn: Tensor) -> "Pose":
        """The pose after the image is transformed by ``turn`` (..., 2, 2), an in-plane rotation or mirror ``A`` of (x, y).

        The central slice becomes ``V_hat(R A^T k)``. ``A`` is extended to a proper rotation of space by inverting z if it
        mirrors, so that a mirrored image is a view from the back. The shift, in (x, y), becomes ``A t``.
        """
        space = torch.zeros(*turn.shape[:-2], 3, 3, dtype=turn.dtype, device=turn.device)
        space[..., :2, :2] = turn
        space[..., 2, 2] = torch.linalg.det(turn)
        return Pose(self.rotation @ space.mT, (turn @ self.shift_px.flip(-1)[..., None])[..., 0].flip(-1))

    def mirrored(self) -> "Pose":
        """The pose with the same image of the opposite hand (the volume mirrored in z): ``J R J``, ``J = diag(1, 1, -1)``."""
        sign = torch.tensor([1.0, 1.0, -1.0], dtype=self.rotation.dtype, device=self.rotation.device)
        return Pose(sign[:, None] * self.rotation * sign, self.shift_px)


def relion_angles_to_rotmat(angles_deg: Tensor) -> Tensor:
    """Rotations (..., 3, 3) from RELION's (rot, tilt, psi), (..., 3) in degrees; tested against ``relion_project``."""
    return roma.euler_to_rotmat("ZYZ", angles_deg, degrees=True)


def rotmat_to_relion_angles(rotation: Tensor) -> Tensor:
    """RELION's (rot, tilt, psi), (..., 3) in degrees, from rotations (..., 3, 3).

    At tilt 0 or 180 only the sum or difference of rot and psi is defined; rot is then chosen by convention.
    """
    angles = roma.rotmat_to_euler("ZYZ", rotation.double(), degrees=True)
    return torch.as_tensor(angles).to(rotation.dtype)
