"""Random half-sets and random subsets."""

import numpy as np


def half_sets(n: int, seed: int) -> np.ndarray:
    """Random half-set, 1 or 2, of each of ``n`` particles, shape (n,) int64; sizes differ by at most one."""
    halves = np.arange(n, dtype=np.int64) % 2 + 1
    return np.random.default_rng(seed).permutation(halves)


def subset(n: int, size: int, seed: int) -> np.ndarray:
    """``size`` different rows out of ``n``, drawn at random, ascending, shape (size,) int64; all rows if ``size >= n``."""
    if size >= n:
        return np.arange(n, dtype=np.int64)
    return np.sort(np.random.default_rng(seed).permutation(n)[:size])
