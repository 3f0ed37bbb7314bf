"""The particle table: every value as the string that stands in RELION's STAR file, and what that string is as a number.

Column names are without the leading underscore. Rows in messages count from 1.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd

from ace_em.errors import InputError

Block: TypeAlias = pd.DataFrame | dict[str, str]


@dataclass(frozen=True)
class ParticleTable:
    """The particles of a STAR file, or of a cryoSPARC file in the form of a RELION 3.1 one.

    Attributes
    ----------
    path : the file it was read from; messages name it, and stack paths are relative to its folder.
    optics : one row per optics group, strings; None for a RELION 3.0 file.
    particles : one row per particle, strings.
    others : the remaining blocks by name, a dict of strings for a block that is not a loop.
    particle_block : name of the block of the particles, without ``data_``.
    cryosparc : fields (N, ...) of the cryoSPARC file that the particles come from, by name, in the file's order and types;
        None for particles that never were in one.
    """

    path: Path
    optics: pd.DataFrame | None
    particles: pd.DataFrame
    others: dict[str, Block] = field(default_factory=dict)
    particle_block: str = "particles"
    cryosparc: dict[str, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.particles)

    def has_column(self, name: str) -> bool:
        """Whether the particles, or their optics groups, have a column."""
        return name in self.particles or (self.optics is not None and name in self.optics)

    def rows(self, rows: np.ndarray) -> "ParticleTable":
        """The particles at ``rows``: (n,) indices in the order wanted, or an (N,) mask; optics and other blocks stay whole."""
        carried = None if self.cryosparc is None else {name: values[rows] for name, values in self.cryosparc.items()}
        return replace(self, particles=self.particles.iloc[rows].reset_index(drop=True), cryosparc=carried)


def optics_rows(table: ParticleTable, optics: pd.DataFrame) -> np.ndarray:
    """Row of the optics table of each particle, (N,) int64."""
    for where, frame in (("data_optics", optics), (f"data_{table.particle_block}", table.particles)):
        if "rlnOpticsGroup" not in frame:
            raise InputError(f"{table.path}: column rlnOpticsGroup is missing in {where}")
    groups = pd.Index(_numbers(table.path, optics["rlnOpticsGroup"], "data_optics row"))
    if not groups.is_unique:
        raise InputError(f"{table.path}: data_optics has an rlnOpticsGroup twice")
    wanted = _numbers(table.path, table.particles["rlnOpticsGroup"], "row")
    rows = groups.get_indexer(pd.Index(wanted))
    if (rows < 0).any():
        row = int(np.flatnonzero(rows < 0)[0])
        raise InputError(f"{table.path}: row {row + 1}: optics group {wanted[row]:g} is not in data_optics")
    return rows.astype(np.int64)


def _numbers(path: Path, column: pd.Series, row_word: str) -> np.ndarray:
    """(n,) float64 values of a column of strings; refuses, with the row, what is not a finite number."""
    strings = column.to_numpy(dtype=object)
    try:
        values = strings.astype(np.float64)
    except ValueError:
        values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise InputError(f"{path}: {row_word} {bad[0] + 1}, column {column.name}: {strings[bad[0]]!r}, expected a finite number")
    return values


def numeric_column(table: ParticleTable, name: str, default: float | None = None) -> np.ndarray:
    """Values of a column as (N,) float64, from the particles or, where they lack it, from their optics groups.

    ``default`` stands for a column that is in neither; without one, that is an :class:`InputError`, as is any value that
    is not a finite number.
    """
    if name in table.particles:
        return _numbers(table.path, table.particles[name], "row")
    if table.optics is not None and name in table.optics:
        per_particle = table.optics[name].iloc[optics_rows(table, table.optics)].reset_index(drop=True)
        return _numbers(table.path, per_particle, "optics group of row")
    if default is None:
        where = f"data_{table.particle_block}" + ("" if table.optics is None else " or data_optics")
        raise InputError(f"{table.path}: column {name} is missing, expected in {where}")
    return np.full(len(table), default, dtype=np.float64)
