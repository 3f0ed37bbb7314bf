"""The fields of a .cs file from a particle table.

A table that came from cryoSPARC keeps its fields, and only values that changed by more than rounding are replaced. A table from
a STAR file gets the fields that cryoSPARC's import jobs write.
"""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import roma
import torch

from ace_em.errors import InputError
from ace_em.io.cryosparc_columns import (
    ANGLES,
    BOX,
    CENTER,
    CTF_FIELDS,
    EXPOSURE,
    HALF_SET,
    INDEX,
    LINKS,
    MICROGRAPH,
    MICROGRAPH_SHAPE,
    OPTICS_LINKS,
    PARTICLE_LINKS,
    PATH,
    PIXEL,
    POSE,
    POSE_PIXEL,
    SHIFT,
    SIGN,
    SIGN_OF_RELION,
    Fields,
    Link,
    center_px,
    origins_of_fields,
    pose_pixel_size,
    rotations_of_fields,
    texts,
)
from ace_em.io.particle_table import UID, ParticleTable, image_paths, is_uid, numeric_column, optics_rows, origin_px, pixel_sizes
from ace_em.physics.pose import relion_angles_to_rotmat

_EXPOSURE_NAME = r"^exp_group_(\d+)(?:_\d+)?$"
# rounding: half a unit of the fifth decimal, which RELION writes for negative numbers, and cryoSPARC's float32
_ABSOLUTE, _RELATIVE = 6e-6, 1.3e-7
_ROTATION = 1e-6
# rounding: the fourth decimal, and a float32 fraction of a micrograph of 10,000 pixels
_CENTER_PX = 1e-3

_CTF_COLUMNS = tuple(link.column for link in LINKS if link.field in CTF_FIELDS)
# fields of cryoSPARC's import jobs, in their order: value, shape
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
    """The fields that a table from cryoSPARC keeps, updated; new fields for a table from a STAR file.

    New fields need ``box`` (pixels per image edge) if the table lacks rlnImageSize, and ``sign``: +1 if the protein is white
    in the image files, -1 if it is black.
    """
    return updated(_new_fields(table, box, sign) if table.cryosparc is None else table.cryosparc, table)


def _new_fields(table: ParticleTable, box: int, sign: float) -> Fields:
    missing = [name for name in _CTF_COLUMNS if not table.has_column(name)]
    if missing:
        raise InputError(f"{table.path}: no CTF: missing columns {', '.join(missing)}")
    if not table.has_column("rlnImageSize") and box <= 0:
        raise InputError(f"{table.path}: no image size: expected the column rlnImageSize, readable images, or the option --box")
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
    """Unique uids (N,): from column csUid where it is valid, otherwise a hash of the image name."""
    given = table.particles[UID].tolist() if UID in table.particles else [""] * len(table)
    kept = {text for text in given if is_uid(text)}
    uids, taken = [], {int(text) for text in kept}
    for text, name in zip(given, table.particles["rlnImageName"], strict=True):
        if text in kept:
            kept.discard(text)
            uids.append(int(text))
            continue
        salts = (name if k == 0 else f"{name} {k}" for k in itertools.count())
        hashes = (int.from_bytes(hashlib.blake2b(salt.encode(), digest_size=8).digest(), "little") for salt in salts)
        uids.append(next(uid for uid in hashes if uid not in taken))
        taken.add(uids[-1])
    return np.array(uids, dtype=np.uint64)


def updated(fields: Fields, table: ParticleTable) -> Fields:
    """The fields with the table's values where these differ by more than rounding; unchanged values keep their bits."""
    new = dict(fields)
    _update_images(new, table)
    exposure = _exposure_groups(table)
    if exposure is not None:
        old = new[EXPOSURE].astype(np.int64) if EXPOSURE in new else np.full(len(table), -1)
        _put(new, EXPOSURE, exposure != old, exposure.astype("<u4"))
    for link in OPTICS_LINKS:
        _update_link(new, table, link)
    # after the pixel size, the unit of shifts; before half-set and class, which belong to the 3-D alignment
    _update_poses(new, table)
    for link in PARTICLE_LINKS:
        if link is HALF_SET:
            _update_half_sets(new, table)
        elif link.field in new or not link.field.startswith("alignments3D/"):
            _update_link(new, table, link)
    _update_locations(new, table)
    return new


def _put(fields: Fields, name: str, rows: np.ndarray, values: np.ndarray) -> None:
    """Set ``values`` (N, ...) where the mask ``rows`` (N,) is true. An existing field keeps its type; a text field may widen."""
    if name not in fields:
        fields[name] = values
    elif rows.any():
        wide = values.dtype.kind in "SU" and values.dtype.itemsize > fields[name].dtype.itemsize
        fields[name] = fields[name].astype(values.dtype) if wide else fields[name].copy()
        fields[name][rows] = values[rows]


def _as_bytes(strings: Sequence[str] | np.ndarray) -> np.ndarray:
    """A text field, one byte wider than its longest value, as in cryoSPARC."""
    raw = [string.encode() for string in strings]
    return np.array(raw, dtype=f"S{max(map(len, raw), default=0) + 1}")


def _agree(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N,) whether rows of two (N, ...) arrays are equal up to rounding."""
    same = np.abs(a - b) <= _ABSOLUTE + _RELATIVE * np.maximum(np.abs(a), np.abs(b))
    return np.asarray(same.all(axis=tuple(range(1, same.ndim))))


def _update_images(fields: Fields, table: ParticleTable) -> None:
    paths, indices = image_paths(table)
    _put(fields, PATH, texts(fields[PATH]) != paths, _as_bytes(paths))
    _put(fields, INDEX, fields[INDEX] != indices, indices.astype("<u4"))
    if len(np.unique(fields["uid"])) < len(table):
        # for a particle listed twice, the first row keeps its uid
        given = table.particles.assign(**{UID: fields["uid"].astype(str)})
        fields["uid"] = _new_uids(replace(table, particles=given))


def _exposure_groups(table: ParticleTable) -> np.ndarray | None:
    """``ctf/exp_group_id`` (N,): from an optics group name such as exp_group_3, otherwise the optics group number."""
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
    changed = ~_agree(link.storable(values), link.of_fields(fields)) if link.field in fields else np.ones(len(table), bool)
    with np.errstate(over="ignore"):
        new = link.as_field(values)
    if new.dtype.kind == "f" and not np.isfinite(new).all():
        row = int(np.flatnonzero(~np.isfinite(new))[0])
        raise InputError(f"{table.cell(row, link.column)}: {values[row]:g} is too large for a .cs file")
    _put(fields, link.field, changed, new)


def _update_half_sets(fields: Fields, table: ParticleTable) -> None:
    if not table.has_column(HALF_SET.column):
        # a field with one value for all particles is not a division into half-sets
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
            # the pose columns were removed; a shift without a pose has no column and stays
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
        _put(fields, SHIFT, moved, (origins / pose_pixel_size(fields)[:, None]).astype("<f4"))


def _add_alignment(fields: Fields, pose: np.ndarray) -> None:
    """The fields of a 3-D alignment with rotation vectors ``pose`` (N, 3), in cryoSPARC's order, with zero shifts."""
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
        _put(fields, field, np.abs(pixels - center_px(fields, name)) > _CENTER_PX, fraction.astype(fields[field].dtype))
