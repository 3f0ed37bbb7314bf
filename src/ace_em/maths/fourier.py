"""Centred Fourier transforms, the frequency grid, shells, Fourier cropping and padding.

The centre of a box of ``n`` samples is index ``n // 2``, in real and in Fourier space, for even and odd ``n``.
Frequencies are integers: ``k`` counts cycles per box, so ``k / (n * pixel_size)`` is in 1/Angstrom.
"""

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
    """Integer frequencies (or pixel coordinates from the centre) of one axis, from ``-(n // 2)``, shape (n,)."""
    return torch.arange(n, device=device, dtype=dtype) - n // 2


def radius_grid(n: int, ndim: int, device: torch.device | None = None) -> Tensor:
    """Distance from the centre in samples, shape (n,) * ndim."""
    axis = frequencies(n, device)
    grids = torch.meshgrid(*[axis] * ndim, indexing="ij")
    return torch.stack(grids).square().sum(0).sqrt()


def shell_sums(values: Tensor, shells: Tensor, n_shells: int) -> Tensor:
    """Sum ``values`` (..., n) by integer ``shells`` (n,): shape (..., n_shells). Shells from ``n_shells`` on are dropped."""
    inside = shells < n_shells
    out = torch.zeros(*values.shape[:-1], n_shells, dtype=values.dtype, device=values.device)
    return out.index_add_(-1, shells[inside], values[..., inside])


def resize(x: Tensor, n: int, ndim: int, fill: float = 0.0) -> Tensor:
    """Crop the last ``ndim`` axes to ``n`` samples or pad them with ``fill``, about the centre ``n // 2``."""
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
    """Resample real arrays to ``n`` samples per axis by cropping or padding their Fourier transform.

    The transform is scaled by ``(n / old) ** ndim``, so that a band-limited array keeps its values. On cropping to an even box,
    the coefficients at Nyquist lose their Hermitian partners; ``.real`` drops their imaginary part.

    Parameters
    ----------
    x : (..., m, m[, m]) real array.
    n : new samples per axis.
    ndim : 2 for images, 3 for volumes.
    """
    scale = (n / x.shape[-1]) ** ndim
    return centred_ifft(resize(centred_fft(x, ndim), n, ndim), ndim).real * scale
