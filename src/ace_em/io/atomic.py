"""A file is either its old self or complete: results are written beside the target and then renamed."""

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
        # an interrupt (Ctrl-C, SystemExit) must leave no litter either
        temporary.unlink(missing_ok=True)
        raise
    # the rename itself is on disk only once the folder is
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
