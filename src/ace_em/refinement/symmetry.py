"""Point-group symmetry of maps: symmetrisation, and detection of the symmetry axes of a map in unknown orientation.

A map with point group G has ``V(g r) = V(r)``, and its transform ``V_hat(g q) = V_hat(q)``, for every ``g`` in G.
"""

import math
from dataclasses import dataclass, replace

import roma
import torch
from torch import Tensor

from ace_em.maths.fourier import fourier_resize, frequencies
from ace_em.maths.levenberg_marquardt import damped_step
from ace_em.maths.point_group import in_asymmetric_unit
from ace_em.maths.radial_mean import features
from ace_em.maths.rotations import healpix_centres, healpix_pixel, so3_grid
from ace_em.maths.slices import VolumeFT, sample, volume_to_ft
from ace_em.metrics.alignment import Frame, turn_volume
from ace_em.refinement.backprojection import Accumulator

BLOCK = 2**20
N_SIDE = 16  # HEALPix grid of candidate axes, 3.7 degrees apart
FRAME_SPACING_DEG = 3.0
DISTINCT_DEG = 8.0
N_OPERATORS, N_FEW = 12, 6
N_CANDIDATES = 12
N_FINALISTS = 4
STRETCHES = (1.0, 3.0, 9.0)
POINTS_COARSE, POINTS_FINE, POINTS_LAST = 1000, 2000, 10000


