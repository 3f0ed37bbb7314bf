"""cryoSPARC fields and the RELION columns that they correspond to, with units and signs, and checks of a .cs file's fields.

Values are compared and converted in RELION's units as (N, ...) float64.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd
import roma
import torch

from ace_em.errors import InputError
from ace_em.io.particle_table import UID, ParticleTable, numeric_column, pixel_sizes

Fields: TypeAlias = dict[str, np.ndarray]
"""Arrays (N, ...) by field name, in the order and with the types of the file."""

PATH, INDEX, BOX, SIGN, PIXEL = "blob/path", "blob/idx", "blob/shape", "blob/sign", "blob/psize_A"
POSE, SHIFT, POSE_PIXEL = "alignments3D/pose", "alignments3D/shift", "alignments3D/psize_A"
EXPOSURE = "ctf/exp_group_id"
MICROGRAPH, MICROGRAPH_SHAPE = "location/micrograph_path", "location/micrograph_shape"
CENTER = {"rlnCoordinateX": "location/center_x_frac", "rlnCoordinateY": "location/center_y_frac"}
ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
POSE_COLUMNS = (*ANGLES, "rlnOriginXAngst", "rlnOriginYAngst")
# columns of RELION 3.0 for the origin and the pixel size
_OLD_COLUMNS = ("rlnOriginX", "rlnOriginY", "rlnPixelSize", "rlnDetectorPixelSize", "rlnMagnification")
# RELION expects white protein; a STAR file does not record the contrast
SIGN_OF_RELION = 1.0


@dataclass(frozen=True)
class Link:
    """A column and its field: column = ``factor`` * field + ``offset``. ``default`` is the value where a table lacks the column.

    The column is written with ``decimals`` decimals; with None, as the shortest text that reads back as the same float32.
    """

    column: str
    field: str
    dtype: str = "<f4"
    factor: float = 1.0
    offset: int = 0
    default: float | None = None
    decimals: int | None = None

    def of_fields(self, fields: Fields) -> np.ndarray:
        """The column's values (N,) float64 computed from the field."""
        values = fields[self.field]
        # blob/shape holds the box twice, as (y, x)
        values = values[:, 0] if values.ndim > 1 else values
        return values.astype(np.float64) * self.factor + self.offset

    def of_table(self, table: ParticleTable) -> np.ndarray | None:
        """The column's values (N,) float64; None where the table lacks the column and there is no default."""
        if self.column == "rlnImagePixelSize":
            return pixel_sizes(table)
        if not table.has_column(self.column) and self.default is None:
            return None
        return numeric_column(table, self.column, self.default)

    def storable(self, values: np.ndarray) -> np.ndarray:
        """Column values that the field can represent: class 0 (unassigned in RELION) becomes class 1."""
        return np.maximum(values.round(), self.offset) if self.dtype == "<u4" else values

    def as_field(self, values: np.ndarray) -> np.ndarray:
        """Column values (N,) converted to the field, with the type of a new field."""
        values = ((self.storable(values) - self.offset) / self.factor).astype(self.dtype)
        return np.repeat(values[:, None], 2, axis=1) if self.field == BOX else values

    def text(self, fields: Fields) -> list[str]:
        """The column as it is written to a STAR file."""
        values = self.of_fields(fields)
        if self.dtype == "<u4":
            return [f"{value:.0f}" for value in values]
        if self.decimals is None:
            return np.asarray(fields[self.field].astype(np.float32).astype(str), dtype=object).tolist()
        return [f"{value:.{self.decimals}f}" for value in values]


_DEGREES = float(np.rad2deg(1.0))
OPTICS_LINKS = (
    Link("rlnVoltage", "ctf/accel_kv"),
    Link("rlnSphericalAberration", "ctf/cs_mm"),
    Link("rlnAmplitudeContrast", "ctf/amp_contrast"),
    Link("rlnImagePixelSize", PIXEL),
    Link("rlnImageSize", BOX, "<u4"),
)
HALF_SET = Link("rlnRandomSubset", "alignments3D/split", "<u4", offset=1, default=1)
PARTICLE_LINKS = (
    Link("rlnDefocusU", "ctf/df1_A"),
    Link("rlnDefocusV", "ctf/df2_A"),
    Link("rlnDefocusAngle", "ctf/df_angle_rad", factor=_DEGREES, decimals=9),
    Link("rlnPhaseShift", "ctf/phase_shift_rad", factor=_DEGREES, default=0, decimals=9),
    Link("rlnCtfScalefactor", "ctf/scale", default=1),
    Link("rlnCtfBfactor", "ctf/bfactor", default=0),
    HALF_SET,
    Link("rlnClassNumber", "alignments3D/class", "<u4", offset=1, default=1),
)
LINKS = (*OPTICS_LINKS, *PARTICLE_LINKS)
FIELD_NAMES = {link.column: link.field for link in LINKS} | {"rlnImageName": PATH}

