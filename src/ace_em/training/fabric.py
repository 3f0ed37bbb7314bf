"""Lightning's Fabric as the training is given it: one device, and no word about a setting that the code chooses."""

import logging

from lightning_fabric import Fabric

from ace_em.config import RunConfig


def make_fabric(device: str, config: RunConfig) -> Fabric:
    """For one device, 'cpu', 'cuda' or 'mps', at the precision of the settings."""
    # the logger of what Lightning says once for all processes; the same filter is added to it once only
    logging.getLogger("lightning_fabric.utilities.rank_zero").addFilter(_is_no_advice)
    return Fabric(accelerator="gpu" if device == "cuda" else device, devices=1, precision=config.precision)


def _is_no_advice(record: logging.LogRecord) -> bool:
    """False for the advice to round the factors of matrix products; which are rounded, :mod:`ace_em.maths.products` says."""
    return "torch.set_float32_matmul_precision" not in record.getMessage()
