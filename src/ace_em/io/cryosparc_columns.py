"""Which field of cryoSPARC is which column of RELION, in units and signs: a table from fields, fields from a table.

Numbers between the two are in RELION's units and (N, ...) float64: ``of_fields`` from a .cs file, ``of_table`` from a table.
"""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd
import roma
import torch

from ace_em.errors import InputError
from ace_em.io.particle_table import UID, ParticleTable, image_paths, is_uid, numeric_column, optics_rows, origin_px, pixel_sizes
from ace_em.physics.pose import relion_angles_to_rotmat, rotmat_to_relion_angles

Fields: TypeAlias = dict[str, np.ndarray]
"""Arrays (N, ...) by the field's name, in the file's order and types."""

PATH, INDEX, BOX, SIGN, PIXEL = "blob/path", "blob/idx", "blob/shape", "blob/sign", "blob/psize_A"
POSE, SHIFT, POSE_PIXEL = "alignments3D/pose", "alignments3D/shift", "alignments3D/psize_A"
EXPOSURE = "ctf/exp_group_id"
MICROGRAPH, MICROGRAPH_SHAPE = "location/micrograph_path", "location/micrograph_shape"
CENTER = {"rlnCoordinateX": "location/center_x_frac", "rlnCoordinateY": "location/center_y_frac"}
ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
_POSE_COLUMNS = (*ANGLES, "rlnOriginXAngst", "rlnOriginYAngst")
# older names of the origin and of the pixel size
_OTHER_NAMES = ("rlnOriginX", "rlnOriginY", "rlnPixelSize", "rlnDetectorPixelSize", "rlnMagnification")
# RELION's images are of white protein, by its convention; a STAR file does not say
SIGN_OF_RELION = 1.0
_EXPOSURE_NAME = r"^exp_group_(\d+)(?:_\d+)?$"
# half of the last decimal that RELION writes, the fifth of a negative number, and cryoSPARC's single precision
_ABSOLUTE, _RELATIVE = 6e-6, 1.3e-7
_ROTATION = 1e-6
# the fourth decimal, and a fraction's single precision on a micrograph of 10,000 pixels
_CENTER_PX = 1e-3


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

# --- what a .cs file of particles must have ------------------------------------------------------------------------------------

_CTF_FIELDS = tuple(f"ctf/{name}" for name in ("accel_kv", "cs_mm", "amp_contrast", "df1_A", "df2_A", "df_angle_rad"))
REQUIRED = (PATH, INDEX, PIXEL, *_CTF_FIELDS)
_SHAPES: dict[str, tuple[int, ...]] = {BOX: (2,), POSE: (3,), SHIFT: (2,), MICROGRAPH_SHAPE: (2,)}
_KINDS = {PATH: "SU", INDEX: "ui", EXPOSURE: "ui", POSE: "f", SHIFT: "f", POSE_PIXEL: "f", MICROGRAPH: "SU"}
_KINDS |= {link.field: "ui" if link.dtype == "<u4" else "f" for link in LINKS}
_KINDS |= {**dict.fromkeys(CENTER.values(), "f"), MICROGRAPH_SHAPE: "ui"}
_WORDS = {"f": "floating-point numbers", "ui": "integers", "SU": "text"}
_POSITIVE = (PIXEL, POSE_PIXEL, BOX)


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
        expected = "a finite number"
        if name in _POSITIVE:
            bad, expected = bad | (values <= 0), expected + " above 0"
        if name == BOX:
            bad, expected = bad | (values[:, :1] != values[:, 1:]), expected + ", the same twice"
        if name == HALF_SET.field:
            bad, expected = bad | (values > 1), "0 or 1"
        if bad.any():
            row = int(np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))[0])
            raise InputError(f"{path}: row {row + 1}, field {name}: {values[row]}, expected {expected}")


