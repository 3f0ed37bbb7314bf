"""How much memory there is; and when a device has none for a block of work: halve the block, say so, go on."""

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")
_LOG = logging.getLogger("ace_em")
_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether CUDA, MPS or the CPU's allocator had no memory; each has an error of its own."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error)))


def available_bytes() -> float:
    """Memory that this process may still take: what the system has, or what its control group (a container, a job) has left."""
    return min(_system_bytes(), _group_bytes(Path("/sys/fs/cgroup")))


def _system_bytes() -> float:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        # no word of what is free: half of what there is
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2
    except (AttributeError, ValueError, OSError):
        return 4 * 2**30


def _group_bytes(root: Path) -> float:
    """The least that the control groups (version 2) of this process have left; infinite where they set no limit."""
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return float("inf")
    inner = next((line.removeprefix("0::/") for line in groups if line.startswith("0::/")), "")
    left, group = float("inf"), root / inner
    for folder in (group, *group.parents):
        if not folder.is_relative_to(root):
            break
        try:
            limit, used = ((folder / f"memory.{name}").read_text().strip() for name in ("max", "current"))
            cached = _file_cache(folder)
        except OSError:
            continue
        if limit != "max":
            left = min(left, float(limit) - float(used) + cached)
    return max(left, 0.0)


def _file_cache(folder: Path) -> float:
    """Bytes that a group holds of files, which the system takes back when they are needed."""
    counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    return float(counts.get("inactive_file", 0)) + float(counts.get("active_file", 0))


def free_cached() -> None:
    """Give what torch keeps for later back to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def where_it_fits(device: torch.device, make: Callable[[torch.device], T]) -> T:
    """What ``make`` gives on a device, or on the CPU where the device has no memory for it."""
    try:
        return make(device)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or device.type == "cpu":
            raise
    # out of the handler, whose traceback holds on to what was made so far
    free_cached()
    _LOG.warning("out of memory: a map is too large for the %s device and stays on the CPU", device.type)
    return make(torch.device("cpu"))


def in_blocks(n: int, block: int, work: Callable[[slice], T]) -> list[T]:
    """What ``work`` gives for rows 0 to ``n``, ``block`` of them at a time, or fewer when there is no memory for as many."""
    done: list[T] = []
    start, block = 0, max(1, block)
    while start < n:
        try:
            done.append(work(slice(start, min(start + block, n))))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or min(block, n - start) == 1:
                raise
        else:
            start += block
            continue
        # out of the handler, whose traceback holds on to what was made so far
        block = min(block, n - start) // 2
        free_cached()
        _LOG.warning("out of memory: going on in blocks of %d images", block)
    return done
