"""RELION's columns into cryoSPARC's fields: new ones, or those that a table has changed."""

from dataclasses import replace

import numpy as np

from ace_em.errors import InputError
from ace_em.io.cs.file import Fields, put
from ace_em.io.cs.images import as_bytes, images_of_table, texts, uids_of_table
from ace_em.io.cs.links import (
    BOX,
    EXPOSURE,
    HALF_SET,
    INDEX,
    OPTICS_LINKS,
    PARTICLE_LINKS,
    PATH,
    POSE,
    POSE_PIXEL,
    SHIFT,
    SIGN,
    SIGN_OF_RELION,
    Link,
    agree,
    exposure_groups,
    origins_of_fields,
    origins_of_table,
    pose_pixel,
    rotations_agree,
    rotations_of_fields,
    rotations_of_table,
    rotvec,
)
from ace_em.io.cs.locations import update_locations
from ace_em.io.particle_table import ParticleTable, numeric_column

_CTF_COLUMNS = (
    "rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast",
)  # fmt: skip
# the fields that cryoSPARC's importers write, in their order: value, shape
_CTF = {
    "accel_kv": (np.nan, ()), "cs_mm": (np.nan, ()), "amp_contrast": (np.nan, ()), "df1_A": (np.nan, ()), "df2_A": (np.nan, ()),
    "df_angle_rad": (np.nan, ()), "phase_shift_rad": (np.nan, ()), "scale": (np.nan, ()), "scale_const": (0, ()),
    "shift_A": (0, (2,)), "tilt_A": (0, (2,)), "trefoil_A": (0, (2,)), "tetra_A": (0, (4,)), "anisomag": (0, (4,)),
    "bfactor": (np.nan, ()),
}  # fmt: skip
_ALIGNMENT = {
    "error": 0, "error_min": 0, "resid_pow": 0, "slice_pow": 0, "image_pow": 0, "cross_cor": 0, "alpha": 1, "alpha_min": 0,
    "weight": 0, "pose_ess": 0, "shift_ess": 0, "class_posterior": 1,
}  # fmt: skip


def new_fields(table: ParticleTable, box: int = 0, sign: float = SIGN_OF_RELION) -> Fields:
    """Fields for a table that never was in cryoSPARC; ``box``: pixels per image edge where the table lacks rlnImageSize;
    ``sign``: +1 where the protein is white in the files, -1 where it is black."""
    missing = [name for name in _CTF_COLUMNS if not table.has_column(name)]
    if missing:
        raise InputError(f"{table.path}: no CTF: missing columns {', '.join(missing)}")
    if not table.has_column("rlnImageSize") and box <= 0:
        raise InputError(f"{table.path}: no image size: expected rlnImageSize, or the images at their place, or the option --box")
    n = len(table)
    fields: Fields = {
        "uid": uids_of_table(table),
        PATH: as_bytes([""] * n),
        INDEX: np.zeros(n, "<u4"),
        BOX: np.full((n, 2), box, "<u4"),
        "blob/psize_A": np.full(n, np.nan, "<f4"),
        SIGN: np.full(n, sign, "<f4"),
        "ctf/type": as_bytes(["imported"] * n),
        EXPOSURE: np.zeros(n, "<u4"),
    }
    fields |= {f"ctf/{name}": np.full((n, *shape), value, "<f4") for name, (value, shape) in _CTF.items()}
    return updated(fields, table)


def updated(fields: Fields, table: ParticleTable) -> Fields:
    """The fields with the values of the table where these differ by more than rounding; all others keep their bits."""
    new = dict(fields)
    _update_images(new, table)
    exposure = exposure_groups(table)
    if exposure is not None:
        old = new[EXPOSURE].astype(np.int64) if EXPOSURE in new else np.full(len(table), -1)
        put(new, EXPOSURE, exposure != old, exposure.astype("<u4"))
    for link in OPTICS_LINKS:
        _update_link(new, table, link)
    # before the half-set and the class, which are those of a 3-D alignment, and after the pixel size, its unit
    _update_poses(new, table)
    for link in PARTICLE_LINKS:
        if link is HALF_SET:
            _update_half_sets(new, table)
        elif link.field in new or not link.field.startswith("alignments3D/"):
            _update_link(new, table, link)
    update_locations(new, table)
    return new


def _update_link(fields: Fields, table: ParticleTable, link: Link) -> None:
    values = link.of_table(table)
    if values is None or (link.field not in fields and not table.has_column(link.column)):
        return
    changed = ~agree(link.held(values), link.of_fields(fields)) if link.field in fields else np.ones(len(table), bool)
    with np.errstate(over="ignore"):
        new = link.as_field(values)
    if new.dtype.kind == "f" and not np.isfinite(new).all():
        row = int(np.flatnonzero(~np.isfinite(new))[0])
        raise InputError(f"{table.cell(row, link.column)}: {values[row]:g} is too large for a .cs file")
    put(fields, link.field, changed, new)


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


def _update_images(fields: Fields, table: ParticleTable) -> None:
    paths, indices = images_of_table(table)
    put(fields, PATH, texts(fields[PATH]) != paths, as_bytes(paths))
    put(fields, INDEX, fields[INDEX] != indices, indices.astype("<u4"))
    uid, counts = np.unique(fields["uid"], return_counts=True)
    if (counts > 1).any():
        # a particle taken twice: the first keeps its uid
        given = table.particles.assign(csUid=fields["uid"].astype(str))
        fields["uid"] = uids_of_table(replace(table, particles=given))


def _update_poses(fields: Fields, table: ParticleTable) -> None:
    rotations = rotations_of_table(table)
    if rotations is None:
        for name in (POSE, SHIFT):
            fields.pop(name, None)
        return
    if POSE not in fields:
        _add_alignment(fields, rotations)
    else:
        put(fields, POSE, ~rotations_agree(rotations, rotations_of_fields(fields)), rotvec(rotations).astype("<f4"))
    origins = origins_of_table(table)
    put(fields, SHIFT, ~agree(origins, origins_of_fields(fields)), (origins / pose_pixel(fields)[:, None]).astype("<f4"))


def _add_alignment(fields: Fields, rotations: np.ndarray) -> None:
    """The fields of a 3-D alignment, in cryoSPARC's order; shifts are for the caller to write."""
    n = len(rotations)
    fields.setdefault(HALF_SET.field, np.zeros(n, "<u4"))
    fields[SHIFT], fields[POSE] = np.full((n, 2), np.nan, "<f4"), rotvec(rotations).astype("<f4")
    fields.setdefault(POSE_PIXEL, fields["blob/psize_A"].astype("<f4"))
    for name, value in _ALIGNMENT.items():
        fields.setdefault(f"alignments3D/{name}", np.full(n, value, "<f4"))
    fields.setdefault("alignments3D/class", np.zeros(n, "<u4"))
    fields.setdefault("alignments3D/class_ess", np.ones(n, "<f4"))