def columns_left_out(table: ParticleTable) -> list[str]:
    """Columns of a STAR file that no field of a .cs file made of it holds."""
    held = {*FIELD_NAMES, *_POSE_COLUMNS, *_OTHER_NAMES, "rlnOpticsGroup", "rlnOpticsGroupName", "rlnImageDimensionality", UID}
    fields = table.cryosparc or {}
    held |= {"rlnMicrographName"} if MICROGRAPH in fields else set()
    held |= {name for name, field in CENTER.items() if field in fields and MICROGRAPH_SHAPE in fields}
    frames = [frame for frame in (table.optics, table.particles) if frame is not None]
    return [name for name in dict.fromkeys(str(name) for frame in frames for name in frame) if name not in held]


# --- a table from fields -------------------------------------------------------------------------------------------------------


def table_of_fields(path: Path, fields: Fields) -> ParticleTable:
    """The particles of a .cs file in the form of a RELION 3.1 file; it keeps the fields."""
    optics, group = _optics_groups(fields)
    images = zip((fields[INDEX].astype(np.int64) + 1).tolist(), texts(fields[PATH]), strict=True)
    names = [f"{index:06d}@{name}" for index, name in images]
    columns: dict[str, list[str]] = {"rlnImageName": names, "rlnOpticsGroup": group.astype(str).tolist()}
    if MICROGRAPH in fields and (fields[MICROGRAPH] != fields[MICROGRAPH].dtype.type()).any():
        columns["rlnMicrographName"] = texts(fields[MICROGRAPH]).tolist()
    for name, field in CENTER.items():
        if field in fields and MICROGRAPH_SHAPE in fields:
            columns[name] = [f"{value:.4f}" for value in _center_px(fields, name)]
    for link in PARTICLE_LINKS:
        # one half for all is no half-set
        if link.field in fields and (link is not HALF_SET or len(np.unique(fields[link.field])) > 1):
            columns[link.column] = link.text(fields)
    if POSE in fields:
        angles = rotmat_to_relion_angles(torch.from_numpy(rotations_of_fields(fields))).numpy()
        values = np.concatenate([angles, origins_of_fields(fields)], axis=1)
        # adding zero turns a rounded -0 into 0
        for name, column in zip(_POSE_COLUMNS, (np.round(values, 6) + 0.0).T.tolist(), strict=True):
            columns[name] = [f"{value:.6f}" for value in column]
    columns[UID] = fields["uid"].astype(str).tolist()
    return ParticleTable(path, optics, pd.DataFrame(columns, dtype=str), cryosparc=fields, field_names=FIELD_NAMES)


def _optics_groups(fields: Fields) -> tuple[pd.DataFrame, np.ndarray]:
    """The optics table, strings, and the group number of each particle (N,): one group per exposure group and set of values."""
    links = [link for link in OPTICS_LINKS if link.field in fields]
    exposure = fields[EXPOSURE].astype(np.int64) if EXPOSURE in fields else np.zeros(len(fields["uid"]), np.int64)
    keys = np.column_stack([exposure, *(link.of_fields(fields) for link in links)])
    _, first, group = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    ids = exposure[first]
    # the second and later groups of one exposure group get a number
    seen = [int((ids[:i] == value).sum()) for i, value in enumerate(ids)]
    names = [f"exp_group_{value}" + (f"_{k + 1}" if k else "") for value, k in zip(ids, seen, strict=True)]
    one_each = {name: values[first] for name, values in fields.items()}
    columns = {"rlnOpticsGroup": [str(i + 1) for i in range(len(ids))], "rlnOpticsGroupName": names}
    columns |= {link.column: link.text(one_each) for link in links} | {"rlnImageDimensionality": ["2"] * len(ids)}
    return pd.DataFrame(columns, dtype=str), group.reshape(-1) + 1


def texts(values: np.ndarray) -> np.ndarray:
    """(N,) Python strings of a text field; cryoSPARC writes ``>`` before some paths, which is no part of them."""
    codes, unique = pd.factorize(values)
    raw = [v if isinstance(v, bytes) else str(v).encode(errors="replace") for v in unique.tolist()]
    return np.array([v.decode(errors="replace").removeprefix(">") for v in raw], dtype=object)[codes]


