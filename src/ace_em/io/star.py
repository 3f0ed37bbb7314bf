"""Particle tables in RELION's STAR format: 3.0 (one block) and 3.1 and later (optics and particles).

Every value is kept as the string that stands in the file, so that what we do not understand is written back as it was.
"""

import linecache
import re
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import starfile

from ace_em.errors import InputError
from ace_em.io.atomic import replace_atomically
from ace_em.io.cs.star_blocks import fields_from_blocks, with_field_blocks
from ace_em.io.particle_table import Block, ParticleTable, numeric_column

# a line break is looked for by itself
_UNWRITABLE = re.compile(r"['#\x00-\x08\x0b-\x1f]")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
_ORIGIN_ANGSTROM = ("rlnOriginXAngst", "rlnOriginYAngst")
_ORIGIN_PX = ("rlnOriginX", "rlnOriginY")
# what starfile turns into a missing value
_NAN_TOKEN = re.compile(r"(?<!\S)(?:nan|NaN|<NA>)(?!\S)")
_TOKEN = re.compile(r"""'[^']*'(?=\s|$)|"[^"]*"(?=\s|$)|\S+""")
_COMMENT = re.compile(r"(?<!\S)#.*")
_EMPTY_TOKEN = re.compile(r"""(?<!\S)(?:""|'')(?!\S)""")


def _read_text(path: Path) -> tuple[str, bool]:
    """The text with a newline at each line's end, and whether the file has lines that end in a carriage return alone."""
    if not path.is_file():
        raise InputError(f"{path}: {'is not a file' if path.exists() else 'no such file'}")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a STAR file (not text)") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    alone = text.count("\r") > text.count("\r\n")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in text or not re.search(r"^\s*data_", text, re.MULTILINE):
        raise InputError(f"{path}: not a STAR file (no line begins with data_)")
    return text, alone


def _fault(text: str) -> str:
    """The first line that is not as the format wants it, for a message, or ""; the text is without comments.

    A block is empty, or a loop (names of columns, then rows of as many values), or has lines of a name and its value.
    """
    block, part, columns = "", "none", 0
    for number, line in enumerate(text.split("\n"), start=1):
        tokens = _TOKEN.findall(line)
        if not tokens:
            continue
        if any(token.startswith('"') and not (len(token) > 1 and token.endswith('"')) for token in tokens):
            return f"line {number}: a quotation mark is opened and not closed"
        if _CONTROL.search(line):
            return f"line {number}: holds a control character, expected plain text"
        if tokens[0].startswith("data_"):
            block, part = tokens[0], "begun"
        elif tokens[0].startswith("loop_"):
            part, columns = "names", 0
        elif part == "names" and tokens[0].startswith("_"):
            columns += 1
        elif part in ("names", "values"):
            part = "values"
            if len(tokens) != columns:
                found = f"{len(tokens)} value{'s'[: len(tokens) != 1]}"
                return f"line {number}: {found}, expected {columns} for the columns of {block}"
        elif part in ("begun", "pairs") and tokens[0].startswith("_"):
            part = "pairs"
            if len(tokens) != 2:
                found = f"{tokens[0]} of {block} has {len(tokens) - 1} values"
                return f"line {number}: {found}, expected 1 (or loop_ before the names of columns)"
    return f"no particles: block {block} is empty, expected loop_, names of columns, and rows" if part == "begun" else ""


def _refuse_short_rows(path: Path, frames: dict[str, pd.DataFrame], text: str) -> None:
    """A row with too few values comes as empty strings at its end; legal empty strings are quoted in the file."""
    empty = {name: (frame == "").to_numpy() for name, frame in frames.items()}
    if sum(int(cells.sum()) for cells in empty.values()) <= len(_EMPTY_TOKEN.findall(text)):
        return
    raise InputError(f"{path}: {_fault(text) or 'a row has fewer values than its block has columns'}")


def _with_nan_strings(frames: dict[str, pd.DataFrame], text: str) -> dict[str, pd.DataFrame]:
    """The tables with, in place of missing values, the strings that starfile took for them."""
    tokens = _NAN_TOKEN.findall(text)
    missing = sum(int(frame.isna().sum().sum()) for frame in frames.values())
    # file order is block by block, row by row; should a NaN inside quotes spoil the count, all are spelled alike
    spelled = iter(tokens if len(tokens) == missing else ["nan"] * missing)
    restored = {}
    for name, frame in frames.items():
        if frame.isna().any(axis=None):
            cells = frame.to_numpy(dtype=object)
            for row, column in np.argwhere(frame.isna().to_numpy()):
                cells[row, column] = next(spelled)
            restored[name] = pd.DataFrame(cells, columns=frame.columns, dtype=str)
    return restored


def _refuse_apostrophes(path: Path, text: str) -> None:
    """The parser takes every apostrophe for a quotation mark: a value with one inside would come back as another."""
    for number, line in enumerate(text.split("\n"), start=1):
        if "'" not in line:
            continue
        for token in _TOKEN.findall(line):
            inside = token[1:-1] if len(token) > 1 and token[0] == token[-1] == "'" else token
            if "'" in inside:
                raise InputError(f"{path}: line {number}: {token} has an apostrophe inside, expected values without")


