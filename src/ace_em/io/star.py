"""RELION's STAR files: particles of 3.0 (one block) and of 3.1 and later (optics and particles), read and written.

Every value is kept as the string in the file, so that columns ace-em does not use are written back unchanged.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import pandas as pd

from ace_em.errors import InputError
from ace_em.io.atomic import replace_atomically
from ace_em.io.particle_table import Block, ParticleTable, numeric_column

_ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
_ORIGIN_ANGSTROM = ("rlnOriginXAngst", "rlnOriginYAngst")
_ORIGIN_PX = ("rlnOriginX", "rlnOriginY")
# as in RELION, a quotation mark closes a value only before a blank or the end of the line: "a"b" is a"b
_TOKEN = re.compile(r"""(?:'(.*?)'|"(.*?)")(?=[ \t]|$)|([^ \t]+)""")
# control characters except tab, and the two Unicode line ends
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")
_ASCII_CONTROL = bytes(sorted({*range(32), 127} - {9, 10, 13}))
# a column (joined by line ends) with one of these may contain a value that needs quotation marks or cannot be written
_SPECIAL = (*"\"'# \t", "\n\n", "\n_", "\n;", "\n$", "\ndata_", "\nloop_")


class _Parser:
    """One pass over a file's lines.

    A block is empty, one loop (column names, then one line per row), or lines of a name and its value. ``controls`` is true if
    the file contains ASCII control characters, some of which ``str.split`` treats as blanks.
    """

    def __init__(self, path: Path, text: str, controls: bool) -> None:
        self.path = path
        self.text = text
        self.controls = controls
        self.number = 0
        self.blocks: dict[str, Block] = {}

    def refuse(self, message: str) -> NoReturn:
        raise InputError(f"{self.path}: line {self.number}: {message}")

    def tokens(self, line: str) -> list[str]:
        """The values of a line, up to a comment, without their quotation marks."""
        # nearly every row has no quotes or comment: split at blanks
        if line.isascii() and not (self.controls or '"' in line or "'" in line or "#" in line):
            return line.split()
        found = []
        for single, double, bare in _TOKEN.findall(line):
            if bare.startswith("#"):
                break
            token = single or double or bare
            if _CONTROL.search(token):
                self.refuse("contains a control character, expected plain text")
            if bare.startswith(("'", '"')):
                self.refuse(f"{bare[:80]}: unclosed quotation mark")
            found.append(token)
        return found

    def parse(self) -> dict[str, Block]:
        """The blocks by name; text before the first block is ignored."""
        name, part = "", "none"
        columns: list[str] = []
        rows: list[list[str]] = []
        pairs: dict[str, str] = {}

        def finish() -> None:
            if part in ("names", "rows"):
                self.blocks[name] = _frame(columns, rows)
            elif part != "none":
                self.blocks[name] = pairs

        for number, line in enumerate(self.text.split("\n"), start=1):
            self.number = number
            tokens = self.tokens(line)
            if not tokens:
                continue
            # a word in quotation marks is always a value, never a keyword
            first = "" if line.lstrip(" \t")[0] in "'\"" else tokens[0]
            if part == "names" and not first.startswith(("_", "data_", "loop_")):
                part = "rows"
            if part == "rows" and not first.startswith(("data_", "loop_")):
                if len(tokens) != len(columns):
                    found = f"{len(tokens)} value{'s'[: len(tokens) != 1]}"
                    self.refuse(f"{found}, expected {len(columns)} for the columns of data_{name}")
                rows.append(tokens)
            elif first.startswith("data_"):
                finish()
                if len(tokens) > 1:
                    self.refuse(f"{first} is followed by {tokens[1]}, expected a line of its own")
                name, part, columns, rows, pairs = first[5:], "empty", [], [], {}
                if name in self.blocks:
                    self.refuse(f"two blocks data_{name}, expected one")
            elif part == "none":
                continue
            elif first.startswith("loop_"):
                if first != "loop_" or len(tokens) > 1:
                    self.refuse(f"{' '.join(tokens[:2])}, expected loop_ on a line of its own")
                if part != "empty":
                    self.refuse(f"loop_ inside data_{name}, expected one loop per block")
                part = "names"
            elif part == "names":
                self._refuse_twice(first[1:], columns, name)
                columns.append(first[1:])
            elif first.startswith("_"):
                part = "pairs"
                if len(tokens) != 2:
                    found = f"{first} of data_{name} has {len(tokens) - 1} values"
                    self.refuse(f"{found}, expected 1 (or loop_ before the column names)")
                self._refuse_twice(first[1:], pairs, name)
                pairs[first[1:]] = tokens[1]
            else:
                self.refuse(f"{tokens[0][:80]} in data_{name}, expected loop_ or a name, such as _rlnVoltage, and its value")
        finish()
        return self.blocks

    def _refuse_twice(self, column: str, names: Iterable[str], name: str) -> None:
        if column in names:
            self.refuse(f"data_{name} has column {column} twice")


def _frame(columns: list[str], rows: list[list[str]]) -> pd.DataFrame:
    cells = np.array(rows, dtype=object).reshape(len(rows), len(columns))
    return pd.DataFrame(cells, columns=columns, dtype=str)


def read_blocks(path: Path | str) -> dict[str, Block]:
    """All blocks of a STAR file by name, without ``data_``."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: {'is not a file' if path.exists() else 'no such file'}")
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a STAR file (not text)") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in text or not re.search(r"^[ \t]*data_", text, re.MULTILINE):
        raise InputError(f"{path}: not a STAR file (no line begins with data_)")
    controls = len(raw.translate(None, _ASCII_CONTROL)) < len(raw)
    return _Parser(path, text, controls).parse()