def rotations_of_fields(fields: Fields) -> np.ndarray:
    """Rotations (N, 3, 3) of ``alignments3D/pose``: its vector is the axis, its length the angle in radians, of our R."""
    return roma.rotvec_to_rotmat(torch.from_numpy(fields[POSE].astype(np.float64))).numpy()


def origins_of_fields(fields: Fields) -> np.ndarray:
    """RELION's origin (N, 2) in x, y order, in Angstrom: ``alignments3D/shift`` times the pixel of that alignment."""
    if SHIFT not in fields:
        return np.zeros((len(fields["uid"]), 2))
    return fields[SHIFT].astype(np.float64) * _pose_pixel(fields)[:, None]


def _pose_pixel(fields: Fields) -> np.ndarray:
    """Pixel (N,) in Angstrom that shifts are counted in: an alignment may have run on binned images."""
    return fields[POSE_PIXEL if POSE_PIXEL in fields else PIXEL].astype(np.float64)


def _center_px(fields: Fields, column: str) -> np.ndarray:
    """rlnCoordinateX or rlnCoordinateY (N,) in pixels from the upper left; cryoSPARC has fractions from the lower left."""
    # a micrograph's shape is (y, x)
    fraction, shape = fields[CENTER[column]].astype(np.float64), fields[MICROGRAPH_SHAPE].astype(np.float64)
    return fraction * shape[:, 1] if column == "rlnCoordinateX" else (1 - fraction) * shape[:, 0]


# --- fields from a table -------------------------------------------------------------------------------------------------------

_CTF_COLUMNS = tuple(link.column for link in LINKS if link.field in _CTF_FIELDS)
# the fields that cryoSPARC's importers write, in their order: value, shape
_NEW_CTF = {
    "accel_kv": (np.nan, ()), "cs_mm": (np.nan, ()), "amp_contrast": (np.nan, ()), "df1_A": (np.nan, ()), "df2_A": (np.nan, ()),
    "df_angle_rad": (np.nan, ()), "phase_shift_rad": (np.nan, ()), "scale": (np.nan, ()), "scale_const": (0, ()),
    "shift_A": (0, (2,)), "tilt_A": (0, (2,)), "trefoil_A": (0, (2,)), "tetra_A": (0, (4,)), "anisomag": (0, (4,)),
    "bfactor": (np.nan, ()),
}  # fmt: skip
_NEW_ALIGNMENT = {
    "error": (0, "<f4"), "error_min": (0, "<f4"), "resid_pow": (0, "<f4"), "slice_pow": (0, "<f4"), "image_pow": (0, "<f4"),
    "cross_cor": (0, "<f4"), "alpha": (1, "<f4"), "alpha_min": (0, "<f4"), "weight": (0, "<f4"), "pose_ess": (0, "<f4"),
    "shift_ess": (0, "<f4"), "class_posterior": (1, "<f4"), "class": (0, "<u4"), "class_ess": (1, "<f4"),
}  # fmt: skip


def fields_of_table(table: ParticleTable, box: int = 0, sign: float = SIGN_OF_RELION) -> Fields:
    """The fields that the table keeps, with what has changed since; of a STAR file, new ones.

    New fields need ``box``, pixels per image edge, where the table lacks rlnImageSize, and ``sign``: +1 where the protein is
    white in the files, -1 where it is black.
    """
    return updated(_new_fields(table, box, sign) if table.cryosparc is None else table.cryosparc, table)


