"""Which field of cryoSPARC is which column of RELION, in units and signs; tests/data/test_cryosparc.py proves them.

Everything here is in RELION's units and (N, ...) float64: ``of_fields`` from a .cs file, ``of_table`` from a table.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import roma
import torch

from ace_em.errors import InputError
from ace_em.io.cs.file import Fields
from ace_em.io.particle_table import ParticleTable, numeric_column, optics_rows
from ace_em.io.pixel_size import origin_px, pixel_sizes
from ace_em.physics.pose import relion_angles_to_rotmat, rotmat_to_relion_angles

POSE, SHIFT, POSE_PIXEL = "alignments3D/pose", "alignments3D/shift", "alignments3D/psize_A"
ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
PATH, INDEX, BOX, SIGN = "blob/path", "blob/idx", "blob/shape", "blob/sign"
# RELION's images are of white protein, by its convention; a STAR file does not say
SIGN_OF_RELION = 1.0
EXPOSURE = "ctf/exp_group_id"
_EXPOSURE_NAME = r"^exp_group_(\d+)(?:_\d+)?$"
# half of the last decimal that RELION writes, the fifth of a negative number, and cryoSPARC's single precision
_ABSOLUTE, _RELATIVE = 6e-6, 1.3e-7
_ROTATION = 1e-6


@dataclass(frozen=True)
class Link:
    """A column that is ``factor`` times a field plus ``offset``; a table that lacks the column means ``default``.

    ``decimals`` are those of the text; None writes the shortest text that is the single-precision number again.
    """

    column: str
    field: str
    dtype: str = "<f4"
    factor: float = 1.0
    offset: int = 0
    default: float | None = None
    decimals: int | None = None

    def of_fields(self, fields: Fields) -> np.ndarray:
        values = fields[self.field]
        # an image is square: its edge is said twice
        values = values[:, 0] if values.ndim > 1 else values
        return values.astype(np.float64) * self.factor + self.offset

    def of_table(self, table: ParticleTable) -> np.ndarray | None:
        """None where the table does not say."""
        if self.column == "rlnImagePixelSize":
            return pixel_sizes(table)
        if not table.has_column(self.column) and self.default is None:
            return None
        return numeric_column(table, self.column, self.default)

    def held(self, values: np.ndarray) -> np.ndarray:
        """RELION's values as the field can hold them: class 0, which is no class, is class 1 there."""
        return np.maximum(values.round(), self.offset) if self.dtype == "<u4" else values

    def as_field(self, values: np.ndarray) -> np.ndarray:
        """The field's values, of the type a new field has, from RELION's."""
        values = (self.held(values) - self.offset) / self.factor
        done = values.astype(self.dtype)
        return np.repeat(done[:, None], 2, axis=1) if self.field == BOX else done

    def text(self, fields: Fields) -> list[str]:
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
    Link("rlnImagePixelSize", "blob/psize_A"),
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
FIELD_NAMES = {link.column: link.field for link in (*OPTICS_LINKS, *PARTICLE_LINKS)} | {"rlnImageName": PATH}
# what a .cs file must have to be a particle file, and the kind and shape of every field that is understood
_CTF = ("accel_kv", "cs_mm", "amp_contrast", "df1_A", "df2_A", "df_angle_rad")
REQUIRED = (PATH, INDEX, "blob/psize_A", *(f"ctf/{name}" for name in _CTF))
_SHAPES: dict[str, tuple[int, ...]] = {BOX: (2,), POSE: (3,), SHIFT: (2,), "location/micrograph_shape": (2,)}
_KINDS = {PATH: "SU", INDEX: "ui", EXPOSURE: "ui", POSE: "f", SHIFT: "f", POSE_PIXEL: "f", "location/micrograph_path": "SU"}
_KINDS |= {link.field: "ui" if link.dtype == "<u4" else "f" for link in (*OPTICS_LINKS, *PARTICLE_LINKS)}
_KINDS |= {"location/center_x_frac": "f", "location/center_y_frac": "f", "location/micrograph_shape": "ui"}
_WORDS = {"f": "floating-point numbers", "ui": "integers", "SU": "text"}
_POSITIVE = ("blob/psize_A", POSE_PIXEL, BOX)


