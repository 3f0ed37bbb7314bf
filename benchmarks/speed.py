"""Speed of the three inner loops relative to the machine: the search compared with its matrix product, slices and insertion
compared with plain gathers and scatters of as many numbers.

    taskset -c 0 make bench-speed
"""

import argparse
import time
from collections.abc import Callable

import roma
import torch

from ace_em.config import SearchConfig
from ace_em.data.coefficients import InMemory
from ace_em.data.particle_stack import ParticleStack
from ace_em.maths.fourier import frequencies
from ace_em.maths.half_plane import HalfPlane
from ace_em.maths.slices import VolumeFT, _grid_points, central_slices, insert_slices, volume_to_ft
from ace_em.physics.ctf import CTFParameters
from ace_em.physics.noise import NoiseModel
from ace_em.physics.pose import Pose
from ace_em.refinement.pose_refinement import refine_poses
from ace_em.refinement.search import SearchSpace, search


def best_of(work: Callable[[], object], times: int = 3) -> float:
    """Seconds of the fastest of a few runs, as the others may be slowed by other processes on a shared machine."""
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return min(taken)


def random_images(box: int, n: int) -> ParticleStack:
    half_plane = HalfPlane.within(box)
    shape = (n, len(half_plane))
    one, shells = torch.ones(n), torch.ones(1, box // 2 + 1)
    parameters = CTFParameters(15000 * one, 14500 * one, 30 * one, 300 * one, 2.7 * one, 0.1 * one, 0 * one)
    return ParticleStack(
        store=InMemory(torch.randn(*shape, dtype=torch.complex64)),
        row=torch.arange(n),
        half_plane=half_plane,
        pixel_size_angstrom=544 / box,
        ctf=parameters,
        noise=NoiseModel(shells, shells),
        noise_group=torch.zeros(n, dtype=torch.long),
        intensity_scale=one,
    )


def search_lines(box: int = 32, band: float = 14.0, n: int = 400) -> list[str]:
    """The search of stage 2 compared with one matrix product of the same shape."""
    images = random_images(box, n).band(band)
    space = SearchSpace(box, 20.0, SearchConfig(), torch.eye(3)[None])
    grid = space.grid(band, torch.Generator().manual_seed(0))
    volume_ft = volume_to_ft(torch.randn(box, box, box))
    centre = torch.zeros(n, 2)
    seconds = best_of(lambda: search(volume_ft, images, grid.rotations, grid.shifts_px, centre, 4))
    rows, inner, columns = n * len(grid.shifts_px), 2 * len(images.half_plane), len(grid.rotations)
    operations = 2.0 * rows * inner * columns + 2.0 * n * (inner / 2) * columns
    lines = [f"search: {n} images x {len(grid.shifts_px)} shifts x {columns} orientations x {inner} numbers in {seconds:.2f} s"]
    a, b = torch.randn(min(rows, 2048), inner), torch.randn(inner, min(columns, 16384))
    for name in ("highest", "medium"):
        torch.set_float32_matmul_precision(name)
        rate = 2.0 * a.shape[0] * inner * b.shape[1] / best_of(lambda: a @ b)
        share = operations / seconds / rate
        what = "float32" if name == "highest" else "factors rounded to bfloat16"
        lines.append(f"  {operations / seconds / 1e9:.0f} Gflop/s, {share:.0%} of a bare product ({what}): {rate / 1e9:.0f}")
    torch.set_float32_matmul_precision("highest")
    return lines


def slice_lines(box: int, n: int = 64) -> list[str]:
    """Slices and insertion compared with gathering and scattering eight complex neighbours per point."""
    half_plane, rotation = HalfPlane.within(box), roma.random_rotmat(n)
    volume_ft = volume_to_ft(torch.randn(box, box, box))
    points = n * len(half_plane)
    flat = volume_ft.grid.reshape(2, -1)
    index = torch.randint(flat.shape[1] - 8, (points,))
    value = torch.randn(points)
    sliced = points / best_of(lambda: central_slices(volume_ft, half_plane, rotation))
    gathered = points / best_of(lambda: [flat[c].index_select(0, index + i) for c in range(2) for i in range(8)])
    values, weights = torch.randn(n, len(half_plane), dtype=torch.complex64), torch.rand(n, len(half_plane))
    inserted = points / best_of(lambda: insert_slices(values, weights, half_plane, rotation, 2 * box))
    target = torch.zeros(3, flat.shape[1])
    scattered = points / best_of(lambda: [target[c].index_add_(0, index + i, value) for c in range(3) for i in range(8)])
    images, pose = random_images(box, n), Pose(rotation, torch.zeros(n, 2))
    # every image takes both steps, since noise images do not converge
    local = points * 2 * 5 / best_of(lambda: refine_poses(volume_ft, images, pose, 2))
    return [
        f"slices at {box} px: {sliced / 1e6:.1f} M points/s, {sliced / gathered:.0%} of gathering their neighbours at random",
        f"insertion at {box} px: {inserted / 1e6:.1f} M points/s, {inserted / scattered:.0%} of adding to neighbours at random",
        f"Gauss-Newton at {box} px: {local / 1e6:.1f} M slice points/s, {local / sliced:.0%} of bare slices",
    ]


def channels_last(volume: torch.Tensor) -> VolumeFT:
    """Transforms of a volume and of its products with x, y and z, which give the gradient, side by side at each voxel."""
    axis = frequencies(len(volume))
    products = [volume, volume * axis, volume * axis[:, None], volume * axis[:, None, None]]
    grid = torch.cat([volume_to_ft(v).grid for v in products])
    return VolumeFT(grid.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2), len(volume))


def jacobian_lines(box: int, n: int = 64) -> list[str]:
    """The derivative of slices by the turn: differences of four slices, or one reading of the map and its gradient."""
    half_plane, rotation = HalfPlane.within(box), roma.random_rotmat(n)
    volume = torch.randn(box, box, box)
    volume_ft, gradient = volume_to_ft(volume), channels_last(volume)
    turns = roma.rotvec_to_rotmat(torch.cat([torch.zeros(1, 3), 0.5 / box * torch.eye(3)]))
    differences = best_of(lambda: central_slices(volume_ft, half_plane, rotation[:, None] @ turns))
    points, _ = _grid_points(box, half_plane.k, rotation)
    at = points.reshape(1, 1, -1, len(half_plane), 3)
    analytic = best_of(lambda: torch.nn.functional.grid_sample(gradient.grid[None], at, align_corners=True))
    by_gradient = f"{analytic * 1e3:.1f} ms by one reading of the map and its gradient (four times the memory)"
    return [f"derivative at {box} px, {n} images: {differences * 1e3:.1f} ms by four slices, {by_gradient}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {arguments.threads} thread(s)")
    for line in [*search_lines(), *slice_lines(64), *slice_lines(128), *jacobian_lines(64), *jacobian_lines(128)]:
        print(line, flush=True)


if __name__ == "__main__":
    main()
