"""Processing in blocks, which are made smaller when a device runs out of memory."""

import logging
import re
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")
_LOG = logging.getLogger("ace_em")
_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether CUDA, MPS or the CPU allocator ran out of memory; each raises a different error."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error)))


def free_cached() -> None:
    """Release the GPU memory cached by torch."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def where_it_fits(device: torch.device, make: Callable[[torch.device], T]) -> T:
    """The result of ``make`` on a device, or on the CPU if the device runs out of memory."""
    try:
        return make(device)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or device.type == "cpu":
            raise
    # outside the except clause, whose traceback keeps the partial results in memory
    free_cached()
    _LOG.warning("out of memory: a map is too large for the %s device and stays on the CPU", device.type)
    return make(torch.device("cpu"))


def in_blocks(n: int, block: int, work: Callable[[slice], T]) -> list[T]:
    """The results of ``work`` for blocks of rows that cover 0 to ``n``; the block size is halved when memory runs out."""
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
        # outside the except clause, whose traceback keeps partial results in memory
        block = min(block, n - start) // 2
        free_cached()
        _LOG.warning("out of memory: continuing in blocks of %d images", block)
    return done
