"""The particle table: values as strings of a RELION STAR file, and their conversion to numbers.

Column names are without the leading underscore. Rows in messages count from 1.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd

from ace_em.errors import InputError

Block: TypeAlias = pd.DataFrame | dict[str, str]

CRYOSPARC = ".cs"
UID = "csUid"
"""Column with cryoSPARC's ``uid`` in a STAR file. RELION keeps it, so particles can be matched with their .cs file."""

# format suffixes that RELION and Xmipp append to stacks of another extension; not part of the path
_KINDS = (":mrcs", ":mrc")
# aberrations by RELION column (with the value for none) or cryoSPARC field
_ABERRATION_COLUMNS = {"rlnBeamTiltX": 0, "rlnBeamTiltY": 0, "rlnOddZernike": 0, "rlnEvenZernike": 0}
_ABERRATION_COLUMNS |= {"rlnMagMat00": 1, "rlnMagMat01": 0, "rlnMagMat10": 0, "rlnMagMat11": 1}
_ABERRATION_FIELDS = ("ctf/shift_A", "ctf/tilt_A", "ctf/trefoil_A", "ctf/tetra_A", "ctf/anisomag")
_ENVELOPE_COLUMNS = {"rlnCtfBfactor": 0, "rlnCtfScalefactor": 1}


@dataclass(frozen=True)
class ParticleTable:
    """The particles of a STAR file, or of a cryoSPARC file in the form of a RELION 3.1 one.

    Attributes
    ----------
    path : the file it was read from, for messages and relative stack paths.
    optics : one row per optics group, strings; None for a RELION 3.0 file.
    particles : one row per particle, strings.
    others : the other blocks by name; a block that is not a loop is a dict of strings.
    particle_block : name of the particle block, without ``data_``.
    cryosparc : fields (N, ...) of the cryoSPARC file that the particles come from, by name, with the order and types of
        the file; None for particles of a STAR file.
    row_numbers : (N,) row of each particle in the file, from 1; None if the table is the whole file.
    field_names : name of a column in the file, if it is not RELION's.
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
        """Whether the particles or their optics groups have a column."""
        return name in self.particles or (self.optics is not None and name in self.optics)

    def rows(self, rows: np.ndarray) -> "ParticleTable":
        """The particles at ``rows``: (n,) indices in any order, or an (N,) mask; optics and other blocks are unchanged."""
        carried = None if self.cryosparc is None else {name: values[rows] for name, values in self.cryosparc.items()}
        numbers = (np.arange(1, len(self) + 1) if self.row_numbers is None else self.row_numbers)[rows]
        particles = self.particles.iloc[rows].reset_index(drop=True)
        return replace(self, particles=particles, cryosparc=carried, row_numbers=numbers)

    def row_number(self, row: int) -> int:
        """Row in the file, from 1, of the particle at ``row`` (from 0), for messages."""
        return row + 1 if self.row_numbers is None else int(self.row_numbers[row])

    def column_name(self, name: str) -> str:
        """A column as named in its file: ``column rlnDefocusU``, or ``field ctf/df1_A`` in a .cs file."""
        return f"field {self.field_names[name]}" if name in self.field_names else f"column {name}"

    def cell(self, row: int, name: str) -> str:
        """File, row and column of a value, for messages."""
        return f"{self.path}: row {self.row_number(row)}, {self.column_name(name)}"


def optics_rows(table: ParticleTable, optics: pd.DataFrame) -> np.ndarray:
    """Row of the optics table of each particle, (N,) int64."""
    for where, frame in (("data_optics", optics), (f"data_{table.particle_block}", table.particles)):
        if "rlnOpticsGroup" not in frame:
            raise InputError(f"{table.path}: column rlnOpticsGroup is missing in {where}")
    groups = pd.Index(_numbers(optics["rlnOpticsGroup"], lambda row: f"{table.path}: data_optics row {row + 1}"))
    if not groups.is_unique:
        raise InputError(f"{table.path}: data_optics lists an rlnOpticsGroup twice")
    group = _numbers(table.particles["rlnOpticsGroup"], lambda row: f"{table.path}: row {table.row_number(row)}")
    rows = groups.get_indexer(pd.Index(group))
    if (rows < 0).any():
        row = int(np.flatnonzero(rows < 0)[0])
        raise InputError(f"{table.path}: row {table.row_number(row)}: optics group {group[row]:g} is not in data_optics")
    return rows.astype(np.int64)


def _numbers(column: pd.Series, where: Callable[[int], str]) -> np.ndarray:
    """(n,) float64 values of a column of strings. InputError for a value that is not a finite number; ``where`` names its row."""
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
    """Values of a column as (N,) float64, from the particles or else from their optics groups.

    A column that is in neither has the value ``default``. Without a default this is an :class:`InputError`, as is a value that
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


