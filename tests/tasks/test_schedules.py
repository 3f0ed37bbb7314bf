"""End points of the schedules."""

import math
from typing import Any, Literal

import pytest

from ace_em.config import AceConfig
from ace_em.tasks.schedules import band_per_diameter, label_kernel, learning_rate_factor, pip_weight, step_plan

LOSSES: tuple[Literal["none", "half-turn", "generalised"], ...] = ("none", "half-turn", "generalised")


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


def test_band_grows_and_then_stays_constant() -> None:
    config = AceConfig(steps=100, march=0.6, first_band=2.0, last_band=8.0)
    bands = [band_per_diameter(step, config) for step in range(100)]
    assert bands[0] == 2
    assert bands[30] == pytest.approx(5)
    assert bands[59] < 8 and bands[60:] == [8] * 40
    assert all(a < b for a, b in zip(bands[:60], bands[1:61], strict=True))


def test_without_marching_the_full_band_is_used_from_the_start() -> None:
    assert band_per_diameter(0, AceConfig(march=0, last_band=7.0)) == 7


def test_without_last_band_all_frequencies_are_used() -> None:
    """As published; without a last band there is no marching."""
    for march in (0.0, 0.6):
        config = AceConfig(last_band=0.0, march=march)
        assert all(math.isinf(band_per_diameter(step, config)) for step in (0, 300, 599))
        assert math.isinf(step_plan(0, 1.6, config).band)


def test_multistep_learning_rate_drops_at_its_milestones() -> None:
    config = AceConfig(schedule="multistep", steps=1000, warmup_steps=10, milestones=(0.5, 0.8), milestone_factor=0.2)
    rates = [learning_rate_factor(step, config) for step in (0, 4, 9, 499, 500, 799, 800, 999)]
    assert rates == pytest.approx([0.1, 0.5, 1, 1, 0.2, 0.2, 0.04, 0.04])
    # a milestone inside the warm-up counts too
    early = AceConfig(schedule="multistep", steps=100, warmup_steps=10, milestones=(0.05,), milestone_factor=0.5)
    assert [learning_rate_factor(step, early) for step in (4, 5, 50)] == pytest.approx([0.5, 0.3, 0.5])


# (ipi, beta) of the updates around a warm-up of three
WARM = [(True, 0.0)] * 3
TASKS = {
    "together": [*WARM, (True, 0.4), (True, 0.4), (True, 0.4), (True, 0.4)],
    "alternating": [*WARM, (True, 0.0), (False, 0.4), (True, 0.0), (False, 0.4)],
    "succession": [*WARM, (False, 0.4), (False, 0.4), (False, 0.4), (False, 0.4)],
}


@pytest.mark.parametrize("schedule", TASKS)
def test_which_task_is_trained_when(schedule: Any) -> None:
    """Eq. 15 and the three schedules of section 4.1; no update is without a task."""
    config = AceConfig(pip_schedule=schedule, pip_warmup_steps=3, pip_weight=0.4)
    plans = [step_plan(step, 1.0, config) for step in range(7)]
    assert [(plan.ipi, plan.beta) for plan in plans] == TASKS[schedule]
    at_once = AceConfig(pip_schedule=schedule, pip_weight=0.4)
    assert [(p.ipi, p.beta) for p in (step_plan(step, 1.0, at_once) for step in range(4))] == TASKS[schedule][3:]
    without = AceConfig(pip_schedule=schedule, pip=False)
    assert all(p.ipi and p.beta == 0 for p in (step_plan(step, 1.0, without) for step in range(4)))


def test_the_label_is_filtered_until_its_warm_up_ends() -> None:
    """Eq. 10."""
    config = AceConfig(label_steps=3, label_kernel=4)
    assert [label_kernel(step, config) for step in range(5)] == [4, 4, 4, 0, 0]
    assert [step_plan(step, 1.0, config).label for step in range(5)] == [4, 4, 4, 0, 0]
    assert label_kernel(0, AceConfig()) == 0
    assert label_kernel(0, AceConfig(label_steps=1)) == 5


def test_plan_gives_copies_shells_and_half_turns() -> None:
    copies = {loss: step_plan(0, 1.0, AceConfig(symmetric_loss=loss)).copies for loss in LOSSES}
    assert copies == {"none": 1, "half-turn": 2, "generalised": 2}
    assert step_plan(0, 1.6, AceConfig(march=0.0, last_band=5.0)).band == pytest.approx(8.0)
    assert [step_plan(step, 1.0, AceConfig()).half_turn for step in range(6)] == [1, 2, 3, 1, 2, 3]
