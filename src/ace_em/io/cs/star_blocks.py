"""cryoSPARC's fields inside a STAR file, bit for bit: the blocks ``data_cryosparc_fields`` and ``data_cryosparc``.

The first has one row per field and component; a component that is the same for all particles is written there, the others are
columns of the second, which has one row per particle. Its column csUid is also in the block of the particles, so that rows
that another program has left out or moved find their own.
"""

import math
from dataclasses import replace
from urllib.parse import quote_from_bytes, unquote_to_bytes

import numpy as np
import pandas as pd

from ace_em.io.particle_table import Block, ParticleTable

UID = "csUid"
_FIELDS, _VALUES = "cryosparc_fields", "cryosparc"
_PER_PARTICLE = "?"  # never a value: percent-encoding writes it as %3F
_EMPTY = "%"
# what a reader of STAR files may take for a missing value
_MISSING = ("nan", "null", "none", "na")


def with_field_blocks(table: ParticleTable) -> ParticleTable:
    """The table with its cryoSPARC fields as blocks, for a file; unchanged where it has none."""
    if table.cryosparc is None:
        return table
    uid = np.array(_as_text(table.cryosparc["uid"]), dtype=object)
    rows, columns = [], {UID: uid}
    for name, values in table.cryosparc.items():
        if name == "uid":
            rows.append((UID, "uid", values.dtype.str, "scalar", _PER_PARTICLE))
            continue
        shape = "x".join(map(str, values.shape[1:])) if values.ndim > 1 else "scalar"
        for k, component in enumerate(values.reshape(len(values), math.prod(values.shape[1:])).T):
            # the number keeps labels apart that would be alike
            label = f"cs_{len(rows)}_{''.join(c for c in name if c.isascii() and c.isalnum())}"
            label += "" if shape == "scalar" else f"_{k + 1}"
            text = _as_text(component)
            constant = len(text) > 0 and bool((text == text[0]).all())
            rows.append((label, _quoted(name.encode()), values.dtype.str, shape, text[0] if constant else _PER_PARTICLE))
            if not constant:
                columns[label] = text
    described = pd.DataFrame(rows, columns=["csLabel", "csField", "csType", "csShape", "csValue"], dtype=str)
    particles = table.particles
    if UID not in particles or not np.array_equal(particles[UID].to_numpy(dtype=object), uid):
        particles = particles.assign(**{UID: uid})
    blocks: dict[str, Block] = {_FIELDS: described, _VALUES: pd.DataFrame(columns, dtype=str)}
    return replace(table, particles=particles, others=table.others | blocks, cryosparc=None)


def fields_from_blocks(table: ParticleTable) -> ParticleTable:
    """The table with its cryoSPARC fields out of their blocks, each particle's own.

    Blocks that no longer fit (a particle is not in them or stands there twice, or they are damaged) stay as they are.
    """
    described, values = table.others.get(_FIELDS), table.others.get(_VALUES)
    if not isinstance(described, pd.DataFrame) or values is None or UID not in table.particles:
        return table
    frame = values if isinstance(values, pd.DataFrame) else pd.DataFrame([values], dtype=str)
    index = pd.Index(frame[UID]) if UID in frame else pd.Index([])
    wanted = pd.Index(table.particles[UID])
    if not index.is_unique or not wanted.is_unique or not wanted.isin(index).all():
        return table
    frame = frame.iloc[index.get_indexer(wanted)]
    try:
        fields = _decoded(described, frame)
    except (KeyError, ValueError, TypeError, OverflowError):
        return table
    others = {name: block for name, block in table.others.items() if name not in (_FIELDS, _VALUES)}
    return replace(table, others=others, cryosparc=fields)


def _decoded(described: pd.DataFrame, frame: pd.DataFrame) -> dict[str, np.ndarray]:
    fields: dict[str, np.ndarray] = {}
    for quoted, rows in described.groupby("csField", sort=False):
        dtype, shape_text = np.dtype(rows["csType"].iloc[0]), rows["csShape"].iloc[0]
        shape = () if shape_text == "scalar" else tuple(map(int, shape_text.split("x")))
        if dtype.hasobject or len(rows) != math.prod(shape):
            raise ValueError(f"field {quoted} is incomplete")
        values = np.empty((len(frame), len(rows)), dtype=dtype)
        for k, (label, value) in enumerate(zip(rows["csLabel"], rows["csValue"], strict=True)):
            text = frame[label].to_numpy(dtype=object) if value == _PER_PARTICLE else np.array([value], dtype=object)
            values[:, k] = _from_text(text, dtype)
        fields[unquote_to_bytes(str(quoted)).decode()] = values.reshape((len(frame), *shape))
    if "uid" not in fields:
        raise ValueError("no field uid")
    return fields


def _as_text(values: np.ndarray) -> np.ndarray:
    """(N,) tokens without blanks from (N,) values, that give the same bits again."""
    kind = values.dtype.kind
    if kind in "iu":
        return values.astype(str).astype(object)
    if kind == "f" and values.dtype.itemsize in (4, 8):
        # the shortest decimal that is this number and no other
        text = values.astype(values.dtype.newbyteorder("=")).astype(str).astype(object)
        odd = np.isnan(values)
        text[odd] = _hex(values[odd])  # a NaN has a sign and a payload
        return text
    if kind in "SU":
        codes, unique = pd.factorize(values)
        text_of = [_quoted(value if isinstance(value, bytes) else str(value).encode()) for value in unique.tolist()]
        return np.array(text_of, dtype=object)[codes]
    return _hex(values)


def _hex(values: np.ndarray) -> np.ndarray:
    # an element by itself would come in this machine's byte order, not in the field's
    raw, size = values.tobytes(), values.dtype.itemsize
    return np.array(["x" + raw[i * size : (i + 1) * size].hex() for i in range(len(values))], dtype=object)


def _from_text(text: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if dtype.kind in "iu":
        return text.astype(str).astype(dtype)
    if dtype.kind in "SU":
        codes, unique = pd.factorize(text)
        raw = [b"" if token == _EMPTY else unquote_to_bytes(token) for token in unique]
        return np.array(raw if dtype.kind == "S" else [value.decode() for value in raw], dtype=dtype)[codes]
    odd = np.array([token.startswith("x") for token in text])
    plain = np.where(odd, "0", text).astype(str)
    values = plain.astype(dtype) if dtype.kind == "f" else np.zeros(len(text), dtype)
    if odd.any():
        values[odd] = np.frombuffer(bytes.fromhex("".join(token[1:] for token in text[odd])), dtype=dtype)
    return values


def _quoted(raw: bytes) -> str:
    text = quote_from_bytes(raw, safe="/.,:;=+@-_~")
    if not text:
        return _EMPTY
    if text.lower() in _MISSING or text[0] in "_;" or text.lower().startswith(("data_", "loop_")):
        return f"%{raw[0]:02X}" + text[1:]
    return text
