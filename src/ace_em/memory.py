"""When a device has no memory for a block of work: halve the block, say so, go on."""

import re

import torch

_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether CUDA, MPS or the CPU's allocator had no memory; each has an error of its own."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error)))


def free_cached() -> None:
    """Give what torch keeps for later back to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
