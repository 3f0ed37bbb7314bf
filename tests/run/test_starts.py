"""Random starts: how many are made, which is kept, and what one tells the next about the images."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ace_em.config import RunConfig
from ace_em.refinement.held_out import HeldOut
from ace_em.run import starts
from ace_em.run.starts import Start, best_start

GOOD, POOR = HeldOut(0.95, 0.95, 40.0), HeldOut(0.7, 0.95, 40.0)
FITTING = torch.arange(10) < 6


class Nothing:
    """A checkpoint that holds nothing and a reporter that keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.expected = SimpleNamespace(once_more=lambda stage: None)

    def load_done(self, kind: type, name: str) -> None:
        return None

    def save_done(self, *args: Any, **kwargs: Any) -> None:
        pass

    def say(self, message: str) -> None:
        self.said.append(message)

    def record(self, *args: Any, **kwargs: Any) -> None:
        pass


def run_of(monkeypatch: pytest.MonkeyPatch, found: list[tuple[HeldOut, Tensor | None]]) -> tuple[Start, list[Any], list[str]]:
    """The start kept of those given, the particles that each was made from, and what was said."""
    used: list[Any] = []

    def run_start(number: int, context: Any, stack: Any, particles: Tensor | None) -> Start:
        used.append(particles)
        last: Any = None
        return Start(number, {}, last, *found[number - 1])

    monkeypatch.setattr(starts, "run_start", run_start)
    nothing = Nothing()
    context: Any = SimpleNamespace(config=RunConfig(), reporter=nothing, checkpoint=nothing)
    stack: Any = None
    return best_start(context, stack), used, nothing.said


def test_a_good_start_is_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, used, said = run_of(monkeypatch, [(GOOD, None)])
    assert kept.number == 1 and used == [None] and said == []


def test_starts_share_which_images_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, used, said = run_of(monkeypatch, [(POOR, FITTING), (GOOD, None)])
    assert kept.number == 2 and used[0] is None and torch.equal(used[1], FITTING)
    assert said[0].endswith("trying another start, without 40% of the images")


def test_a_start_from_some_images_that_fails_speaks_for_all_again(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, used, said = run_of(monkeypatch, [(POOR, FITTING), (HeldOut(0.6, 0.95, 40.0), FITTING), (POOR, None)])
    assert kept.number == 1 and torch.equal(used[1], FITTING) and used[0] is None and used[2] is None
    assert said[1].endswith("trying another start")


def test_a_map_no_better_than_random_phases_is_kept_last(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, *_ = run_of(
        monkeypatch, [(HeldOut(0.9, 0.95, 2.0), None), (HeldOut(0.5, 0.95, 30.0), None), (HeldOut(0.6, 0.95, 1.0), None)]
    )
    assert kept.number == 2