def _as_rows(block: Block) -> pd.DataFrame:
    """A block as a table; a block that is not a loop becomes one row."""
    return block if isinstance(block, pd.DataFrame) else pd.DataFrame([block], dtype=str)


def read_particle_star(path: Path | str) -> ParticleTable:
    """Read the particles of a RELION STAR file: 3.1 and later (with optics groups), or older (one block of any name)."""
    path = Path(path)
    blocks = read_blocks(path)
    candidates = [name for name, block in blocks.items() if "rlnImageName" in block]
    if not candidates:
        raise InputError(f"{path}: no particles: {_without_images(blocks)}")
    name = "particles" if "particles" in candidates else candidates[0]
    particles = _as_rows(blocks.pop(name))
    if len(particles) == 0:
        raise InputError(f"{path}: block data_{name} has no rows")
    optics = _as_rows(blocks.pop("optics")) if "optics" in blocks else None
    return ParticleTable(path, optics, particles, blocks, name)


def _without_images(blocks: dict[str, Block]) -> str:
    """Message part: what a file without image names contains."""
    empty = [name for name, block in blocks.items() if isinstance(block, dict) and not block]
    if len(empty) == len(blocks):
        return f"block data_{empty[0]} is empty, expected loop_, column names and rows"
    some = list(blocks.items())[:4]
    found = "; ".join(f"data_{name} with {', '.join(map(str, list(block)[:4])) or 'nothing'}" for name, block in some)
    return f"no block has a column rlnImageName (found {found})"


def refuse_unwritable(table: ParticleTable) -> None:
    """Raise InputError for a value that no STAR file can hold: a control character, or blanks after both kinds of quotes."""
    for name, column in table.particles.items():
        _cells(table, table.particle_block, str(name), column.tolist())


def _cells(table: ParticleTable, block: str, name: str, values: list[str]) -> list[str]:
    """The values (n,) of a column as they are written to the file, quoted where needed."""
    whole = "\n".join(["", *values, ""])
    plain = whole.isascii() and whole.count("\n") == len(values) + 1 and not any(special in whole for special in _SPECIAL)
    if plain and len(whole.encode().translate(None, _ASCII_CONTROL + b"\r")) == len(whole):
        return values
    cells = [_quoted(value) for value in values]
    if "" in cells:
        row = cells.index("")
        of_particles = block == table.particle_block
        where = table.cell(row, name) if of_particles else f"{table.path}: data_{block} row {row + 1}, column {name}"
        reason = "it contains a control character, or blanks after ' and \""
        raise InputError(f"{where}: {values[row]!r} cannot be written to a STAR file: {reason}")
    return cells