def _plane(axis: Tensor, z: Tensor) -> Tensor:
    """Frequencies (y, x, 3) of one plane of the grid, in x, y, z order, with ``x >= 0``."""
    y, x = torch.meshgrid(axis, axis[len(axis) // 2 :], indexing="ij")
    return torch.stack([x, y, z.expand_as(x)], dim=-1)


def symmetrise(accumulator: Accumulator, group: Tensor) -> Accumulator:
    """Impose a point group, as if each image had been inserted at all its poses ``g R``.

    The result is the sum, not the mean, of ``old(g q)`` over the group, for data and squared CTF alike: each image counts once
    per asymmetric unit. The identity term is copied; the other terms are read from the padded grid by trilinear interpolation,
    as in RELION. Beyond the Nyquist sphere the result is zero. For C1 the accumulator is returned unchanged.

    Parameters
    ----------
    group : (g, 3, 3) with the identity first.
    """
    if len(group) == 1:
        return accumulator
    grid, box = accumulator.grid, accumulator.box
    group = group.to(grid)
    data, power = VolumeFT(grid[:2], box), VolumeFT(grid[2:].expand(2, -1, -1, -1), box)
    axis = frequencies(grid.shape[1], grid.device, grid.dtype) * (box / (grid.shape[1] - 1))
    total = torch.zeros_like(grid)
    for z in range(len(axis)):
        k = _plane(axis, axis[z])
        inside = k.norm(dim=-1) <= box / 2
        if not inside.any():
            continue
        copies = []
        for part in k[inside].split(max(1, BLOCK // len(group))):
            # the identity is sampled too, though unused: `sample` splits even numbers of rotations among threads
            value = sample(data, part, group)[1:].sum(0)
            copies.append(torch.stack([value.real, value.imag, sample(power, part, group).real[1:].sum(0)]))
        total[:, z, inside] = grid[:, z, inside] + torch.cat(copies, dim=-1)
    return Accumulator(total, box)


@dataclass(frozen=True)
class SymmetryAxes:
    """The symmetry axes of a map.

    Attributes
    ----------
    frame : ``turn_volume(volume, frame)`` brings the axes into RELION's convention; ``apply_frame`` does the same for poses.
    correlation : Fourier correlation of the map with its copies under all operators except the identity, averaged over
        shells 1 to ``band`` and over the operators. It is 1 for perfect symmetry.
    """

    frame: Frame
    correlation: float


@dataclass(frozen=True)
class _Probe:
    """The Fourier transform of a map, sampled at random points with equal numbers per shell.

    Attributes
    ----------
    volume_ft : the transform.
    k : (n, 3) sampling points.
    shell : (n,) shell of each point, counted from 0.
    weight : (n,) weights that give every shell equal power and a total power of 1.
    """

    volume_ft: VolumeFT
    k: Tensor
    shell: Tensor
    weight: Tensor

    @staticmethod
    def draw(volume_ft: VolumeFT, band: int, n_points: int, generator: torch.Generator) -> "_Probe":
        shell = torch.arange(n_points) % band
        direction = torch.nn.functional.normalize(torch.randn(n_points, 3, generator=generator), dim=-1)
        k = direction * (shell + 0.5 + torch.rand(n_points, generator=generator))[:, None]
        power = sample(volume_ft, k, torch.eye(3)).abs().square()
        per_shell = torch.zeros(band).index_add_(0, shell, power)
        return _Probe(volume_ft, k, shell, (band * per_shell.clamp(min=1e-30))[shell].rsqrt())

    def by_area(self) -> "_Probe":
        """The same points, with each shell weighted by its area: by the number of independent coefficients it has."""
        radius = self.shell + 1.0
        return replace(self, weight=self.weight * radius / radius.square().mean().sqrt())

    def weighted_by(self, fsc: Tensor) -> "_Probe":
        """The same points, with each shell weighted by the SSNR from ``fsc`` (band,) and by the area of the shell."""
        fsc = fsc.clamp(0.01, 0.95)
        factor = fsc / (1 - fsc) * (torch.arange(len(fsc)) + 1).square()
        return replace(self, weight=self.weight * (factor / factor.mean()).sqrt()[self.shell])

    def read(self, rotation: Tensor, centre_px: Tensor) -> Tensor:
        """``V_hat(B k)`` (..., n), B the ``rotation`` (..., 3, 3), of the map with ``centre_px`` (..., 3) moved to the origin."""
        angle = (2 * math.pi / self.volume_ft.box) * ((rotation.mT @ centre_px[..., None])[..., 0] @ self.k.T)
        return sample(self.volume_ft, self.k, rotation) * torch.polar(self.weight.expand_as(angle), angle)

    def shell_correlation(self, rotation: Tensor, centre_px: Tensor) -> Tensor:
        """Correlation (..., band) per shell of the centred map with copies rotated by ``rotation`` (..., 3, 3)."""
        one, other = self.read(torch.eye(3), centre_px), self.read(rotation, centre_px)
        sums = torch.zeros(3, *other.shape[:-1], int(self.shell.max()) + 1)
        products = torch.stack([(one * other.conj()).real, one.abs().square().expand_as(other.real), other.abs().square()])
        sums.index_add_(-1, self.shell, products)
        return sums[0] / (sums[1] * sums[2]).sqrt().clamp(min=1e-30)


def find_axes(volume: Tensor, group: Tensor, band: float, generator: torch.Generator) -> SymmetryAxes:
    """Find the axes and the centre of a point group in a map (n, n, n) reconstructed without symmetry.

    The self-correlation of the map under rotation about all directions, by each angle of the group, is tabulated once at low
    resolution. Candidate frames are ranked by the sum of the table over their axes. The best distinct frames are refined, in
    rotation and centre, first at low and then at full resolution. For ``Cn``, the rotation about and the position along the
    axis are undetermined and are left as found.

    The radial mean of the map, which is its own copy under any rotation, is left out: of a hollow shell it is nearly all of the
    power, and the lowest shells hold nothing else.

    Parameters
    ----------
    group : (g, 3, 3) with the identity first.
    band : last reliable shell of the map.
    """
    if len(group) == 1:
        return SymmetryAxes(Frame(torch.eye(3), False, torch.zeros(3)), 1.0)
    n = volume.shape[-1]
    band = max(3, min(math.floor(band), n // 2 - 2))
    # a box just large enough for the band
    box = min(n, 2 * band + 4)
    small, pad = fourier_resize(volume.float().cpu(), box, 3), 3 if box <= 96 else 2
    middle_px, radius_px = _centre_and_radius(small)
    # moved to the middle of the box, about which the radial mean is taken
    volume_ft = volume_to_ft(features(turn_volume(small, Frame(torch.eye(3), False, middle_px), pad)), pad)
    centre_px = torch.zeros(3)
    group = group.float().cpu()
    some = group[1:][torch.randperm(len(group) - 1, generator=generator)[:N_OPERATORS]]
    # a grid frame may be off by 3 degrees, which moves the surface of the particle by a sixth of the shortest wavelength
    coarse = min(band, max(5, round(3.3 * box / radius_px)))
    probe = _Probe.draw(volume_ft, coarse, POINTS_COARSE, generator).by_area()
    frames = _distinct(*_ranked_frames(probe, group, some, centre_px, generator), group)
    frames, centres_px = _refine(probe, frames, centre_px.expand(len(frames), 3), some[:N_FEW], 6)
    probe = _Probe.draw(volume_ft, band, POINTS_FINE, generator).by_area()
    frames, centres_px = _refine(probe, frames[:N_FINALISTS], centres_px[:N_FINALISTS], some[:N_FEW], 4)
    # a middle that is a little off leaves a part of the radial mean, which would pull at the axes in the end
    probe, centres_px = _Probe.draw(volume_to_ft(small, pad), band, POINTS_LAST, generator), centres_px + middle_px
    fsc = probe.shell_correlation(frames[0].T @ some @ frames[0], centres_px[0]).mean(0)
    frames, centres_px = _refine(probe.weighted_by(fsc), frames[:1], centres_px[:1], some, 4)
    rotation, centre_px = frames[0], centres_px[0]
    correlation = torch.stack([probe.shell_correlation(rotation.T @ g @ rotation, centre_px).mean() for g in group[1:]])
    return SymmetryAxes(Frame(rotation, False, rotation @ centre_px * (n / box)), correlation.mean().item())


def _centre_and_radius(volume: Tensor) -> tuple[Tensor, float]:
    """Centre of mass (3,) of the density, (x, y, z) in pixels from the box centre, and the radius of a ball of equal variance.

    Only density above 20 % of the maximum counts.
    """
    axis = frequencies(volume.shape[-1])
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    position = torch.stack([x, y, z], dim=-1).view(-1, 3)
    mass = (volume - 0.2 * volume.max()).clamp(min=0).flatten()
    mass = mass / mass.sum().clamp(min=1e-30)
    centre = mass @ position
    variance = mass @ (position - centre).square().sum(-1)
    return centre, max(2.0, (5 / 3 * variance.item()) ** 0.5)


def _ranked_frames(
    probe: _Probe, group: Tensor, some: Tensor, centre_px: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A grid of frames (m, 3, 3) over one asymmetric unit, and their mean correlation (m,) under the operators ``some``."""
    # the upper hemisphere is enough: rotation about the opposite axis swaps the map and its copy
    direction = healpix_centres(N_SIDE)[: 6 * N_SIDE**2 + 2 * N_SIDE].float()
    rotvec = roma.rotmat_to_rotvec(some)
    angle = rotvec.norm(dim=-1)
    one = probe.read(torch.eye(3), centre_px)
    frames = so3_grid(FRAME_SPACING_DEG, generator)
    frames = frames[in_asymmetric_unit(frames, group)]
    score = torch.zeros(len(frames))
    for size in angle.mul(1e3).round().unique() / 1e3:
        turns = roma.rotvec_to_rotmat(direction * size).split(max(1, BLOCK // len(probe.k)))
        table = torch.cat([(probe.read(part, centre_px) * one.conj()).real.sum(-1) for part in turns])
        for axis in (rotvec / angle[:, None])[(angle - size).abs() < 1e-3]:
            # A^T g A rotates about A^T axis
            turned = axis @ frames
            upper = torch.where(turned[:, 2:] < 0, -turned, turned)
            score += table[healpix_pixel(upper, N_SIDE).clamp(max=len(direction) - 1)]
    return frames, score / len(some)


def _distinct(frames: Tensor, score: Tensor, group: Tensor) -> Tensor:
    """The best frames (c, 3, 3) that are distinct, that is, whose conjugated groups ``A^T G A`` differ."""
    operators = (frames.mT[:, None] @ group[1:] @ frames[:, None]).flatten(-2)
    least_trace = 1 + 2 * math.cos(math.radians(DISTINCT_DEG))
    score = score.clone()
    kept: list[int] = []
    while len(kept) < N_CANDIDATES and score.max() > -math.inf:
        best = int(score.argmax())
        kept.append(best)
        # distance of two frames: the largest, over the operators, of the distance to the nearest operator of the best frame
        nearest = (operators @ operators[best].T).amax(-1).amin(-1)
        score[nearest > least_trace] = -math.inf
        score[best] = -math.inf
    return frames[kept]


def _refine(probe: _Probe, rotation: Tensor, centre_px: Tensor, some: Tensor, n_steps: int) -> tuple[Tensor, Tensor]:
    """Refine frames (c, 3, 3) and centres (c, 3) by Levenberg-Marquardt; return them best first.

    The residual is the difference between the map and its rotated copies.
    """
    eye = torch.eye(3).expand(len(rotation), 1, 3, 3)
    steps = torch.tensor([0.01] * 3 + [0.1] * 3)

    def moved(change: Tensor) -> tuple[Tensor, Tensor]:
        return rotation @ roma.rotvec_to_rotmat(change[:, :3]), centre_px + change[:, 3:]

    def residual(rotation: Tensor, centre_px: Tensor) -> Tensor:
        turns = torch.cat([eye, rotation.mT[:, None] @ some @ rotation[:, None]], dim=1)
        values = probe.read(turns, centre_px[:, None].expand(-1, turns.shape[1], 3))
        return torch.view_as_real(values[:, 1:] - values[:, :1]).flatten(1)

    damping = torch.full((len(rotation),), 1e-2)
    current = residual(rotation, centre_px)
    for _ in range(n_steps):
        # central differences: noise decorrelates with any step, which a one-sided difference would take for a gradient
        ahead, behind = (
            torch.stack([residual(*moved(step.expand(len(rotation), 6))) for step in torch.diag(way)], dim=1)
            for way in (steps, -steps)
        )
        jacobian = (ahead - behind) / (2 * steps[:, None])
        hessian = jacobian @ jacobian.mT
        # an undetermined parameter has no gradient, so its own curvature cannot damp it
        floor = 1e-4 * hessian.diagonal(dim1=-2, dim2=-1).amax(-1, keepdim=True)
        change = -damped_step(hessian, (jacobian @ current[..., None])[..., 0], damping, floor)
        # gradients of the noise inflate the curvature, so the step is too short: try longer ones as well
        trials = [moved(stretch * change) for stretch in STRETCHES]
        candidates = torch.stack([current, *(residual(*state) for state in trials)])
        best = candidates.square().sum(-1).argmin(0)
        row = torch.arange(len(rotation))
        rotation = torch.stack([rotation, *(turned for turned, _ in trials)])[best, row]
        centre_px = torch.stack([centre_px, *(centre for _, centre in trials)])[best, row]
        current = candidates[best, row]
        damping = torch.where(best > 0, damping / 5, damping * 10).clamp(1e-4, 1e4)
    order = current.square().sum(-1).argsort()
    return rotation[order], centre_px[order]
