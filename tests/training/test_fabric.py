"""The Lightning Fabric of the training."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from lightning_fabric.accelerators import cuda
from lightning_fabric.utilities.rank_zero import rank_zero_info

from ace_em.config import RunConfig
from ace_em.training import fabric
from ace_em.training.fabric import make_fabric


@pytest.fixture
def said() -> Iterator[list[str]]:
    """Messages of Lightning."""
    texts: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            texts.append(record.getMessage())

    handler, logger = Kept(), logging.getLogger("lightning_fabric")
    logger.addHandler(handler)
    yield texts
    logger.removeHandler(handler)


def test_the_precision_hint_is_filtered(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning's check for a GPU with Tensor Cores, emulated."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")
    monkeypatch.setattr(cuda, "_is_ampere_or_later", lambda device: True)
    logger = logging.getLogger("lightning_fabric.utilities.rank_zero")
    monkeypatch.setattr(logger, "filters", [])
    cuda._check_cuda_matmul_precision(torch.device("cuda"))
    assert len(said) == 1 and "Tensor Cores" in said.pop()
    for _ in range(2):
        make_fabric("cpu", RunConfig())
    assert len(logger.filters) == 1
    cuda._check_cuda_matmul_precision(torch.device("cuda"))
    assert said == []
    rank_zero_info("Using bfloat16 Automatic Mixed Precision (AMP)")
    assert said == ["Using bfloat16 Automatic Mixed Precision (AMP)"]


@pytest.mark.parametrize(("device", "accelerator"), [("cpu", "cpu"), ("cuda", "gpu"), ("mps", "mps")])
def test_one_device(monkeypatch: pytest.MonkeyPatch, device: str, accelerator: str) -> None:
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(fabric, "Fabric", lambda **settings: given.append(settings))
    make_fabric(device, RunConfig(precision="bf16-mixed"))
    assert given == [{"accelerator": accelerator, "devices": 1, "precision": "bf16-mixed"}]
