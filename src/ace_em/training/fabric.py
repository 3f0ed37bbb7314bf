"""Lightning Fabric for training on one device."""

import logging

from lightning_fabric import Fabric

from ace_em.config import RunConfig


def make_fabric(device: str, config: RunConfig) -> Fabric:
    """Fabric for one device ('cpu', 'cuda' or 'mps') at the precision of the settings."""
    # Lightning's rank-zero logger; adding the same filter again has no effect
    logging.getLogger("lightning_fabric.utilities.rank_zero").addFilter(_is_not_precision_hint)
    return Fabric(accelerator="gpu" if device == "cuda" else device, devices=1, precision=config.precision)


def _is_not_precision_hint(record: logging.LogRecord) -> bool:
    """False for the hint to lower the matmul precision, which :mod:`ace_em.maths.products` sets per product."""
    return "torch.set_float32_matmul_precision" not in record.getMessage()