def check_fields(path: Path, fields: Fields) -> None:
    """Refuse fields that are missing, of the wrong type or shape, or not finite."""
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
        if name in _POSITIVE:
            bad |= values <= 0
        if name == BOX:
            bad |= values[:, :1] != values[:, 1:]
        if name == HALF_SET.field:
            bad |= values > 1
        if bad.any():
            row = int(np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))[0])
            expected = "a finite number" + (" above 0" if name in _POSITIVE else "") + (", the same twice" if name == BOX else "")
            expected = "0 or 1" if name == HALF_SET.field else expected
            raise InputError(f"{path}: row {row + 1}, field {name}: {values[row]}, expected {expected}")


def agree(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether values (N, ...) are the same but for rounding, (N,)."""
    same = np.abs(a - b) <= _ABSOLUTE + _RELATIVE * np.maximum(np.abs(a), np.abs(b))
    return np.asarray(same.all(axis=tuple(range(1, same.ndim))))


def rotations_agree(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether rotations (N, 3, 3) are the same but for rounding, (N,)."""
    return np.abs(a - b).max(axis=(1, 2)) <= _ROTATION


def rotations_of_fields(fields: Fields) -> np.ndarray:
    """Rotations (N, 3, 3) of ``alignments3D/pose``: its vector is the axis, its length the angle in radians, of our R."""
    return roma.rotvec_to_rotmat(torch.from_numpy(fields[POSE].astype(np.float64))).numpy()


def rotations_of_table(table: ParticleTable) -> np.ndarray | None:
    """Rotations (N, 3, 3) of RELION's angles; None where there are none."""
    if not all(table.has_column(name) for name in ANGLES):
        return None
    angles = np.stack([numeric_column(table, name) for name in ANGLES], axis=-1)
    return relion_angles_to_rotmat(torch.from_numpy(angles)).numpy()


def rotvec(rotations: np.ndarray) -> np.ndarray:
    return roma.rotmat_to_rotvec(torch.from_numpy(rotations)).numpy()


def angles_deg(rotations: np.ndarray) -> np.ndarray:
    return rotmat_to_relion_angles(torch.from_numpy(rotations)).numpy()


def origins_of_fields(fields: Fields) -> np.ndarray:
    """RELION's origin (N, 2) in x, y order, in Angstrom: ``alignments3D/shift`` times the pixel of that alignment."""
    if SHIFT not in fields:
        return np.zeros((len(fields["uid"]), 2))
    return fields[SHIFT].astype(np.float64) * pose_pixel(fields)[:, None]


def pose_pixel(fields: Fields) -> np.ndarray:
    """Pixel (N,) in Angstrom that shifts are counted in: an alignment may have run on binned images."""
    return fields[POSE_PIXEL if POSE_PIXEL in fields else "blob/psize_A"].astype(np.float64)


def origins_of_table(table: ParticleTable) -> np.ndarray:
    pixel = pixel_sizes(table)
    return np.stack([origin_px(table, axis, pixel) * pixel for axis in "XY"], axis=-1)


def exposure_groups(table: ParticleTable) -> np.ndarray | None:
    """``ctf/exp_group_id`` (N,) of each particle: in the name of its optics group where we gave it, or else its number."""
    if table.optics is None:
        return None
    numbers = numeric_column(table, "rlnOpticsGroup").astype(np.int64)
    if "rlnOpticsGroupName" not in table.optics:
        return numbers
    named = table.optics["rlnOpticsGroupName"].str.extract(_EXPOSURE_NAME)[0]
    of_group = [int(n) if isinstance(n, str) else -1 for n in named]
    per_particle = np.array(of_group)[optics_rows(table, table.optics)]
    return np.where(per_particle < 0, numbers, per_particle)
