"""The bank of five Gaussian filters before the paper's encoder (appendix A.1, eq. 17)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ace_em.maths.fourier import frequencies
from ace_em.maths.half_plane import HalfPlane

VARIANCES_PX2 = (1e-2, 1e-1, 1.0, 1e1, 1e2)
KERNEL_PX = 11


def gaussian_kernels(variances_px2: tuple[float, ...] = VARIANCES_PX2, size_px: int = KERNEL_PX) -> Tensor:
    """Normalised kernels (len(variances), size, size). At variance 100 the kernel is truncated at half a sigma: nearly a box."""
    axis = torch.arange(size_px, dtype=torch.float64) - size_px // 2
    square = axis[:, None].square() + axis.square()
    kernels = torch.stack([torch.exp(-square / (2 * v)) for v in variances_px2])
    return (kernels / kernels.sum((-1, -2), keepdim=True)).float()


def filter_bank(images: Tensor, kernels: Tensor) -> Tensor:
    """Filter images (b, h, w) with every kernel (c, s, s), zero-padded: (b, c, h, w)."""
    return F.conv2d(images[:, None], kernels[:, None].to(images), padding=kernels.shape[-1] // 2)


def kernel_transfer(kernels: Tensor, half_plane: HalfPlane) -> Tensor:
    """Transfer functions (c, n), real, of kernels (c, s, s): the factors that filtering applies to Fourier coefficients.

    They treat the image as periodic. For an image that is zero near its edge, this equals zero padding.
    """
    axis = frequencies(kernels.shape[-1], kernels.device)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    angle = half_plane.k @ torch.stack([x.flatten(), y.flatten()]) * (2 * math.pi / half_plane.box)
    return kernels.flatten(1) @ torch.cos(angle).T
