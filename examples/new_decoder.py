"""A custom decoder: a sum of Gaussians with learnt centres and weights, in one class with three methods."""

import math

import roma
import torch
from torch import Tensor, nn

from ace_em.config import AceConfig
from ace_em.maths.fourier import frequencies
from ace_em.maths.half_plane import HalfPlane
from ace_em.models.decoder import Decoder, Projector
from ace_em.physics.projection import fourier_projection


class GaussianCloud(Decoder):
    """Sum of ``n`` Gaussians of width ``sigma_px``, whose central slices have a closed form."""

    def __init__(self, n: int, box: int, sigma_px: float, generator: torch.Generator) -> None:
        super().__init__()
        self.box, self.sigma_px = box, sigma_px
        self.centre_px = nn.Parameter(torch.randn(n, 3, generator=generator) * box / 8)  # x, y, z
        self.weight = nn.Parameter(torch.ones(n))

    def learning_rate(self, config: AceConfig) -> float:
        return 0.1

    def projector(self) -> Projector:
        def project(half_plane: HalfPlane, rotation: Tensor) -> Tensor:
            phase = -2 * math.pi / self.box * (half_plane.k3 @ rotation.mT @ self.centre_px.T)
            envelope = torch.exp(-2 * (math.pi * self.sigma_px * half_plane.radius / self.box).square())
            return (torch.polar(self.weight.expand_as(phase), phase)).sum(-1) * envelope * self.amplitude

        return project

    def volume(self) -> Tensor:
        axis = frequencies(self.box, self.weight.device)
        along = [torch.exp(-(axis - self.centre_px[:, d, None]).square() / (2 * self.sigma_px**2)) for d in (2, 1, 0)]
        return self.amplitude * torch.einsum("n,nz,ny,nx->zyx", self.weight, *along) / (2 * math.pi * self.sigma_px**2) ** 1.5


if __name__ == "__main__":
    generator = torch.Generator().manual_seed(0)
    rotation = roma.random_rotmat(100, generator=generator)
    half_plane = HalfPlane.within(24, 8)
    truth = GaussianCloud(20, 24, 1.5, generator)
    images = half_plane.from_image(fourier_projection(truth.volume().detach(), rotation))  # from voxels, not the closed form

    decoder = GaussianCloud(60, 24, 1.5, generator)
    adam = torch.optim.Adam(decoder.parameters(), lr=0.1)
    losses = []
    for _ in range(100):
        loss = (decoder.projector()(half_plane, rotation) - images).abs().square().mean() / images.abs().square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    print(f"unexplained fraction of the image power: {losses[0]:.2f} before, {losses[-1]:.4f} after {len(losses)} steps")
    assert losses[-1] < 0.05 * losses[0]
