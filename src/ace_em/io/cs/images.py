"""Image names: cryoSPARC's path and index from 0, RELION's ``000001@path`` with an index from 1."""

import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd

from ace_em.io.cs.file import Fields
from ace_em.io.cs.links import INDEX, PATH
from ace_em.io.cs.star_blocks import UID
from ace_em.io.image_name import parse_image_name
from ace_em.io.particle_table import ParticleTable


def texts(values: np.ndarray) -> np.ndarray:
    """(N,) Python strings of a text field; cryoSPARC writes ``>`` before some paths, which is no part of them."""
    codes, unique = pd.factorize(values)
    decoded = [v.decode(errors="replace") if isinstance(v, bytes) else str(v) for v in unique.tolist()]
    return np.array([text.removeprefix(">") for text in decoded], dtype=object)[codes]


def as_bytes(strings: Sequence[str] | np.ndarray) -> np.ndarray:
    """A text field; one byte longer than need be, as cryoSPARC makes it."""
    raw = [string.encode() for string in strings]
    return np.array(raw, dtype=f"S{max(map(len, raw), default=0) + 1}")


def names_of_fields(fields: Fields) -> list[str]:
    pairs = zip((fields[INDEX].astype(np.int64) + 1).tolist(), texts(fields[PATH]), strict=True)
    return [f"{index:06d}@{path}" for index, path in pairs]


def images_of_table(table: ParticleTable) -> tuple[np.ndarray, np.ndarray]:
    """Path (N,) and index from 0 (N,) of each image; a name without an index is a file of one image."""
    paths, indices = [], []
    for row, name in enumerate(table.particles["rlnImageName"]):
        index, path = parse_image_name(table, row, name)
        paths.append(path)
        indices.append((index or 1) - 1)
    return np.array(paths, dtype=object), np.array(indices, dtype=np.int64)


def uids_of_table(table: ParticleTable) -> np.ndarray:
    """A uid (N,) for each particle, none twice: the one in column csUid where it is good, or else of the image's name."""
    given = table.particles[UID].tolist() if UID in table.particles else [""] * len(table)
    kept = {text for text in given if text.isdecimal() and 0 < int(text) < 2**64}
    found, taken = [], {int(text) for text in kept}
    for text, name in zip(given, table.particles["rlnImageName"], strict=True):
        if text in kept:
            kept.discard(text)
            found.append(int(text))
            continue
        uid, repeat = _hash(name), 0
        while uid in taken:
            repeat += 1
            uid = _hash(f"{name} {repeat}")
        taken.add(uid)
        found.append(uid)
    return np.array(found, dtype=np.uint64)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
