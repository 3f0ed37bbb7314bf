"""What changes with the step: learning rate, PIP's beta (eq. 15), the band of the image loss."""

import math

from ace_em.config import AceConfig


def learning_rate_factor(step: int, config: AceConfig) -> float:
    """Linear warm-up, then constant or a cosine down to ``final_lr``."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    if config.schedule == "constant":
        return warm
    cosine = 0.5 * (1 + math.cos(math.pi * step / config.steps))
    return warm * (config.final_lr + (1 - config.final_lr) * cosine)


def pip_weight(step: int, config: AceConfig) -> float:
    """Beta of eq. 15: 0 before the warm-up has passed, then constant."""
    return config.pip_weight if config.pip and step >= config.pip_warmup_steps else 0.0


def band_per_diameter(step: int, config: AceConfig) -> float:
    """Frequency marching: the last frequency that the image loss counts, in cycles per diameter."""
    if config.march <= 0:
        return config.last_band
    share = min(1.0, step / (config.march * config.steps))
    return config.first_band + (config.last_band - config.first_band) * share
