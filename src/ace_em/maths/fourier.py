"""Centred Fourier transforms, the only frequency grid, half-planes, Fourier cropping and padding.

The centre of a box of ``n`` samples is index ``n // 2``, in real and in Fourier space, for even and odd ``n``.
Frequencies are integers: ``k`` counts cycles per box, so ``k / (n * pixel_size)`` is in 1/Angstrom.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


def _axes(x: Tensor, ndim: int) -> tuple[int, ...]:
    return tuple(range(x.dim() - ndim, x.dim()))


def centred_fft(x: Tensor, ndim: int) -> Tensor:
    """Discrete Fourier transform over the last ``ndim`` axes, origin at index ``n // 2`` on both sides.

    Parameters
    ----------
    x : (..., n, n[, n]) real or complex array, origin at ``n // 2``.
    ndim : number of trailing axes to transform.

    Returns
    -------
    (..., n, n[, n]) complex array, zero frequency at ``n // 2``.
    """
    axes = _axes(x, ndim)
    return torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(x, dim=axes), dim=axes), dim=axes)


def centred_ifft(x_ft: Tensor, ndim: int) -> Tensor:
    """Inverse of :func:`centred_fft`; complex output of the same shape."""
    axes = _axes(x_ft, ndim)
    return torch.fft.fftshift(torch.fft.ifftn(torch.fft.ifftshift(x_ft, dim=axes), dim=axes), dim=axes)


def frequencies(n: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Integer frequencies (equally: pixel coordinates about the centre) of one axis: ``0 - n // 2 ... ``, shape (n,)."""
    return torch.arange(n, device=device, dtype=dtype) - n // 2


def radius_grid(n: int, ndim: int, device: torch.device | None = None) -> Tensor:
    """Distance from the centre in samples, shape (n,) * ndim."""
    axis = frequencies(n, device)
    grids = torch.meshgrid(*[axis] * ndim, indexing="ij")
    return torch.stack(grids).square().sum(0).sqrt()


def shell_sums(values: Tensor, shells: Tensor, n_shells: int) -> Tensor:
    """Sum of ``values`` (..., n) over integer ``shells`` (n,): shape (..., n_shells); shells beyond the last are dropped."""
    inside = shells < n_shells
    out = torch.zeros(*values.shape[:-1], n_shells, dtype=values.dtype, device=values.device)
    return out.index_add_(-1, shells[inside], values[..., inside])


def resize(x: Tensor, n: int, ndim: int, fill: float = 0.0) -> Tensor:
    """Crop or zero-pad the last ``ndim`` axes to ``n`` samples, keeping the centre at the centre."""
    for axis in range(x.dim() - ndim, x.dim()):
        old = x.shape[axis]
        if old >= n:
            x = x.narrow(axis, old // 2 - n // 2, n)
        else:
            before = n // 2 - old // 2
            pad = [0, 0] * (x.dim() - 1 - axis) + [before, n - old - before]
            x = torch.nn.functional.pad(x, pad, value=fill)
    return x


def fourier_resize(x: Tensor, n: int, ndim: int) -> Tensor:
    """Resample real arrays to ``n`` samples an axis by cropping or padding their Fourier transform.

    Grey values of a band-limited array are kept (the transform is scaled by ``(n / old) ** ndim``). When an even box
    is cropped, the Nyquist row has no partner left and its imaginary part is dropped with the ``.real``.

    Parameters
    ----------
    x : (..., m, m[, m]) real array.
    n : new samples per axis.
    ndim : 2 for images, 3 for volumes.
    """
    scale = (n / x.shape[-1]) ** ndim
    return centred_ifft(resize(centred_fft(x, ndim), n, ndim), ndim).real * scale


@dataclass(frozen=True)
class HalfPlane:
    """One coefficient of each Hermitian pair of an image's Fourier transform, inside a circle.

    A real image has ``F(-k) = conj F(k)``, so every pair is kept once, every coefficient counts the same, and a sum of
    squares over the half-plane is half of the sum over the plane (the zero frequency, its own partner, apart).

    Attributes
    ----------
    box : samples per image edge.
    k : (n, 2) integer frequencies in (x, y) order; ``kx > 0``, or ``kx = 0`` and ``ky >= 0``; sorted by radius, so that
        a band is a prefix.
    radius : (n,) ``|k|``.
    """

    box: int
    k: Tensor
    radius: Tensor

    @staticmethod
    def within(box: int, max_radius: float | None = None, device: torch.device | None = None) -> "HalfPlane":
        """The half-plane ``|k| <= max_radius``; by default ``|k| < box / 2``, as an even box's Nyquist row has no partner."""
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
        """(n, 3) frequencies ``(kx, ky, 0)`` of the central slice of eq. 26."""
        return torch.cat([self.k, torch.zeros_like(self.k[:, :1])], dim=-1)

    def band(self, max_radius: float) -> "HalfPlane":
        """The coefficients with ``|k| <= max_radius``: the first ``len(band)`` of this half-plane."""
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
        """Real images (..., box, box) whose only coefficients are ``image_ft`` (..., n)."""
        iy, ix = self._index()
        plane = torch.zeros(*image_ft.shape[:-1], self.box, self.box, dtype=image_ft.dtype, device=image_ft.device)
        # the zero frequency is its own partner and must count once
        half = torch.where(self.radius == 0, 0.5, 1.0).to(image_ft.real.dtype)
        plane[..., iy, ix] = image_ft * half
        return 2 * centred_ifft(plane, 2).real
