"""``ace-em fsc``: FSC curve and resolution of two maps."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from ace_em.cli.options import Parser
from ace_em.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

DESCRIPTION = "Fourier shell correlation of two maps."


def add_arguments(parser: Parser) -> None:
    parser.add_positional("map1", ".mrc")
    parser.add_positional("map2", ".mrc of the same box and pixel size")
    parser.add_option("mask", str, "", ".mrc between 0 and 1; adds masked and corrected curves")
    parser.add_option("seed", int, 0, "random seed of the phase randomisation")


def run(args: Namespace) -> int:
    compare_maps(Path(args.map1), Path(args.map2), Path(args.mask) if args.mask else None, args.seed)
    return 0


def compare_maps(path1: Path, path2: Path, mask_path: Path | None, seed: int) -> None:
    """Print the FSC curve and the resolutions at 0.5 and 0.143; with a mask also the masked and corrected curves."""
    import torch
    from rich.console import Console
    from rich.table import Table

    from ace_em.metrics.fsc import fourier_shell_correlation, masked_fsc, resolution_shell

    map1, pixel_size = _cubic(path1)
    map2, pixel_size2 = _cubic(path2)
    _same(path1, map1, pixel_size, path2, map2, pixel_size2)
    if mask_path is None:
        curves = {"FSC": fourier_shell_correlation(map1, map2)}
    else:
        mask, mask_pixel_size = _cubic(mask_path)
        _same(path1, map1, pixel_size, mask_path, mask, mask_pixel_size)
        if mask.min() < -0.01 or mask.max() > 1.01 or mask.max() <= 0:
            values = f"values from {mask.min().item():g} to {mask.max().item():g}"
            raise InputError(f"{mask_path}: {values}, expected a mask between 0 and 1")
        found = masked_fsc(map1, map2, mask, torch.Generator().manual_seed(seed))
        curves = {
            "FSC": found.unmasked,
            "masked": found.masked,
            "randomised": found.randomised,
            "corrected": found.corrected,
        }
    box_angstrom = map1.shape[-1] * pixel_size
    table = Table("shell", "A", *curves)
    for shell in range(1, len(curves["FSC"])):
        table.add_row(str(shell), f"{box_angstrom / shell:.2f}", *(f"{c[shell]:.4f}" for c in curves.values()))
    console = Console()
    console.print(table)
    for name, curve in curves.items():
        for threshold in (0.5, 0.143):
            at = resolution_shell(curve, threshold)
            edge = " (Nyquist: the curve does not fall below it)" if at == len(curve) - 1 else ""
            console.print(f"{name} = {threshold}: {box_angstrom / at:.2f} A, {map1.shape[-1] / at:.2f} px{edge}")


def _cubic(path: Path) -> tuple[Tensor, float]:
    import torch

    from ace_em.io.mrc import read_volume

    volume, pixel_size = read_volume(path)
    if len(set(volume.shape)) != 1:
        raise InputError(f"{path}: {' x '.join(map(str, volume.shape))} voxels; expected a cubic map")
    return torch.from_numpy(volume), pixel_size


def _same(path1: Path, a: Tensor, size1: float, path2: Path, b: Tensor, size2: float) -> None:
    if a.shape != b.shape or abs(size1 - size2) > 1e-3 * size1:
        raise InputError(
            f"{path2}: box {b.shape[-1]}, {size2:.4g} A/px; expected box {a.shape[-1]}, {size1:.4g} A/px as in {path1}"
        )