def _parse(path: Path) -> dict[str, Block]:
    whole, alone = _read_text(path)
    text = _COMMENT.sub("", whole)
    _refuse_apostrophes(path, text)
    names_of_blocks = re.findall(r"^\s*data_(\S*)", text, re.MULTILINE)
    twice = next((name for n, name in enumerate(names_of_blocks) if name and name in names_of_blocks[:n]), None)
    if twice is not None:
        raise InputError(f"{path}: has two blocks data_{twice}, expected one")
    # every name that may be a column: starfile then converts nothing to numbers
    names = sorted(set(re.findall(r"^\s*_(\S+)", text, re.MULTILINE)))
    blocks = _blocks(path, whole if alone else None, text, names)
    for name, block in blocks.items():
        if isinstance(block, pd.DataFrame) and not block.columns.is_unique:
            raise InputError(f"{path}: block data_{name} has column {block.columns[block.columns.duplicated()][0]} twice")
    frames = {name: block for name, block in blocks.items() if isinstance(block, pd.DataFrame)}
    _refuse_short_rows(path, frames, text)
    return blocks | _with_nan_strings(frames, text)


def _blocks(path: Path, rewritten: str | None, text: str, names: list[str]) -> dict[str, Block]:
    """starfile's blocks; it counts a file's lines by newlines alone, so a file with other ends is read as ``rewritten``."""
    with ExitStack() as stack:
        # starfile reads through linecache, which keeps old text and looks for relative names along sys.path
        linecache.clearcache()
        stack.callback(linecache.clearcache)
        source = path.resolve()
        if rewritten is not None:
            source = Path(stack.enter_context(TemporaryDirectory(prefix="ace-em-"))) / "table.star"
            source.write_text(rewritten, encoding="utf-8")
        try:
            return starfile.read(source, always_dict=True, parse_as_string=names)
        except (ValueError, TypeError, IndexError, KeyError) as error:
            expected = "expected blocks data_..., each of loop_, names of columns, and rows of as many values"
            raise InputError(f"{path}: {_fault(text) or f'cannot be read as a STAR file; {expected}'}") from error


def _as_rows(block: Block) -> pd.DataFrame:
    """A block that is not a loop is a table of one row."""
    return block if isinstance(block, pd.DataFrame) else pd.DataFrame([block], dtype=str)


def read_particle_star(path: Path | str) -> ParticleTable:
    """Read the particles of a RELION STAR file: 3.1 and later (with optics groups), or older (one block of any name)."""
    path = Path(path)
    blocks = _parse(path)
    candidates = [name for name, block in blocks.items() if "rlnImageName" in block]
    if not candidates:
        found = "; ".join(
            f"data_{name} with {', '.join(map(str, list(block)[:4])) or 'nothing'}" for name, block in list(blocks.items())[:4]
        )
        raise InputError(f"{path}: no particles: no block has a column rlnImageName (found {found})")
    name = "particles" if "particles" in candidates else candidates[0]
    particles = _as_rows(blocks.pop(name))
    if len(particles) == 0:
        raise InputError(f"{path}: block data_{name} has no rows")
    optics = _as_rows(blocks.pop("optics")) if "optics" in blocks else None
    return fields_from_blocks(ParticleTable(path, optics, particles, blocks, name))


def refuse_unwritable(table: ParticleTable) -> None:
    """starfile would write an apostrophe or a number sign so that another text, or none, is read again."""
    for name, column in table.particles.items():
        whole = "\n".join(column)
        # a line break between two values is ours
        if _UNWRITABLE.search(whole) or whole.count("\n") >= max(len(column), 1):
            row = next(i for i, text in enumerate(column) if _UNWRITABLE.search(text) or "\n" in text)
            found = f"{table.cell(row, str(name))}: {column.iloc[row]!r}"
            raise InputError(f"{found} cannot stand in a STAR file because of its ', # or control character")


def write_star(path: Path | str, table: ParticleTable) -> None:
    """Write a table, atomically; equal tables give equal bytes.

    What a cryoSPARC file said of the particles, and RELION cannot say, goes into blocks that RELION passes over.
    """
    table = with_field_blocks(table)
    refuse_unwritable(table)
    # the others come last: one of them may have image names too, and the first such block is read as the particles
    blocks: dict[str, Block] = {} if table.optics is None else {"optics": table.optics}
    blocks |= {table.particle_block: table.particles} | table.others
    text = starfile.to_string(blocks)
    # starfile's first line carries the time of writing
    text = "# Created by ace-em\n" + text.partition("\n")[2]
    with replace_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def with_poses(
    table: ParticleTable,
    pose_angles_deg: np.ndarray,
    origin_angstrom: np.ndarray,
    half_set: np.ndarray | None,
    pixel_size_angstrom: float,
) -> ParticleTable:
    """The same table with new poses; columns it had keep their place, new ones come last.

    Parameters
    ----------
    pose_angles_deg : (N, 3) RELION's rot, tilt, psi in degrees.
    origin_angstrom : (N, 2) RELION's origin in x, y order: the shift that brings the particle back to the centre.
    half_set : (N,) 1 or 2, or None to leave rlnRandomSubset alone.
    pixel_size_angstrom : of the particle images; a table without optics (3.0) has its origin in pixels.
    """
    if pose_angles_deg.shape != (len(table), 3) or origin_angstrom.shape != (len(table), 2):
        raise ValueError(f"{len(table)} particles, angles {pose_angles_deg.shape}, origins {origin_angstrom.shape}")
    old_format = table.optics is None
    origin_names, stale = (_ORIGIN_PX, _ORIGIN_ANGSTROM) if old_format else (_ORIGIN_ANGSTROM, _ORIGIN_PX)
    origin = origin_angstrom / pixel_size_angstrom if old_format else origin_angstrom
    particles = table.particles.drop(columns=[name for name in stale if name in table.particles])
    values = np.concatenate([pose_angles_deg, origin], axis=1)
    for name, column in zip(_ANGLES + origin_names, values.T, strict=True):
        # adding zero turns a rounded -0 into 0
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
