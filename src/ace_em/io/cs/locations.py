"""Micrographs and coordinates: cryoSPARC's ``location/...``, fractions from the lower left; RELION's, pixels from the upper."""

import numpy as np

from ace_em.io.cs.file import Fields, put
from ace_em.io.cs.images import as_bytes, texts
from ace_em.io.particle_table import ParticleTable, numeric_column

MICROGRAPH, _SHAPE = "location/micrograph_path", "location/micrograph_shape"
_CENTER = {"rlnCoordinateX": "location/center_x_frac", "rlnCoordinateY": "location/center_y_frac"}
# the fourth decimal, and a fraction's single precision on a micrograph of 10,000 pixels
_TOLERANCE_PX = 1e-3


def location_columns(fields: Fields) -> dict[str, list[str]]:
    """RELION's columns of what the fields say."""
    columns = {}
    if MICROGRAPH in fields and (fields[MICROGRAPH] != fields[MICROGRAPH].dtype.type()).any():
        columns["rlnMicrographName"] = texts(fields[MICROGRAPH]).tolist()
    for name in _CENTER:
        if _CENTER[name] in fields and _SHAPE in fields:
            columns[name] = [f"{value:.4f}" for value in _coordinate(fields, name)]
    return columns


def _coordinate(fields: Fields, name: str) -> np.ndarray:
    """(N,) pixels; a micrograph's shape is (y, x)."""
    fraction, shape = fields[_CENTER[name]].astype(np.float64), fields[_SHAPE].astype(np.float64)
    return fraction * shape[:, 1] if name == "rlnCoordinateX" else (1 - fraction) * shape[:, 0]


def update_locations(fields: Fields, table: ParticleTable) -> None:
    """Write what the table has changed; not where it has RELION's own names, which are of another project."""
    if any(name.startswith("relion/") for name in fields):
        return
    if MICROGRAPH in fields and "rlnMicrographName" in table.particles:
        names = table.particles["rlnMicrographName"].to_numpy(dtype=object)
        put(fields, MICROGRAPH, texts(fields[MICROGRAPH]) != names, as_bytes(names))
    for name in _CENTER:
        if _CENTER[name] not in fields or _SHAPE not in fields or not table.has_column(name):
            continue
        pixels, shape = numeric_column(table, name), fields[_SHAPE].astype(np.float64)
        fraction = pixels / shape[:, 1] if name == "rlnCoordinateX" else 1 - pixels / shape[:, 0]
        changed = np.abs(pixels - _coordinate(fields, name)) > _TOLERANCE_PX
        put(fields, _CENTER[name], changed, fraction.astype(fields[_CENTER[name]].dtype))