def pixel_sizes(table: ParticleTable) -> np.ndarray:
    """Pixel size of each particle image, (N,) float64, in Angstrom."""
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
    """RELION's origin along ``axis`` ("X" or "Y"), (N,) float64, in pixels of the given size; 0 without such a column."""
    angstrom, px = f"rlnOrigin{axis}Angst", f"rlnOrigin{axis}"
    # of a file with both, RELION 3.1 uses the Angstrom columns and 3.0 the pixel columns
    if table.has_column(angstrom) and (table.optics is not None or not table.has_column(px)):
        return numeric_column(table, angstrom) / pixel_size_angstrom
    return numeric_column(table, px, default=0.0)


def parse_image_name(table: ParticleTable, row: int, name: str) -> tuple[int | None, str]:
    """Index (from 1) and path of RELION's image name ``000001@path`` at ``row`` (from 0) of the table.

    The index is None if the name is a path alone: a file with one image.
    """
    index, at, path = name.partition("@") if "@" in name else ("", "", name)
    for kind in _KINDS:
        path = path.removesuffix(kind)
    # longer indices do not fit into int64
    if not path or (at and not (index.isdecimal() and len(index) < 19 and int(index) >= 1)):
        raise InputError(f"{table.cell(row, 'rlnImageName')}: {name!r}, expected index@path with an index from 1")
    return (int(index) if at else None), path


def image_paths(table: ParticleTable) -> tuple[np.ndarray, np.ndarray]:
    """Path (N,) strings and index (N,) int64 from 0 of each image; a name without an index is a file with one image."""
    names = [parse_image_name(table, row, name) for row, name in enumerate(table.particles["rlnImageName"])]
    indices = np.array([(index or 1) - 1 for index, _ in names], dtype=np.int64)
    return np.array([path for _, path in names], dtype=object), indices


def cryosparc_uids(table: ParticleTable) -> np.ndarray | None:
    """cryoSPARC's ``uid`` of each particle, (N,) unsigned, from the .cs file or column csUid; None if a row has none."""
    if table.cryosparc is not None:
        return table.cryosparc["uid"]
    texts = table.particles[UID].tolist() if UID in table.particles else []
    return np.array([int(text) for text in texts], dtype=np.uint64) if texts and all(map(is_uid, texts)) else None


def is_uid(text: str) -> bool:
    return text.isdecimal() and len(text) <= 20 and 0 < int(text) < 2**64


def not_in_the_model(table: ParticleTable) -> list[str]:
    """Columns or cryoSPARC fields that the CTF model ignores: aberrations, B factor and scale."""
    envelope = (name for name, none in _ENVELOPE_COLUMNS.items() if _differs(table, name, none))
    return ignored_aberrations(table) + [table.field_names.get(name, name) for name in envelope]


def ignored_aberrations(table: ParticleTable) -> list[str]:
    """Columns or cryoSPARC fields with a non-zero aberration."""
    found = [name for name, none in _ABERRATION_COLUMNS.items() if _differs(table, name, none)]
    fields = table.cryosparc or {}
    return found + [name for name in _ABERRATION_FIELDS if name in fields and np.any(fields[name] != 0)]


def _differs(table: ParticleTable, name: str, none: int) -> bool:
    """Whether a column has a number, or a list such as ``[0,0,0]`` with a number, that is not ``none``."""
    frames = [table.particles] if table.optics is None else [table.optics, table.particles]
    texts = [text for frame in frames if name in frame for text in frame[name].unique()]
    for token in re.split(r"[\s,\[\]]+", ",".join(texts)):
        try:
            if token and float(token) != none:
                return True
        except ValueError:
            continue
    return False


def is_cryosparc(path: Path | str) -> bool:
    return Path(path).suffix.lower() == CRYOSPARC


# imported inside the functions: io.cryosparc and io.star import this module
def read_particle_table(path: Path | str, passthrough: Sequence[Path | str] = ()) -> ParticleTable:
    """Read a RELION STAR file or, by its suffix, a cryoSPARC .cs file.

    ``passthrough`` : .cs files with the fields that the file lacks, matched by uid; for a STAR file, the .cs files it came from.
    """
    if is_cryosparc(path):
        from ace_em.io.cryosparc import read_cryosparc

        return read_cryosparc(path, passthrough)
    from ace_em.io.star import read_particle_star

    table = read_particle_star(path)
    if not passthrough:
        return table
    from ace_em.io.cryosparc import with_fields_of

    return with_fields_of(table, passthrough)


def write_particle_table(path: Path | str, table: ParticleTable, box: int = 0, sign: float = 1.0) -> None:
    """Write a RELION STAR file or, by its suffix, a .cs file, atomically; ``box`` and ``sign`` as in ``write_cryosparc``."""
    if is_cryosparc(path):
        from ace_em.io.cryosparc import write_cryosparc

        write_cryosparc(path, table, box, sign)
        return
    from ace_em.io.star import write_star

    write_star(path, table)
