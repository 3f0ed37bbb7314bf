"""End points of the schedules."""

import math

import pytest

from ace_em.config import AceConfig
from ace_em.tasks.schedules import band_per_diameter, learning_rate_factor, pip_weight


def test_pip_weight_switches_at_the_warm_up() -> None:
    """Eq. 15."""
    config = AceConfig(pip_weight=0.4, pip_warmup_steps=10)
    assert [pip_weight(step, config) for step in (0, 9, 10, 11, 599)] == [0, 0, 0.4, 0.4, 0.4]
    assert pip_weight(0, AceConfig(pip_weight=0.4)) == 0.4
    assert pip_weight(20, AceConfig(pip=False, pip_weight=0.4)) == 0


def test_learning_rate_warms_up_and_follows_the_cosine() -> None:
    config = AceConfig(steps=1000, warmup_steps=50, final_lr=0.03)
    assert learning_rate_factor(0, config) == pytest.approx(1 / 50)
    assert learning_rate_factor(24, config) == pytest.approx(0.5, rel=0.01)
    assert learning_rate_factor(49, config) == pytest.approx(1, rel=0.01)
    assert learning_rate_factor(500, config) == pytest.approx((1 + 0.03) / 2)
    assert learning_rate_factor(250, config) == pytest.approx(0.03 + 0.97 * (1 + math.sqrt(0.5)) / 2)
    assert learning_rate_factor(1000, config) == pytest.approx(0.03)
    rates = [learning_rate_factor(step, config) for step in range(1000)]
    assert all(a > b for a, b in zip(rates[50:], rates[51:], strict=False))
    assert max(rates) <= 1


def test_constant_learning_rate() -> None:
    config = AceConfig(schedule="constant", warmup_steps=4)
    assert [learning_rate_factor(step, config) for step in (0, 1, 2, 3, 4, 599)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert learning_rate_factor(0, AceConfig(schedule="constant", warmup_steps=0)) == 1


def test_band_marches_and_then_stands() -> None:
    config = AceConfig(steps=100, march=0.6, first_band=2.0, last_band=8.0)
    bands = [band_per_diameter(step, config) for step in range(100)]
    assert bands[0] == 2
    assert bands[30] == pytest.approx(5)
    assert bands[59] < 8 and bands[60:] == [8] * 40
    assert all(a < b for a, b in zip(bands[:60], bands[1:61], strict=True))


def test_no_march_counts_every_frequency_from_the_start() -> None:
    assert band_per_diameter(0, AceConfig(march=0, last_band=7.0)) == 7
