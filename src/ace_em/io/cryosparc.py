"""Particles of cryoSPARC's .cs files as a RELION 3.1 table, and any table as a .cs file; nothing is lost either way.

What one format cannot say travels in the other as it was: cryoSPARC's fields in blocks of a STAR file
(:mod:`ace_em.io.cs.star_blocks`), RELION's text in fields of a .cs file (:mod:`ace_em.io.cs.relion_text`). On the way back
the old bits, or letters, are used wherever the value has not changed by more than rounding; where it has, the new one wins.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ace_em.errors import InputError
from ace_em.io.cs.file import Fields, join, load_fields, load_joined, save_fields
from ace_em.io.cs.links import BOX, HALF_SET, SIGN_OF_RELION, check_fields
from ace_em.io.cs.relion_text import table_of_text, with_text, without_text
from ace_em.io.cs.star_blocks import UID
from ace_em.io.cs.to_columns import new_table, with_changed_fields
from ace_em.io.cs.to_fields import new_fields, updated
from ace_em.io.particle_table import Block, ParticleTable


def read_cryosparc(path: Path | str, passthrough: Sequence[Path | str] = ()) -> ParticleTable:
    """Read the particles of a .cs file in the form of a RELION 3.1 STAR file.

    Parameters
    ----------
    path : the .cs file.
    passthrough : files of the same job with the fields that it lacks. Without them, the passthrough files beside it are
        used, should it lack ``blob/...`` or ``ctf/...``.
    """
    path = Path(path)
    fields = load_joined(path, passthrough)
    check_fields(path, fields)
    return table_of_fields(path, fields)


def with_fields_of(table: ParticleTable, files: Sequence[Path | str]) -> ParticleTable:
    """The table of a STAR file that came from cryoSPARC, with the fields of the ``files`` that it came from.

    RELION keeps the column csUid, which tells whose fields are whose, but leaves out the blocks with the fields.
    """
    uid = table.particles[UID].tolist() if UID in table.particles else []
    if not uid or not all(text.isdecimal() and int(text) < 2**64 for text in uid):
        found = f"no column {UID}" if not uid else f"a {UID} that is no number"
        raise InputError(f"{table.path}: {found}, by which to find the particles in {files[0]}")
    fields: Fields = table.cryosparc or {"uid": np.array([int(text) for text in uid], dtype=np.uint64)}
    for file in files:
        fields = join(table.path, fields, file, load_fields(file))
    check_fields(Path(files[0]), fields)
    return replace(table, cryosparc=fields)


def write_cryosparc(path: Path | str, table: ParticleTable, box: int = 0, sign: float = SIGN_OF_RELION) -> None:
    """Write a .cs file, atomically, rows in the table's order.

    What a table that never was in cryoSPARC may not say: ``box``, the image edge in pixels, is used where it lacks
    rlnImageSize; ``sign`` is +1 where the protein is white in the files, -1 where it is black.
    """
    save_fields(path, fields_of_table(table, box, sign))


def table_of_fields(path: Path, fields: Fields) -> ParticleTable:
    """The table of the fields: the STAR file that they were made from, as far as it still holds, or a new one."""
    found = table_of_text(path, fields)
    if found is None:
        return new_table(path, fields)
    text, carried = found
    try:
        merged = with_changed_fields(text, fields)
        box = int(fields[BOX][0, 0]) if BOX in fields else 0
        # a STAR file alone cannot say that the protein is black: such fields are carried
        if not carried and _same_bits(fields_of_table(merged, box), fields):
            return merged
    except InputError:
        # its text is not what it was: the fields by themselves are good
        return new_table(path, fields)
    particles = merged.particles if UID in merged.particles else merged.particles.assign(**{UID: fields["uid"].astype(str)})
    return replace(merged, particles=particles, cryosparc=fields)


def fields_of_table(table: ParticleTable, box: int = 0, sign: float = SIGN_OF_RELION) -> Fields:
    """The fields of a .cs file for the table: those that it carries, with what has changed since, or new ones."""
    if table.cryosparc is None:
        return with_text(new_fields(table, box, sign), table)
    if _same_table(table_of_fields(table.path, table.cryosparc), table):
        return table.cryosparc
    fields = updated(table.cryosparc, table)
    plain = without_text(fields)
    again = new_table(table.path, plain)
    # a table from a .cs file has no letters of its own: what has a field needs no text
    letters = len(plain) < len(fields) or table.path.suffix.lower() != ".cs"
    said = _same_table(again, table) if letters else _same_columns(again, table)
    return plain if said else with_text(plain, table)


def _same_bits(a: Fields, b: Fields) -> bool:
    return list(a) == list(b) and all(
        a[name].dtype == b[name].dtype and a[name].shape == b[name].shape and a[name].tobytes() == b[name].tobytes() for name in a
    )


def _same_columns(a: ParticleTable, b: ParticleTable) -> bool:
    """Whether all columns of ``b`` are in ``a``, and it has no other blocks."""
    # particles of one half-set only: the fields say so, the table made of them does not
    names = {str(name) for frame in (b.particles, b.optics) if frame is not None for name in frame} - {HALF_SET.column}
    return not b.others and all(a.has_column(name) for name in names)


def _same_table(a: ParticleTable, b: ParticleTable) -> bool:
    """Whether two tables are the same letter for letter."""
    if a.particle_block != b.particle_block or list(a.others) != list(b.others) or (a.optics is None) != (b.optics is None):
        return False
    if a.optics is not None and b.optics is not None and not _same_block(a.optics, b.optics):
        return False
    return _same_block(a.particles, b.particles) and all(_same_block(a.others[name], b.others[name]) for name in a.others)


def _same_block(a: Block, b: Block) -> bool:
    if isinstance(a, dict) or isinstance(b, dict):
        return a is b or (isinstance(a, dict) and isinstance(b, dict) and list(a.items()) == list(b.items()))
    return list(a) == list(b) and np.array_equal(a.to_numpy(dtype=object), b.to_numpy(dtype=object))
