r"""Differences between float32 and float64 results, and between float32 results under other CPU arithmetic.

    python benchmarks/arithmetic.py

Each kind of arithmetic runs in a separate process, because torch reads its settings on import. Differences are relative to
the largest value of the float64 result; those of scores are in standard deviations of the noise.
"""

import os
import subprocess
import sys
from pathlib import Path

import roma
import torch
from torch import Tensor

from ace_em.maths.fourier import centred_fft
from ace_em.maths.half_plane import HalfPlane
from ace_em.maths.products import Factors, product
from ace_em.maths.slices import central_slices, insert_slices, volume_to_ft
from ace_em.physics.projection import line_integral
from ace_em.simulation.density import density_map
from ace_em.simulation.structure import Atoms

KINDS: dict[str, tuple[dict[str, str], int, Factors]] = {
    "as the processor is": ({}, 1, "processor"),
    "two threads": ({}, 2, "processor"),
    "AVX2": ({"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}, 1, "float32"),
    "no vector units": ({"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "COMPATIBLE"}, 1, "float32"),
    "factors in bfloat16": ({}, 1, "bfloat16"),
}
BOX, N = 48, 64


def computed(dtype: torch.dtype, factors: Factors) -> dict[str, Tensor]:
    """One result of each kind of operation, from inputs that are bit-identical in float32."""
    generator = torch.Generator().manual_seed(0)
    atoms = Atoms(6 * torch.randn(200, 3, generator=generator), torch.rand(200, generator=generator))
    rotation = roma.random_rotmat(N, generator=generator)
    noise = torch.randn(N, BOX, BOX, generator=generator)
    volume = density_map(atoms, BOX, 1.0, 4.0)
    clean = line_integral(volume.double(), rotation.double()).float()
    # -10 dB
    image = (0.1**0.5 * clean / clean.std() + noise).to(dtype)
    volume, rotation = volume.to(dtype), rotation.to(dtype)
    half_plane = HalfPlane.within(BOX)
    half_plane = HalfPlane(BOX, half_plane.k.to(dtype), half_plane.radius.to(dtype))
    slices = central_slices(volume_to_ft(volume), half_plane, rotation)
    image_ft = half_plane.from_image(image) / BOX
    inserted = insert_slices(image_ft, torch.ones_like(image_ft.real), half_plane, rotation, 2 * BOX)
    rows, columns = torch.view_as_real(image_ft).flatten(1), torch.view_as_real(slices / slices.abs().std()).flatten(1)
    return {
        "Fourier transform": torch.view_as_real(centred_fft(volume, 3)),
        "slices": torch.view_as_real(slices),
        "line integrals": line_integral(volume, rotation[:16]),
        "insertion": inserted,
        "search scores": product(rows, columns.T, factors) / (columns.norm(dim=1) / 2**0.5),
    }


def child(name: str, out: Path) -> None:
    _, threads, factors = KINDS[name]
    torch.set_num_threads(threads)
    torch.save(computed(torch.float32, factors), out)


def main() -> None:
    if len(sys.argv) == 3:
        child(sys.argv[1], Path(sys.argv[2]))
        return
    import tempfile

    exact = computed(torch.float64, "float32")
    found: dict[str, dict[str, Tensor]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (settings, _, _) in KINDS.items():
            out = Path(folder) / "result.pt"
            subprocess.run([sys.executable, __file__, name, str(out)], env=os.environ | settings, check=True)
            found[name] = torch.load(out)
    first = found["as the processor is"]
    print("| operation | arithmetic | from float64 | from the processor's own |\n|---|---|---|---|")
    for operation, truth in exact.items():
        unit = 1.0 if operation == "search scores" else truth.abs().max().item()
        for name, results in found.items():
            value = results[operation].double()
            errors = [(value - other).abs().max().item() / unit for other in (truth, first[operation].double())]
            print(f"| {operation} | {name} | {errors[0]:.1e} | {errors[1]:.1e} |")


if __name__ == "__main__":
    main()
