"""Selection of particles: index files, other particle files, random subsets."""

import posixpath
from pathlib import Path

import numpy as np

from ace_em.data.split import subset as random_subset
from ace_em.errors import InputError
from ace_em.io.particle_table import ParticleTable, cryosparc_uids, image_paths, is_cryosparc, read_particle_table


def selected_rows(table: ParticleTable, subset: str, exclude: str, max_particles: int, seed: int) -> np.ndarray:
    """Rows of a table, ascending, (n,) int64 from 0.

    Parameters
    ----------
    subset, exclude : files with the rows to use and to omit (:func:`named_rows`); "" for none.
    max_particles : upper limit, drawn at random from the remaining rows; 0 for all.
    """
    if max_particles < 0:
        raise InputError(f"--max-particles {max_particles}: expected 0 (all) or more")
    if not 0 <= seed < 2**31:
        raise InputError(f"--seed {seed}: expected 0 to 2^31")
    rows = np.arange(len(table), dtype=np.int64)
    if subset:
        rows = np.unique(named_rows(table, Path(subset)))
    if exclude:
        rows = np.setdiff1d(rows, named_rows(table, Path(exclude)))
    if len(rows) == 0:
        raise InputError(f"{table.path}: --subset and --exclude leave none of {len(table)} particles")
    return rows[random_subset(len(rows), max_particles, seed)] if max_particles else rows


def named_rows(table: ParticleTable, path: Path) -> np.ndarray:
    """Rows (n,) listed in a file.

    A text file has row numbers from 1, as in RELION and in messages. A .npy file has indices from 0 (as in cryoDRGN) or one
    bool per particle. Particles of a .star or .cs file are matched by uid if both files have it, otherwise by image name.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected row numbers (text, .npy) or particles (.star, .cs)")
    suffix = path.suffix.lower()
    if suffix == ".star" or is_cryosparc(path):
        return _rows_of(table, read_particle_table(path))
    if suffix in (".pkl", ".pickle"):
        raise InputError(f"{path}: pickle files are not opened, because they can run code; save the indices as .npy (numpy.save)")
    first, rows = (0, _numpy_rows(path, len(table))) if suffix == ".npy" else (1, _text_rows(path))
    bad = np.flatnonzero((rows < 0) | (rows >= len(table)))
    if len(bad):
        found, entry = int(rows[bad[0]]) + first, int(bad[0]) + 1
        raise InputError(f"{path}: entry {entry} is {found}, expected {first} to {len(table) - 1 + first}, rows of {table.path}")
    return rows


def _numpy_rows(path: Path, n: int) -> np.ndarray:
    try:
        with path.open("rb") as file:
            values = np.load(file, allow_pickle=False)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    # numpy parses the header as Python source: a damaged one can raise almost any exception
    except Exception as error:
        raise InputError(f"{path}: not a NumPy array of indices, expected a file written by numpy.save") from error
    if not isinstance(values, np.ndarray):
        raise InputError(f"{path}: an archive of arrays (.npz), expected one array of indices (.npy)")
    if values.dtype == bool and values.shape == (n,):
        return np.flatnonzero(values)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise InputError(f"{path}: {values.dtype} of shape {values.shape}, expected indices (n,) or one bool for each of {n}")
    return values.astype(np.int64)


def _text_rows(path: Path) -> np.ndarray:
    try:
        words = path.read_text().split()
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: not a text file of row numbers") from error
    for entry, word in enumerate(words, start=1):
        if not (word.isascii() and word.isdecimal() and len(word) < 19):
            raise InputError(f"{path}: entry {entry} is {word!r}, expected a row number from 1")
    return np.array([int(word) for word in words], dtype=np.int64) - 1


def _image_keys(table: ParticleTable) -> np.ndarray:
    """Image names (N,) in a normal form: ``7@./a.mrcs`` and ``000007@a.mrcs`` are equal."""
    paths, indices = image_paths(table)
    return np.array([f"{index + 1}@{posixpath.normpath(path)}" for path, index in zip(paths, indices, strict=True)])


def _rows_of(table: ParticleTable, other: ParticleTable) -> np.ndarray:
    """Rows of ``table`` that are also in ``other``; InputError if ``other`` has further particles."""
    mine, theirs = cryosparc_uids(table), cryosparc_uids(other)
    if mine is None or theirs is None:
        mine, theirs = (_image_keys(t) for t in (table, other))
    missing = np.flatnonzero(~np.isin(theirs, mine))
    if len(missing):
        raise InputError(f"{other.path}: row {missing[0] + 1}: particle {theirs[missing[0]]} is not in {table.path}")
    return np.flatnonzero(np.isin(mine, theirs))
