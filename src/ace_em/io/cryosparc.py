"""cryoSPARC's .cs files: read with their passthrough files, joined on uid, and written.

Most .cs files are in NumPy's format and are read with NumPy, which keeps every bit and type. The compressed stream format is
read with cryosparc-tools. Nothing is unpickled. A particle table keeps the fields that it was read from; fields whose values have
not changed by more than rounding are written back bit for bit.
"""

import importlib.util
import io
import re
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ace_em.errors import InputError
from ace_em.io.atomic import replace_atomically
from ace_em.io.cryosparc_columns import SIGN_OF_RELION, Fields, check_fields
from ace_em.io.cryosparc_export import fields_of_table
from ace_em.io.cryosparc_import import table_of_fields
from ace_em.io.particle_table import UID, ParticleTable, cryosparc_uids

# run in a separate process, because a damaged stream causes a segmentation fault
_READ_STREAM = """
import sys, numpy
from cryosparc.dataset import Dataset
numpy.save(sys.stdout.buffer, Dataset.load(sys.argv[1]).to_records(fixed=True), allow_pickle=False)
"""
_NUMPY, _STREAM = b"\x93NUMPY", b"\x95CSDAT"
# the header of a file with many fields exceeds NumPy's default limit of 10,000 bytes
_MAX_HEADER_BYTES = 2**20


def read_cryosparc(path: Path | str, passthrough: Sequence[Path | str] = ()) -> ParticleTable:
    """Read the particles of a .cs file as a RELION 3.1 table, which keeps the fields.

    Parameters
    ----------
    path : the .cs file.
    passthrough : files of the same job with the fields that it lacks. If none are given and ``blob/...`` or ``ctf/...`` is
        missing, the job's passthrough files in the same folder are used.
    """
    path = Path(path)
    fields = load_joined(path, passthrough)
    check_fields(path, fields)
    return table_of_fields(path, fields)


def with_fields_of(table: ParticleTable, files: Sequence[Path | str]) -> ParticleTable:
    """The table of a STAR file that came from cryoSPARC, with the fields of the .cs ``files`` that it came from.

    Particles are matched by the column csUid, which RELION keeps.
    """
    uid = cryosparc_uids(table)
    if uid is None:
        found = f"a {UID} that is not a number" if UID in table.particles else f"no column {UID}"
        raise InputError(f"{table.path}: {found}: particles cannot be matched with {files[0]}")
    first = Path(files[0])
    fields: Fields = {}
    for file in files:
        fields = join(table.path, uid, fields, file)
    fields = _completed(table.path, fields, uid, first, _passthrough_candidates(first))
    check_fields(first, fields)
    return replace(table, cryosparc=fields)


def write_cryosparc(path: Path | str, table: ParticleTable, box: int = 0, sign: float = SIGN_OF_RELION) -> None:
    """Write a .cs file atomically, rows in the order of the table; ``box`` and ``sign`` as in :func:`fields_of_table`."""
    save_fields(path, fields_of_table(table, box, sign))


