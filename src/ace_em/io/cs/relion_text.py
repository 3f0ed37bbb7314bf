"""A STAR file inside a .cs file, letter for letter: text fields ``relion/rlnXxx``, and all but the particles in pieces.

A .cs file has nothing but rows, and cryoSPARC may leave some out or move them. So the rest of the STAR file (optics, other
blocks) is cut into pieces, one to a row and over again, and any rows that hold each piece once give it back.
"""

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ace_em.io.cs.file import Fields
from ace_em.io.cs.images import as_bytes
from ace_em.io.cs.links import FIELD_NAMES
from ace_em.io.particle_table import Block, ParticleTable

_PREFIX = "relion/"
_PIECE, _INDEX, _COUNT = "relion/file_piece", "relion/file_piece_index", "relion/file_piece_count"
# short pieces, for they are in every row, but each in so many rows that a selection of particles has it still
_PIECE_BYTES, _REPEATS = 64, 32


def without_text(fields: Fields) -> Fields:
    return {name: values for name, values in fields.items() if not name.startswith(_PREFIX)}


def with_text(fields: Fields, table: ParticleTable) -> Fields:
    """The fields with the table's text after them."""
    rest = {
        "block": table.particle_block,
        "columns": list(table.particles),
        "optics": None if table.optics is None else _as_json(table.optics),
        "others": {name: _as_json(block) for name, block in table.others.items()},
        # whether the STAR file had cryoSPARC's fields in it
        "cryosparc": table.cryosparc is not None,
    }
    packed = base64.b64encode(zlib.compress(json.dumps(rest).encode(), 9)).decode()
    n = len(table)
    size = max(_PIECE_BYTES, -(-len(packed) // max(n // _REPEATS, 1)))
    pieces = [packed[start : start + size] for start in range(0, len(packed), size)]
    index = np.arange(n) % len(pieces)
    text = {_PREFIX + str(name): as_bytes(table.particles[name].tolist()) for name in table.particles}
    text[_PIECE] = as_bytes(pieces)[index]
    text |= {_INDEX: index.astype("<u4"), _COUNT: np.full(n, len(pieces), "<u4")}
    return without_text(fields) | text


def table_of_text(path: Path, fields: Fields) -> tuple[ParticleTable, bool] | None:
    """The STAR file, and whether it had cryoSPARC's fields in it; None where there is none, or not enough is left of it."""
    rest = _rest(fields)
    if rest is None:
        return None
    try:
        columns = {name: [value.decode() for value in fields[_PREFIX + name].tolist()] for name in rest["columns"]}
        particles = pd.DataFrame(columns, dtype=str)
        optics = None if rest["optics"] is None else _from_json(rest["optics"])
        others = {name: _from_json(block) for name, block in rest["others"].items()}
        if isinstance(optics, dict) or "rlnImageName" not in particles:
            return None
        return ParticleTable(path, optics, particles, others, rest["block"], field_names=FIELD_NAMES), bool(rest["cryosparc"])
    except (KeyError, ValueError, TypeError, AttributeError):
        return None


def _rest(fields: Fields) -> dict[str, Any] | None:
    if not {_PIECE, _INDEX, _COUNT} <= set(fields):
        return None
    pieces = set(zip(fields[_INDEX].tolist(), fields[_PIECE].tolist(), strict=True))
    counts = np.unique(fields[_COUNT])
    # a piece that is missing, or two files joined
    if len(counts) != 1 or sorted(index for index, _ in pieces) != list(range(int(counts[0]))):
        return None
    try:
        return json.loads(zlib.decompress(base64.b64decode(b"".join(piece for _, piece in sorted(pieces)))))
    except (ValueError, zlib.error, TypeError):
        return None


def _as_json(block: Block) -> Any:
    if isinstance(block, dict):
        return block
    return {"columns": list(block), "rows": block.to_numpy(dtype=object).tolist()}


def _from_json(block: Any) -> Block:
    if set(block) == {"columns", "rows"} and isinstance(block["rows"], list):
        return pd.DataFrame(block["rows"], columns=block["columns"], dtype=str)
    return dict(block)