def _new_fields(table: ParticleTable, box: int, sign: float) -> Fields:
    missing = [name for name in _CTF_COLUMNS if not table.has_column(name)]
    if missing:
        raise InputError(f"{table.path}: no CTF: missing columns {', '.join(missing)}")
    if not table.has_column("rlnImageSize") and box <= 0:
        raise InputError(f"{table.path}: no image size: expected rlnImageSize, or the images at their place, or the option --box")
    n = len(table)
    fields: Fields = {
        "uid": _new_uids(table),
        PATH: _as_bytes([""] * n),
        INDEX: np.zeros(n, "<u4"),
        BOX: np.full((n, 2), box, "<u4"),
        PIXEL: np.full(n, np.nan, "<f4"),
        SIGN: np.full(n, sign, "<f4"),
        "ctf/type": _as_bytes(["imported"] * n),
        EXPOSURE: np.zeros(n, "<u4"),
    }
    return fields | {f"ctf/{name}": np.full((n, *shape), value, "<f4") for name, (value, shape) in _NEW_CTF.items()}


def _new_uids(table: ParticleTable) -> np.ndarray:
    """A uid (N,) for each particle, none twice: the one in column csUid where it is good, or else of the image's name."""
    given = table.particles[UID].tolist() if UID in table.particles else [""] * len(table)
    kept = {text for text in given if is_uid(text)}
    found, taken = [], {int(text) for text in kept}
    for text, name in zip(given, table.particles["rlnImageName"], strict=True):
        if text in kept:
            kept.discard(text)
            found.append(int(text))
            continue
        salts = (name if k == 0 else f"{name} {k}" for k in itertools.count())
        hashes = (int.from_bytes(hashlib.blake2b(salt.encode(), digest_size=8).digest(), "little") for salt in salts)
        found.append(next(uid for uid in hashes if uid not in taken))
        taken.add(found[-1])
    return np.array(found, dtype=np.uint64)


def updated(fields: Fields, table: ParticleTable) -> Fields:
    """The fields with the values of the table where these differ by more than rounding; all others keep their bits."""
    new = dict(fields)
    _update_images(new, table)
    exposure = _exposure_groups(table)
    if exposure is not None:
        old = new[EXPOSURE].astype(np.int64) if EXPOSURE in new else np.full(len(table), -1)
        _put(new, EXPOSURE, exposure != old, exposure.astype("<u4"))
    for link in OPTICS_LINKS:
        _update_link(new, table, link)
    # before the half-set and the class, which are those of a 3-D alignment, and after the pixel size, its unit
    _update_poses(new, table)
    for link in PARTICLE_LINKS:
        if link is HALF_SET:
            _update_half_sets(new, table)
        elif link.field in new or not link.field.startswith("alignments3D/"):
            _update_link(new, table, link)
    _update_locations(new, table)
    return new


def _put(fields: Fields, name: str, rows: np.ndarray, values: np.ndarray) -> None:
    """Write ``values`` (N, ...) at the rows (N,) marked; an existing field keeps its type, a text field may widen."""
    if name not in fields:
        fields[name] = values
    elif rows.any():
        wide = values.dtype.kind in "SU" and values.dtype.itemsize > fields[name].dtype.itemsize
        fields[name] = fields[name].astype(values.dtype) if wide else fields[name].copy()
        fields[name][rows] = values[rows]


def _as_bytes(strings: Sequence[str] | np.ndarray) -> np.ndarray:
    """A text field; one byte longer than need be, as cryoSPARC makes it."""
    raw = [string.encode() for string in strings]
    return np.array(raw, dtype=f"S{max(map(len, raw), default=0) + 1}")


