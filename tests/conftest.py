"""Settings of the whole test run: few threads, and RELION's tests skipped where it is not installed."""

import shutil

import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if shutil.which("relion_reconstruct") is None:
        skip = pytest.mark.skip(reason="relion_reconstruct is not on the PATH")
        for item in items:
            if "relion" in item.keywords:
                item.add_marker(skip)
