"""The particle table: every value as the string that stands in RELION's STAR file, and what that string is as a number.

Column names are without the leading underscore. Rows in messages count from 1.
"""

from collections.abc import Callable, Mapping
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
    row_numbers : (N,) rows of the file that these particles are, from 1; None where they are all of it.
    field_names : what the file calls a column, where that is not RELION's name for it.
    """

    path: Path
    optics: pd.DataFrame | None
    particles: pd.DataFrame
    others: dict[str, Block] = field(default_factory=dict)
    particle_block: str = "particles"
    cryosparc: dict[str, np.ndarray] | None = None
    row_numbers: np.ndarray | None = None
    field_names: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.particles)

    def has_column(self, name: str) -> bool:
        """Whether the particles, or their optics groups, have a column."""
        return name in self.particles or (self.optics is not None and name in self.optics)

    def rows(self, rows: np.ndarray) -> "ParticleTable":
        """The particles at ``rows``: (n,) indices in the order wanted, or an (N,) mask; optics and other blocks stay whole."""
        carried = None if self.cryosparc is None else {name: values[rows] for name, values in self.cryosparc.items()}
        numbers = (np.arange(1, len(self) + 1) if self.row_numbers is None else self.row_numbers)[rows]
        particles = self.particles.iloc[rows].reset_index(drop=True)
        return replace(self, particles=particles, cryosparc=carried, row_numbers=numbers)

    def row_number(self, row: int) -> int:
        """Row of the file, from 1, of the particle at ``row`` from 0: what a message names."""
        return row + 1 if self.row_numbers is None else int(self.row_numbers[row])

    def column_name(self, name: str) -> str:
        """A column as its file calls it: ``column rlnDefocusU``, or ``field ctf/df1_A`` in a .cs file."""
        return f"field {self.field_names[name]}" if name in self.field_names else f"column {name}"

    def cell(self, row: int, name: str) -> str:
        """Where a value stands, for a message: file, row and column."""
        return f"{self.path}: row {self.row_number(row)}, {self.column_name(name)}"


def optics_rows(table: ParticleTable, optics: pd.DataFrame) -> np.ndarray:
    """Row of the optics table of each particle, (N,) int64."""
    for where, frame in (("data_optics", optics), (f"data_{table.particle_block}", table.particles)):
        if "rlnOpticsGroup" not in frame:
            raise InputError(f"{table.path}: column rlnOpticsGroup is missing in {where}")
    groups = pd.Index(_numbers(optics["rlnOpticsGroup"], lambda row: f"{table.path}: data_optics row {row + 1}"))
    if not groups.is_unique:
        raise InputError(f"{table.path}: data_optics has an rlnOpticsGroup twice")
    wanted = _numbers(table.particles["rlnOpticsGroup"], lambda row: f"{table.path}: row {table.row_number(row)}")
    rows = groups.get_indexer(pd.Index(wanted))
    if (rows < 0).any():
        row = int(np.flatnonzero(rows < 0)[0])
        raise InputError(f"{table.path}: row {table.row_number(row)}: optics group {wanted[row]:g} is not in data_optics")
    return rows.astype(np.int64)


def _numbers(column: pd.Series, where: Callable[[int], str]) -> np.ndarray:
    """(n,) float64 values of a column of strings; refuses what is not a finite number, ``where`` saying in which row it is."""
    strings = column.to_numpy(dtype=object)
    try:
        values = strings.astype(np.float64)
    except ValueError:
        values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        row = int(bad[0])
        raise InputError(f"{where(row)}, column {column.name}: {strings[row]!r}, expected a finite number")
    return values


def numeric_column(table: ParticleTable, name: str, default: float | None = None) -> np.ndarray:
    """Values of a column as (N,) float64, from the particles or, where they lack it, from their optics groups.

    ``default`` stands for a column that is in neither; without one, that is an :class:`InputError`, as is any value that
    is not a finite number.
    """
    if name in table.particles:
        return _numbers(table.particles[name], lambda row: f"{table.path}: row {table.row_number(row)}")
    if table.optics is not None and name in table.optics:
        per_particle = table.optics[name].iloc[optics_rows(table, table.optics)].reset_index(drop=True)
        return _numbers(per_particle, lambda row: f"{table.path}: optics group of row {table.row_number(row)}")
    if default is None:
        where = f"data_{table.particle_block}" + ("" if table.optics is None else " or data_optics")
        raise InputError(f"{table.path}: column {name} is missing, expected in {where}")
    return np.full(len(table), default, dtype=np.float64)
