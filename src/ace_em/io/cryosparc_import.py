"""A particle table in the form of RELION 3.1 from the fields of a .cs file."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ace_em.io.cryosparc_columns import (
    CENTER,
    EXPOSURE,
    FIELD_NAMES,
    HALF_SET,
    INDEX,
    MICROGRAPH,
    MICROGRAPH_SHAPE,
    OPTICS_LINKS,
    PARTICLE_LINKS,
    PATH,
    POSE,
    POSE_COLUMNS,
    Fields,
    center_px,
    origins_of_fields,
    rotations_of_fields,
    texts,
)
from ace_em.io.particle_table import UID, ParticleTable
from ace_em.physics.pose import rotmat_to_relion_angles


def table_of_fields(path: Path, fields: Fields) -> ParticleTable:
    """Particles of a .cs file as a RELION 3.1 table; the table keeps the fields."""
    optics, group = _optics_groups(fields)
    images = zip((fields[INDEX].astype(np.int64) + 1).tolist(), texts(fields[PATH]), strict=True)
    names = [f"{index:06d}@{name}" for index, name in images]
    columns: dict[str, list[str]] = {"rlnImageName": names, "rlnOpticsGroup": group.astype(str).tolist()}
    if MICROGRAPH in fields and (fields[MICROGRAPH] != fields[MICROGRAPH].dtype.type()).any():
        columns["rlnMicrographName"] = texts(fields[MICROGRAPH]).tolist()
    for name, field in CENTER.items():
        if field in fields and MICROGRAPH_SHAPE in fields:
            columns[name] = [f"{value:.4f}" for value in center_px(fields, name)]
    for link in PARTICLE_LINKS:
        # a field with one value for all particles is not a division into half-sets
        if link.field in fields and (link is not HALF_SET or len(np.unique(fields[link.field])) > 1):
            columns[link.column] = link.text(fields)
    if POSE in fields:
        angles = rotmat_to_relion_angles(torch.from_numpy(rotations_of_fields(fields))).numpy()
        values = np.concatenate([angles, origins_of_fields(fields)], axis=1)
        # + 0.0 turns -0 into 0
        for name, column in zip(POSE_COLUMNS, (np.round(values, 6) + 0.0).T.tolist(), strict=True):
            columns[name] = [f"{value:.6f}" for value in column]
    columns[UID] = fields["uid"].astype(str).tolist()
    return ParticleTable(path, optics, pd.DataFrame(columns, dtype=str), cryosparc=fields, field_names=FIELD_NAMES)


def _optics_groups(fields: Fields) -> tuple[pd.DataFrame, np.ndarray]:
    """Optics table (strings) and group number of each particle (N,); one group per exposure group and set of optics values."""
    links = [link for link in OPTICS_LINKS if link.field in fields]
    exposure = fields[EXPOSURE].astype(np.int64) if EXPOSURE in fields else np.zeros(len(fields["uid"]), np.int64)
    keys = np.column_stack([exposure, *(link.of_fields(fields) for link in links)])
    _, first, group = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    ids = exposure[first]
    # an exposure group with several sets of values becomes exp_group_1, exp_group_1_2, ...
    repeats = [int((ids[:i] == value).sum()) for i, value in enumerate(ids)]
    names = [f"exp_group_{value}" + (f"_{k + 1}" if k else "") for value, k in zip(ids, repeats, strict=True)]
    group_fields = {name: values[first] for name, values in fields.items()}
    columns = {"rlnOpticsGroup": [str(i + 1) for i in range(len(ids))], "rlnOpticsGroupName": names}
    columns |= {link.column: link.text(group_fields) for link in links} | {"rlnImageDimensionality": ["2"] * len(ids)}
    return pd.DataFrame(columns, dtype=str), group.reshape(-1) + 1
