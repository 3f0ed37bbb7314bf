"""Settings of the whole test run: few threads, and RELION's tests skipped where it is not installed.

``--threads`` and ``--factors`` repeat the tests under other arithmetic; `make test-arithmetic` does.
"""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch

from ace_em.maths.products import Factors, product

# modules that tests share
sys.path.insert(0, str(Path(__file__).parent))
from planted_particle import Particle, make_particle  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--threads", type=int, default=1, help="CPU threads of torch")
    parser.addoption(
        "--factors", choices=get_args(Factors), help="rounding of the search's products where the processor has the choice"
    )


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(config.getoption("--threads"))


@pytest.fixture(autouse=True)
def forced_factors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    forced = request.config.getoption("--factors")
    if forced is not None:
        monkeypatch.setattr(
            "ace_em.refinement.search.product", lambda a, b, factors: product(a, b, forced if factors == "processor" else factors)
        )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if shutil.which("relion_reconstruct") is None:
        skip = pytest.mark.skip(reason="relion_reconstruct is not on the PATH")
        for item in items:
            if "relion" in item.keywords:
                item.add_marker(skip)


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without the page, whose figures take half of a small run's time."""
    monkeypatch.setattr("ace_em.report.page.write_report", lambda run: run / "report.html")


@pytest.fixture(scope="session")
def particle() -> Callable[..., Particle]:
    """A known volume and images of it."""
    return make_particle
