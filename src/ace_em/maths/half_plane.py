"""Half of the Fourier plane of an image: one coefficient of each Hermitian pair, sorted by radius."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ace_em.maths.fourier import centred_fft, centred_ifft, frequencies


@dataclass(frozen=True)
class HalfPlane:
    """One coefficient of each Hermitian pair of the Fourier transform of an image, inside a circle.

    A real image has ``F(-k) = conj F(k)``, so one coefficient of each pair is enough. All coefficients have equal weight: apart
    from the zero frequency, its own partner, a sum of squares over the half-plane is half of the sum over the full plane.

    Attributes
    ----------
    box : pixels per image edge.
    k : (n, 2) integer frequencies in (x, y) order, with ``kx > 0``, or ``kx = 0`` and ``ky >= 0``. They are sorted by radius,
        so that a band is a prefix.
    radius : (n,) ``|k|`` in cycles per box.
    """

    box: int
    k: Tensor
    radius: Tensor

    @staticmethod
    def within(box: int, max_radius: float | None = None, device: torch.device | None = None) -> "HalfPlane":
        """The half-plane ``|k| <= max_radius``, limited to ``|k| < box / 2``: the Nyquist row of an even box has no partner."""
        axis = frequencies(box, device)
        ky, kx = torch.meshgrid(axis, axis, indexing="ij")
        square = kx.square() + ky.square()
        keep = (square < (box / 2) ** 2) & ((kx > 0) | ((kx == 0) & (ky >= 0)))
        if max_radius is not None:
            keep &= square <= max_radius**2
        k = torch.stack([kx[keep], ky[keep]], dim=-1)
        k = k[k.norm(dim=-1).sort(stable=True).indices]
        return HalfPlane(box, k, k.norm(dim=-1))

    def __len__(self) -> int:
        return len(self.k)

    @property
    def shell(self) -> Tensor:
        """(n,) integer shell of each coefficient."""
        return self.radius.round().long()

    @property
    def k3(self) -> Tensor:
        """(n, 3) frequencies ``(kx, ky, 0)`` of the unrotated central slice (eq. 26)."""
        return torch.cat([self.k, torch.zeros_like(self.k[:, :1])], dim=-1)

    def band(self, max_radius: float) -> "HalfPlane":
        """The coefficients with ``|k| <= max_radius``, a prefix of this half-plane."""
        n = int((self.radius <= max_radius).sum())
        return HalfPlane(self.box, self.k[:n], self.radius[:n])

    def to(self, device: torch.device) -> "HalfPlane":
        return HalfPlane(self.box, self.k.to(device), self.radius.to(device))

    def _index(self) -> tuple[Tensor, Tensor]:
        centre = self.box // 2
        return (self.k[:, 1] + centre).long(), (self.k[:, 0] + centre).long()

    def from_image(self, image: Tensor) -> Tensor:
        """Fourier coefficients (..., n) of real images (..., box, box)."""
        return self.gather(centred_fft(image, 2))

    def gather(self, plane: Tensor) -> Tensor:
        """Values (..., n) at these frequencies of centred arrays (..., box, box)."""
        iy, ix = self._index()
        return plane[..., iy, ix]

    def to_image(self, image_ft: Tensor) -> Tensor:
        """Real images (..., box, box) from coefficients ``image_ft`` (..., n); all others are zero."""
        iy, ix = self._index()
        plane = torch.zeros(*image_ft.shape[:-1], self.box, self.box, dtype=image_ft.dtype, device=image_ft.device)
        # the zero frequency is its own partner and must not be doubled
        half = torch.where(self.radius == 0, 0.5, 1.0).to(image_ft.real.dtype)
        plane[..., iy, ix] = image_ft * half
        return 2 * centred_ifft(plane, 2).real
