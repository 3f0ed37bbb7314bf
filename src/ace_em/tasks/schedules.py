"""Schedules over the training steps: learning rate, task weight (eq. 15), label (eq. 10) and band of the image loss."""

import math
from typing import NamedTuple

from ace_em.config import AceConfig


class StepPlan(NamedTuple):
    """Settings of one update.

    Attributes
    ----------
    band : last shell used in the image loss.
    beta : weight of PIP (eq. 14).
    half_turn : half turn about z, x or y (1, 2 or 3) that is tried in addition to each hypothesis.
    ipi : whether IPI is trained in this update.
    label : kernel that low-passes the label (eq. 9), 0 for none.
    copies : copies per image among which the image loss takes the minimum (eq. 6, eq. 7).
    """

    band: float
    beta: float
    half_turn: int
    ipi: bool = True
    label: int = 0
    copies: int = 1


def step_plan(step: int, shells_per_band: float, config: AceConfig) -> StepPlan:
    """The settings of update ``step`` (from 0).

    Parameters
    ----------
    shells_per_band : shells of the working box per cycle per particle diameter.
    """
    return StepPlan(
        band_per_diameter(step, config) * shells_per_band,
        pip_weight(step, config),
        1 + step % 3,
        trains_ipi(step, config),
        label_kernel(step, config),
        1 if config.symmetric_loss == "none" else 2,
    )


def learning_rate_factor(step: int, config: AceConfig) -> float:
    """Factor on the learning rate.

    Linear warm-up, then by ``config.schedule``: constant, cosine decay to ``final_lr``, or a factor at each milestone.
    """
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    if config.schedule == "constant":
        return warm
    if config.schedule == "multistep":
        return warm * config.milestone_factor ** sum(step >= fraction * config.steps for fraction in config.milestones)
    cosine = 0.5 * (1 + math.cos(math.pi * step / config.steps))
    return warm * (config.final_lr + (1 - config.final_lr) * cosine)


def _pip_only(step: int, config: AceConfig) -> bool:
    after_warmup = step - config.pip_warmup_steps
    alternates = config.pip_schedule == "alternating" and after_warmup % 2 == 1
    return config.pip and after_warmup >= 0 and (alternates or config.pip_schedule == "succession")


def trains_ipi(step: int, config: AceConfig) -> bool:
    """Whether this update trains IPI.

    By ``config.pip_schedule``: 'together' in all updates, 'alternating' in every other update once PIP has started,
    'succession' only before PIP starts.
    """
    return not _pip_only(step, config)


def pip_weight(step: int, config: AceConfig) -> float:
    """Beta of eq. 15: 0 during the warm-up, then constant. With the alternating schedule it is 0 in the IPI updates."""
    if not config.pip or step < config.pip_warmup_steps:
        return 0.0
    if config.pip_schedule == "alternating" and trains_ipi(step, config):
        return 0.0
    return config.pip_weight


def label_kernel(step: int, config: AceConfig) -> int:
    """Gamma of eq. 10: the kernel that low-passes the label during the warm-up, then 0 for the unfiltered image."""
    return config.label_kernel if step < config.label_steps else 0


def band_per_diameter(step: int, config: AceConfig) -> float:
    """Frequency marching: band limit of the image loss at this step, in cycles per particle diameter."""
    last = config.last_band or math.inf
    if config.march <= 0 or math.isinf(last):
        return last
    fraction = min(1.0, step / (config.march * config.steps))
    return config.first_band + (last - config.first_band) * fraction
