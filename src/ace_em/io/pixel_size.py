"""Pixel sizes of particles, and RELION's origins, from whichever of its columns a table has."""

import numpy as np

from ace_em.errors import InputError
from ace_em.io.particle_table import ParticleTable, numeric_column


def pixel_sizes(table: ParticleTable) -> np.ndarray:
    """Pixel size of each particle's image, (N,) float64, in Angstrom."""
    if table.has_column("rlnImagePixelSize"):
        values = numeric_column(table, "rlnImagePixelSize")
    elif table.has_column("rlnDetectorPixelSize") and table.has_column("rlnMagnification"):
        magnification = numeric_column(table, "rlnMagnification")
        if (magnification <= 0).any():
            row = int((magnification <= 0).argmax())
            raise InputError(f"{table.cell(row, 'rlnMagnification')}: {magnification[row]:g}, expected above 0")
        # micrometre on the detector to Angstrom in the specimen
        values = numeric_column(table, "rlnDetectorPixelSize") / magnification * 1e4
    elif table.has_column("rlnPixelSize"):
        values = numeric_column(table, "rlnPixelSize")
    else:
        expected = "rlnImagePixelSize, or rlnDetectorPixelSize and rlnMagnification, or rlnPixelSize"
        raise InputError(f"{table.path}: no pixel size: expected {expected}")
    if (values <= 0).any():
        raise InputError(f"{table.path}: pixel size {values.min():g} Angstrom, expected above 0")
    return values


def origin_px(table: ParticleTable, axis: str, pixel_size_angstrom: float | np.ndarray) -> np.ndarray:
    """RELION's origin along ``axis`` ("X" or "Y"), (N,) float64, in pixels of the size given; 0 where there is none."""
    angstrom, px = f"rlnOrigin{axis}Angst", f"rlnOrigin{axis}"
    # a 3.1 file means its Angstrom columns, a 3.0 file its pixel columns, should it have both
    if table.has_column(angstrom) and (table.optics is not None or not table.has_column(px)):
        return numeric_column(table, angstrom) / pixel_size_angstrom
    return numeric_column(table, px, default=0.0)