CTF_FIELDS = tuple(f"ctf/{name}" for name in ("accel_kv", "cs_mm", "amp_contrast", "df1_A", "df2_A", "df_angle_rad"))
REQUIRED = (PATH, INDEX, PIXEL, *CTF_FIELDS)
_SHAPES: dict[str, tuple[int, ...]] = {BOX: (2,), POSE: (3,), SHIFT: (2,), MICROGRAPH_SHAPE: (2,)}
_KINDS = {PATH: "SU", INDEX: "ui", EXPOSURE: "ui", POSE: "f", SHIFT: "f", POSE_PIXEL: "f", MICROGRAPH: "SU"}
_KINDS |= {link.field: "ui" if link.dtype == "<u4" else "f" for link in LINKS}
_KINDS |= {**dict.fromkeys(CENTER.values(), "f"), MICROGRAPH_SHAPE: "ui"}
_WORDS = {"f": "floating-point numbers", "ui": "integers", "SU": "text"}
_POSITIVE = (PIXEL, POSE_PIXEL, BOX)


def check_fields(path: Path, fields: Fields) -> None:
    """Raise InputError for fields that are missing, have the wrong type or shape, or are not finite."""
    missing = [name for name in REQUIRED if name not in fields]
    if missing:
        raise InputError(f"{path}: missing fields {', '.join(missing)}")
    for name in [name for name in _KINDS if name in fields]:
        values, shape = fields[name], _SHAPES.get(name, ())
        if values.dtype.kind not in _KINDS[name] or values.shape[1:] != shape:
            found = f"{values.dtype.str} of shape {values.shape[1:]}" if values.ndim > 1 else values.dtype.str
            expected = _WORDS[_KINDS[name]] + (f", {shape[0]} per particle" if shape else ", one per particle")
            raise InputError(f"{path}: field {name} has type {found}, expected {expected}")
        if values.dtype.kind not in "fui":
            continue
        bad = ~np.isfinite(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)
        expected = "a finite number"
        if name in _POSITIVE:
            bad, expected = bad | (values <= 0), expected + " above 0"
        if name == BOX:
            bad, expected = bad | (values[:, :1] != values[:, 1:]), expected + ", equal along both axes"
        if name == HALF_SET.field:
            bad, expected = bad | (values > 1), "0 or 1"
        if bad.any():
            row = int(np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))[0])
            raise InputError(f"{path}: row {row + 1}, field {name}: {values[row]}, expected {expected}")


def dropped_columns(table: ParticleTable) -> list[str]:
    """Columns of a STAR file that its conversion to a .cs file drops."""
    kept = {*FIELD_NAMES, *POSE_COLUMNS, *_OLD_COLUMNS, "rlnOpticsGroup", "rlnOpticsGroupName", "rlnImageDimensionality", UID}
    fields = table.cryosparc or {}
    kept |= {"rlnMicrographName"} if MICROGRAPH in fields else set()
    kept |= {name for name, field in CENTER.items() if field in fields and MICROGRAPH_SHAPE in fields}
    frames = [frame for frame in (table.optics, table.particles) if frame is not None]
    return [name for name in dict.fromkeys(str(name) for frame in frames for name in frame) if name not in kept]


def texts(values: np.ndarray) -> np.ndarray:
    """(N,) Python strings of a text field, without the ``>`` that cryoSPARC puts before some paths."""
    codes, unique = pd.factorize(values)
    raw = [v if isinstance(v, bytes) else str(v).encode(errors="replace") for v in unique.tolist()]
    return np.array([v.decode(errors="replace").removeprefix(">") for v in raw], dtype=object)[codes]


def rotations_of_fields(fields: Fields) -> np.ndarray:
    """Rotation matrices (N, 3, 3) of ``alignments3D/pose``, a rotation vector: axis times angle in radians."""
    return roma.rotvec_to_rotmat(torch.from_numpy(fields[POSE].astype(np.float64))).numpy()


def origins_of_fields(fields: Fields) -> np.ndarray:
    """RELION's origin (N, 2) in x, y order, in Angstrom: ``alignments3D/shift`` times the pixel size of the alignment."""
    if SHIFT not in fields:
        return np.zeros((len(fields["uid"]), 2))
    return fields[SHIFT].astype(np.float64) * pose_pixel_size(fields)[:, None]


def pose_pixel_size(fields: Fields) -> np.ndarray:
    """Pixel size (N,) in Angstrom of ``alignments3D/shift``; it differs from that of the images if these were binned."""
    return fields[POSE_PIXEL if POSE_PIXEL in fields else PIXEL].astype(np.float64)


def center_px(fields: Fields, column: str) -> np.ndarray:
    """rlnCoordinateX or rlnCoordinateY (N,) in pixels from the upper left; cryoSPARC stores fractions from the lower left."""
    # location/micrograph_shape is (y, x)
    fraction, shape = fields[CENTER[column]].astype(np.float64), fields[MICROGRAPH_SHAPE].astype(np.float64)
    return fraction * shape[:, 1] if column == "rlnCoordinateX" else (1 - fraction) * shape[:, 0]