def load_fields(path: Path | str) -> Fields:
    """Fields (N, ...) of a .cs file in its order, N at least 1; ``uid`` (N,) is among them and unique."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: {'is not a file' if path.exists() else 'no such file'}")
    try:
        with path.open("rb") as file:
            magic = file.read(6)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if magic not in (_NUMPY, _STREAM):
        raise InputError(f"{path}: not a cryoSPARC .cs file (first bytes {magic!r})")
    records = _load_numpy(path) if magic == _NUMPY else _load_stream(path)
    return _checked(path, records)


def _load_numpy(path: Path) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            # numpy warns about files from Python 2, which cryoSPARC used until version 3
            warnings.simplefilter("ignore")
            return np.load(path, allow_pickle=False, max_header_size=_MAX_HEADER_BYTES)
    # numpy parses the header as Python source: a damaged one can raise almost any exception
    except Exception as error:
        if "allow_pickle" in str(error):
            message = "contains pickled Python objects, which could run code when loaded; save it without them"
            raise InputError(f"{path}: {message}") from error
        found = f"{path.stat().st_size} bytes"
        raise InputError(f"{path}: damaged or truncated ({found}), expected a complete cryoSPARC file") from error


def _load_stream(path: Path) -> np.ndarray:
    try:
        found = importlib.util.find_spec("cryosparc.dataset") is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        message = "reading cryoSPARC files needs cryosparc-tools: pip install 'ace-em[cryosparc]'"
        raise InputError(f"{path}: {message}")
    done = subprocess.run([sys.executable, "-c", _READ_STREAM, str(path)], capture_output=True, check=False)
    try:
        if done.returncode == 0:
            return np.load(io.BytesIO(done.stdout), allow_pickle=False, max_header_size=_MAX_HEADER_BYTES)
    except (ValueError, EOFError):
        pass
    raise InputError(f"{path}: damaged or truncated (cryosparc-tools cannot read it)")


def _checked(path: Path, records: np.ndarray) -> Fields:
    names = records.dtype.names
    if names is None or "uid" not in names or records.ndim != 1:
        raise InputError(f"{path}: not a cryoSPARC particle file: no field uid")
    if len(records) == 0:
        raise InputError(f"{path}: contains no particles")
    if records.dtype["uid"].kind != "u" or records.dtype["uid"].shape:
        raise InputError(f"{path}: field uid has type {records.dtype['uid']}, expected unsigned integers")
    nested = [name for name in names if records.dtype[name].base.names is not None or 0 in records.dtype[name].shape]
    if nested:
        raise InputError(f"{path}: field {nested[0]} has type {records.dtype[nested[0]]}, expected numbers or text")
    # contiguous copies: later code works field by field
    fields = {name: np.ascontiguousarray(records[name]) for name in names}
    order = np.argsort(fields["uid"], kind="stable")
    repeats = np.flatnonzero(np.diff(fields["uid"][order]) == 0)
    if len(repeats):
        first, second = order[repeats[0]], order[repeats[0] + 1]
        raise InputError(f"{path}: uid {fields['uid'][first]} is in row {first + 1} and in row {second + 1}")
    return fields


def save_fields(path: Path | str, fields: Fields) -> None:
    """Write a .cs file in NumPy's format, which every version of cryoSPARC reads, atomically."""
    records = np.empty(len(fields["uid"]), dtype=[(name, values.dtype, values.shape[1:]) for name, values in fields.items()])
    for name, values in fields.items():
        records[name] = values
    with replace_atomically(path) as temporary, temporary.open("wb") as file:
        np.save(file, records, allow_pickle=False)


def join(path: Path, uid: np.ndarray, fields: Fields, passthrough: Path | str) -> Fields:
    """The fields (N, ...) of ``path``, followed by the additional ones of ``passthrough``, rows matched by ``uid`` (N,)."""
    other = load_fields(passthrough)
    order = np.argsort(other["uid"])
    place = np.searchsorted(other["uid"], uid, sorter=order).clip(max=len(order) - 1)
    rows = order[place]
    absent = np.flatnonzero(other["uid"][rows] != uid)
    if len(absent):
        row = int(absent[0])
        count = f"{len(absent)} of {len(rows)} particles of {path}"
        raise InputError(f"{passthrough}: lacks {count}, such as uid {uid[row]} of row {row + 1}")
    return fields | {name: values[rows] for name, values in other.items() if name not in fields}


def missing_groups(fields: Fields) -> list[str]:
    """Groups of required fields, ``blob`` and ``ctf``, without any field."""
    return [group for group in ("blob", "ctf") if not any(name.startswith(f"{group}/") for name in fields)]


def load_joined(path: Path, passthrough: Sequence[Path | str]) -> Fields:
    """Fields of a .cs file and of its passthrough files; if none are given, those of its job are used where needed."""
    fields = load_fields(path)
    for other in passthrough:
        fields = join(path, fields["uid"], fields, other)
    return _completed(path, fields, fields["uid"], path, [] if passthrough else _passthrough_candidates(path))


def _completed(path: Path, fields: Fields, uid: np.ndarray, source: Path, candidates: list[Path]) -> Fields:
    """The fields of particles ``uid`` (N,), completed from the passthrough files ``candidates`` of the .cs file ``source``."""
    unusable = ""
    for candidate in candidates:
        if not missing_groups(fields):
            break
        try:
            joined = join(path, uid, fields, candidate)
            fields = joined if missing_groups(joined) != missing_groups(fields) else fields
        except InputError as error:
            # for other particles of the job, or damaged: try the next file
            unusable = unusable or f" (in the same folder, {error})"
    missing = missing_groups(fields)
    if missing:
        groups = " and ".join(f"{group}/..." for group in missing)
        raise InputError(f"{source}: has no {groups} fields; give the job's passthrough file, which contains them{unusable}")
    return fields


def _passthrough_candidates(path: Path) -> list[Path]:
    """Passthrough files of the job of ``path``: ``P1_J2_passthrough_particles.cs`` for ``P1_J2_003_particles.cs``."""

    def job_of(name: str) -> str:
        found = re.match(r"(?:cryosparc_)?(?:P\d+_)?(J\d+)_", name)
        return found[1] if found else ""

    candidates = sorted(path.absolute().parent.glob("*passthrough*.cs"))
    return [other for other in candidates if other.name != path.name and job_of(other.name) == job_of(path.name)]
