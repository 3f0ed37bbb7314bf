"""Volumes for tests."""

import torch
from torch import Tensor

from ace_em.maths.fourier import frequencies
from ace_em.maths.slices import sample, volume_to_ft

BLOCK = 2**20


def symmetrise_volume(volume: Tensor, group: Tensor, pad: int = 3) -> Tensor:
    """Mean over the group (g, 3, 3) of ``V(g r)``, of a real map (n, n, n), by Fourier interpolation.

    As in :func:`ace_em.metrics.alignment.turn_volume`, frequencies beyond the Nyquist sphere are dropped.
    """
    n = volume.shape[-1]
    volume_ft, group = volume_to_ft(volume, pad), group.to(volume)
    axis = frequencies(2 * (n // 2) + 1, volume.device, volume.dtype)
    half = torch.zeros(len(axis), len(axis), n // 2 + 1, dtype=volume.dtype.to_complex(), device=volume.device)
    for z in range(len(axis)):
        y, x = torch.meshgrid(axis, axis[len(axis) // 2 :], indexing="ij")
        k = torch.stack([x, y, axis[z].expand_as(x)], dim=-1)
        inside = k.norm(dim=-1) < n / 2
        if inside.any():
            parts = k[inside].split(max(1, BLOCK // len(group)))
            half[z, inside] = torch.cat([sample(volume_ft, part, group).mean(0) for part in parts])
    half = torch.fft.ifftshift(half[:n, :n], dim=(0, 1))
    return torch.fft.fftshift(torch.fft.irfftn(half, s=(n, n, n)))