def _agree(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether values (N, ...) are the same but for rounding, (N,)."""
    same = np.abs(a - b) <= _ABSOLUTE + _RELATIVE * np.maximum(np.abs(a), np.abs(b))
    return np.asarray(same.all(axis=tuple(range(1, same.ndim))))


def _update_images(fields: Fields, table: ParticleTable) -> None:
    paths, indices = image_paths(table)
    _put(fields, PATH, texts(fields[PATH]) != paths, _as_bytes(paths))
    _put(fields, INDEX, fields[INDEX] != indices, indices.astype("<u4"))
    if len(np.unique(fields["uid"])) < len(table):
        # a particle taken twice: the first keeps its uid
        given = table.particles.assign(**{UID: fields["uid"].astype(str)})
        fields["uid"] = _new_uids(replace(table, particles=given))


def _exposure_groups(table: ParticleTable) -> np.ndarray | None:
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


def _update_link(fields: Fields, table: ParticleTable, link: Link) -> None:
    values = link.of_table(table)
    if values is None or (link.field not in fields and not table.has_column(link.column)):
        return
    changed = ~_agree(link.held(values), link.of_fields(fields)) if link.field in fields else np.ones(len(table), bool)
    with np.errstate(over="ignore"):
        new = link.as_field(values)
    if new.dtype.kind == "f" and not np.isfinite(new).all():
        row = int(np.flatnonzero(~np.isfinite(new))[0])
        raise InputError(f"{table.cell(row, link.column)}: {values[row]:g} is too large for a .cs file")
    _put(fields, link.field, changed, new)


def _update_half_sets(fields: Fields, table: ParticleTable) -> None:
    if not table.has_column(HALF_SET.column):
        # one half for all is no half-set
        if HALF_SET.field in fields and len(np.unique(fields[HALF_SET.field])) > 1:
            _update_link(fields, table, HALF_SET)
        return
    values = numeric_column(table, HALF_SET.column)
    bad = np.flatnonzero(~np.isin(values, (1, 2)))
    if len(bad):
        raise InputError(f"{table.cell(bad[0], HALF_SET.column)}: {values[bad[0]]:g}, expected 1 or 2")
    _update_link(fields, table, HALF_SET)


def _update_poses(fields: Fields, table: ParticleTable) -> None:
    if not all(table.has_column(name) for name in ANGLES):
        if POSE in fields:
            # taken out of the table; a shift alone, which no column shows, stays
            fields.pop(SHIFT, None)
            del fields[POSE]
        return
    angles = np.stack([numeric_column(table, name) for name in ANGLES], axis=-1)
    rotations = relion_angles_to_rotmat(torch.from_numpy(angles)).numpy()
    pose = roma.rotmat_to_rotvec(torch.from_numpy(rotations)).numpy().astype("<f4")
    if POSE in fields:
        _put(fields, POSE, np.abs(rotations - rotations_of_fields(fields)).max(axis=(1, 2)) > _ROTATION, pose)
    else:
        _add_alignment(fields, pose)
    pixel = pixel_sizes(table)
    origins = np.stack([origin_px(table, axis, pixel) * pixel for axis in "XY"], axis=-1)
    moved = ~_agree(origins, origins_of_fields(fields))
    if moved.any():
        _put(fields, SHIFT, moved, (origins / _pose_pixel(fields)[:, None]).astype("<f4"))


def _add_alignment(fields: Fields, pose: np.ndarray) -> None:
    """The fields of a 3-D alignment with rotation vectors ``pose`` (N, 3), in cryoSPARC's order, not shifted."""
    n = len(pose)
    fields.setdefault(HALF_SET.field, np.zeros(n, "<u4"))
    fields[SHIFT], fields[POSE] = np.zeros((n, 2), "<f4"), pose
    fields.setdefault(POSE_PIXEL, fields[PIXEL].astype("<f4"))
    for name, (value, dtype) in _NEW_ALIGNMENT.items():
        fields.setdefault(f"alignments3D/{name}", np.full(n, value, dtype))


def _update_locations(fields: Fields, table: ParticleTable) -> None:
    if MICROGRAPH in fields and "rlnMicrographName" in table.particles:
        names = table.particles["rlnMicrographName"].to_numpy(dtype=object)
        _put(fields, MICROGRAPH, texts(fields[MICROGRAPH]) != names, _as_bytes(names))
    for name, field in CENTER.items():
        if field not in fields or MICROGRAPH_SHAPE not in fields or not table.has_column(name):
            continue
        pixels, shape = numeric_column(table, name), fields[MICROGRAPH_SHAPE].astype(np.float64)
        fraction = pixels / shape[:, 1] if name == "rlnCoordinateX" else 1 - pixels / shape[:, 0]
        _put(fields, field, np.abs(pixels - _center_px(fields, name)) > _CENTER_PX, fraction.astype(fields[field].dtype))
