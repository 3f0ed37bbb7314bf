"""FourierNet (appendix A.2; Levy et al. 2022, cryoAI, section 3.3): the Fourier transform of a volume as two SIRENs.

``V_hat(k) = exp(envelope(k)) * modulant(k)``, with separate outputs for the real and imaginary parts. The modulant oscillates
about zero; the envelope represents the large dynamic range between low and high frequencies. SIRENs (sinusoidal representation
networks) are from Sitzmann et al. 2020.
"""

import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ace_em.config import AceConfig
from ace_em.maths.fourier import centred_ifft, frequencies
from ace_em.maths.half_plane import HalfPlane
from ace_em.maths.masks import ball_radius_px, soft_ball
from ace_em.maths.slices import central_slices, volume_to_ft
from ace_em.models.decoder import Decoder, Projector

BLOCK = 2**16
"""Frequencies evaluated at a time, which limits the memory."""


class Siren(nn.Module):
    """``x -> W sin(omega (W ... sin(omega (W x + b)) ... + b)) + b``: a first layer, ``depth`` hidden layers, a linear output.

    Weights are initialised uniformly in ``+- 1 / n_in`` (first layer) and ``+- sqrt(6 / n_in) / omega`` (other layers), so that
    the argument ``omega W x`` of each hidden layer is normally distributed with unit variance (Sitzmann et al. 2020,
    section 3.2). Biases have torch's default initialisation, as in the public SIREN and cryoAI code.
    """

    def __init__(self, n_in: int, n_out: int, width: int, depth: int, omega: float) -> None:
        super().__init__()
        self.omega = omega
        sizes = [n_in, *[width] * (depth + 1), n_out]
        layers = [nn.Linear(a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True)]
        for i, layer in enumerate(layers):
            bound = 1 / n_in if i == 0 else math.sqrt(6 / layer.in_features) / omega
            nn.init.uniform_(layer.weight, -bound, bound)
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = torch.sin(self.omega * layer(x))
        return self.layers[-1](x)


class FourierNet(Decoder):
    """Two SIRENs from a frequency to a complex value: 332,036 parameters with the published sizes.

    The transform of a real volume is Hermitian, so the network is evaluated on one half of Fourier space and conjugated on the
    other; its value at zero frequency is made real. Frequencies are scaled so that ``box / 2`` is 1. Beyond that nothing is
    learnt, and the transform is taken as zero.

    Parameters
    ----------
    box : edge of the volume in voxels.
    radius_px : radius of the ball that the volume is masked with. It is used only with ``lattice``; the network itself does not
        confine the volume.
    lattice : evaluate the network on the grid of the box, transform to voxels, mask, and project by central slices, instead of
        evaluating the network on each slice.
    """

    starts_as_blob = False

    mask: Tensor

    def __init__(self, box: int, radius_px: float, lattice: bool = False) -> None:
        super().__init__()
        self.box, self.lattice = box, lattice
        self.modulant = Siren(3, 2, width=256, depth=3, omega=40.0)
        self.envelope = Siren(3, 2, width=256, depth=2, omega=30.0)
        self.register_buffer("mask", soft_ball(box, radius_px))

    @staticmethod
    def build(box: int, diameter_px: float, config: AceConfig) -> "FourierNet":
        return FourierNet(box, ball_radius_px(box, diameter_px), lattice=config.fouriernet.projector == "lattice")

    def learning_rate(self, config: AceConfig) -> float:
        return config.fouriernet.lr

    def transform(self, k: Tensor) -> Tensor:
        """``V_hat`` (...) complex at frequencies ``k`` (..., 3) in cycles per box, x, y, z order."""
        points = k.reshape(-1, 3)
        conjugate = _other_half(points)
        points = torch.where(conjugate[:, None], -points, points) * (2 / self.box)
        blocks = points.split(BLOCK)
        # with several blocks, activations are recomputed in the backward pass to save memory
        keep = len(blocks) == 1 or not torch.is_grad_enabled()
        parts = torch.cat([self._value(b) if keep else checkpoint(self._value, b, use_reentrant=False) for b in blocks])
        sign = torch.where(conjugate, -1.0, torch.where((points == 0).all(-1), 0.0, 1.0))
        return (torch.complex(parts[:, 0], parts[:, 1] * sign) * self.amplitude).view(k.shape[:-1])

    def _value(self, points: Tensor) -> Tensor:
        return torch.exp(self.envelope(points)) * self.modulant(points)

    def extract(self, box: int) -> Tensor:
        """The unmasked volume on a grid of ``box``^3 over the same field of view, z, y, x order.

        On a finer grid than the learnt one the volume is Fourier-interpolated: frequencies beyond the learnt box are zero.
        """
        axis = frequencies(box, self.mask.device)
        kz, ky, kx = torch.meshgrid(axis, axis, axis, indexing="ij")
        k = torch.stack([kx, ky, kz], dim=-1)
        # the Nyquist plane of an even box has no Hermitian partner
        inside = k.square().sum(-1) < (min(box, self.box) / 2) ** 2
        half = inside & ~_other_half(k)
        grid = torch.zeros(box, box, box, dtype=torch.complex64, device=k.device)
        values = self.transform(k[half])
        # each Hermitian pair is set once; taking the real part of the inverse transform adds the partner
        grid = grid.masked_scatter(half, torch.where((k[half] == 0).all(-1), values / 2, values))
        return 2 * centred_ifft(grid, 3).real

    def volume(self) -> Tensor:
        return self.extract(self.box) * self.mask if self.lattice else self.extract(self.box)

    def projector(self) -> Projector:
        if not self.lattice:
            return self._direct
        volume_ft = volume_to_ft(self.volume())
        return lambda half_plane, rotation: central_slices(volume_ft, half_plane, rotation)

    def _direct(self, half_plane: HalfPlane, rotation: Tensor) -> Tensor:
        return self.transform(half_plane.k @ rotation[..., :2].mT)


def _other_half(k: Tensor) -> Tensor:
    """Whether frequencies (..., 3) lie in the half that is conjugated: x < 0, or x = 0 and y < 0, or both 0 and z < 0."""
    x, y, z = k.unbind(-1)
    return (x < 0) | ((x == 0) & ((y < 0) | ((y == 0) & (z < 0))))
