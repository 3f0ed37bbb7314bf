"""Atomic writes: a temporary file in the target's folder is renamed when complete, so that no reader sees half of it."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replace_atomically(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path in the target's folder; on success it becomes ``path``, on error it is removed.

    The temporary name keeps the suffix of ``path``, because writers choose a format by it, and starts with a dot, so
    that ``*.star`` does not match a file still being written. A file that is already at ``path`` is replaced.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        # BaseException: the temporary file is removed after Ctrl-C and SystemExit too
        temporary.unlink(missing_ok=True)
        raise
    # the rename is on disk only after the folder has been synced
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
