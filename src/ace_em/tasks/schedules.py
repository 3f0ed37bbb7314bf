"""What changes with the step: learning rate, task and label (eq. 10, 15), the band of the image loss."""

import math
from typing import NamedTuple

from ace_em.config import AceConfig


class StepPlan(NamedTuple):
    """What one update uses.

    Attributes
    ----------
    band : the image loss counts frequencies up to this shell.
    beta : weight of PIP (eq. 14).
    half_turn : the half turn, about z, x or y (1, 2, 3), that is scored beside every hypothesis.
    ipi : whether IPI is trained in this update.
    label : kernel that low-passes the label (eq. 9), 0 for none.
    copies : of every image, of which the image loss takes the better (eq. 6, 7).
    """

    band: float
    beta: float
    half_turn: int
    ipi: bool = True
    label: int = 0
    copies: int = 1


def step_plan(step: int, shells_per_band: float, config: AceConfig) -> StepPlan:
    """The plan of update ``step`` (from 0); ``shells_per_band`` shells of the working box are one cycle per diameter."""
    return StepPlan(
        band_per_diameter(step, config) * shells_per_band,
        pip_weight(step, config),
        1 + step % 3,
        trains_ipi(step, config),
        label_kernel(step, config),
        1 if config.symmetric_loss == "none" else 2,
    )


def learning_rate_factor(step: int, config: AceConfig) -> float:
    """Linear warm-up, then constant, a cosine down to ``final_lr``, or a factor at every milestone."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    if config.schedule == "constant":
        return warm
    if config.schedule == "multistep":
        return warm * config.milestone_factor ** sum(step >= share * config.steps for share in config.milestones)
    cosine = 0.5 * (1 + math.cos(math.pi * step / config.steps))
    return warm * (config.final_lr + (1 - config.final_lr) * cosine)


def _pip_only(step: int, config: AceConfig) -> bool:
    past = step - config.pip_warmup_steps
    alternates = config.pip_schedule == "alternating" and past % 2 == 1
    return config.pip and past >= 0 and (alternates or config.pip_schedule == "succession")


def trains_ipi(step: int, config: AceConfig) -> bool:
    """Whether this update trains IPI: always when together, every other one when alternating, before PIP in succession."""
    return not _pip_only(step, config)


def pip_weight(step: int, config: AceConfig) -> float:
    """Beta of eq. 15: 0 before the warm-up has passed, then constant; alternating, 0 in IPI's own updates."""
    if not config.pip or step < config.pip_warmup_steps:
        return 0.0
    if config.pip_schedule == "alternating" and trains_ipi(step, config):
        return 0.0
    return config.pip_weight


def label_kernel(step: int, config: AceConfig) -> int:
    """Gamma of eq. 10: the kernel that low-passes the label while the warm-up lasts, then 0, the image itself."""
    return config.label_kernel if step < config.label_steps else 0


def band_per_diameter(step: int, config: AceConfig) -> float:
    """Frequency marching: the last frequency that the image loss counts, in cycles per diameter."""
    last = config.last_band or math.inf
    if config.march <= 0 or math.isinf(last):
        return last
    share = min(1.0, step / (config.march * config.steps))
    return config.first_band + (last - config.first_band) * share