def _quoted(value: str) -> str:
    """A value in quotation marks if it needs them; "" if it cannot be written."""
    if _CONTROL.search(value):
        return ""
    if value.split() == [value] and not value.startswith(("'", '"', "#", "_", ";", "$", "data_", "loop_")):
        return value
    marks = (mark for mark in "\"'" if not re.search(rf"{mark}[ \t]", value))
    return next((mark + value + mark for mark in marks), "")


def write_star(path: Path | str, table: ParticleTable) -> None:
    """Write a table atomically; equal tables give equal bytes."""
    # other blocks come last: the first block with image names is read as the particles
    blocks: dict[str, Block] = {} if table.optics is None else {"optics": table.optics}
    blocks |= {table.particle_block: table.particles} | table.others
    lines = ["# Created by ace-em", "", ""]
    for name, block in blocks.items():
        lines += [f"data_{name}", ""]
        if isinstance(block, dict):
            lines += [f"_{column}\t\t\t{_cells(table, name, column, [value])[0]}" for column, value in block.items()]
        else:
            lines += ["loop_", *(f"_{column} #{i}" for i, column in enumerate(block, start=1))]
            columns = [_cells(table, name, str(column), values.tolist()) for column, values in block.items()]
            lines += map("\t".join, zip(*columns, strict=True))
        lines += ["", ""]
    with replace_atomically(path) as temporary:
        temporary.write_text("\n".join([*lines, ""]), encoding="utf-8")


def with_poses(
    table: ParticleTable,
    pose_angles_deg: np.ndarray,
    origin_angstrom: np.ndarray,
    half_set: np.ndarray | None,
    pixel_size_angstrom: float,
) -> ParticleTable:
    """The same table with new poses; existing columns keep their place, new ones come last.

    Parameters
    ----------
    pose_angles_deg : (N, 3) RELION's rot, tilt, psi in degrees.
    origin_angstrom : (N, 2) RELION's origin in x, y order: the shift that brings the particle back to the centre.
    half_set : (N,) 1 or 2; None leaves rlnRandomSubset unchanged.
    pixel_size_angstrom : of the particle images; a table without optics groups (3.0) has origins in pixels.
    """
    if pose_angles_deg.shape != (len(table), 3) or origin_angstrom.shape != (len(table), 2):
        raise ValueError(f"{len(table)} particles, angles {pose_angles_deg.shape}, origins {origin_angstrom.shape}")
    old_format = table.optics is None
    origin_names, stale = (_ORIGIN_PX, _ORIGIN_ANGSTROM) if old_format else (_ORIGIN_ANGSTROM, _ORIGIN_PX)
    origin = origin_angstrom / pixel_size_angstrom if old_format else origin_angstrom
    particles = table.particles.drop(columns=[name for name in stale if name in table.particles])
    values = np.concatenate([pose_angles_deg, origin], axis=1)
    for name, column in zip(_ANGLES + origin_names, values.T, strict=True):
        # + 0.0 turns -0 into 0
        particles[name] = [f"{value:.6f}" for value in np.round(column.astype(np.float64), 6) + 0.0]
    if half_set is not None:
        particles["rlnRandomSubset"] = [str(int(value)) for value in half_set]
    return replace(table, particles=particles)


def with_defocus_offset(table: ParticleTable, offset_angstrom: np.ndarray) -> ParticleTable:
    """The same table with an offset (N,) added to rlnDefocusU and rlnDefocusV."""
    particles = table.particles.copy()
    for name in ("rlnDefocusU", "rlnDefocusV"):
        particles[name] = [f"{value:.6f}" for value in numeric_column(table, name) + offset_angstrom]
    return replace(table, particles=particles)
