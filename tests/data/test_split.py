"""Half-sets and subsets are balanced, in range and reproducible."""

import numpy as np
import pytest

from ace_em.data.split import half_sets, subset


@pytest.mark.parametrize("n", [0, 1, 2, 7, 1000])
def test_half_sets_are_balanced(n: int) -> None:
    halves = half_sets(n, seed=3)
    assert halves.shape == (n,)
    assert set(halves) <= {1, 2}
    assert abs(int((halves == 1).sum()) - int((halves == 2).sum())) == n % 2


def test_half_sets_depend_on_the_seed_alone() -> None:
    assert np.array_equal(half_sets(100, 1), half_sets(100, 1))
    assert not np.array_equal(half_sets(100, 1), half_sets(100, 2))


def test_half_sets_do_not_follow_the_order_of_the_file() -> None:
    # neighbours in a file come from one micrograph; an alternating or blocked split would show as a correlation
    halves = half_sets(10_000, 0) - 1.5
    assert abs(float((halves[1:] * halves[:-1]).mean())) < 0.02
    assert abs(float(halves[:5000].mean())) < 0.03


def test_subset_is_sorted_unique_and_reproducible() -> None:
    rows = subset(100, 30, seed=5)
    assert len(rows) == 30 and (np.diff(rows) > 0).all() and rows.min() >= 0 and rows.max() < 100
    assert np.array_equal(rows, subset(100, 30, seed=5))
    assert not np.array_equal(rows, subset(100, 30, seed=6))
    assert np.array_equal(subset(5, 9, seed=0), np.arange(5))
