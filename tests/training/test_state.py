"""What stage 1 does when a loss is no number, when a device has no memory, and when it goes on from a packed state."""

import dataclasses
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric

from ace_em.config import AceConfig
from ace_em.data.working_set import WorkingSet
from ace_em.errors import Diverged
from ace_em.io.plain import Plain
from ace_em.training.autoencoder import AutoEncoder, Losses
from ace_em.training.loop import SAFE_EVERY, Hooks, Progress, TrainedModel, Update, train
from ace_em.training.state import MOST_RESTORED, TrainingState

SMALL = AceConfig(steps=60, batch=48, warmup_steps=5, width=64, depth=2, first_band=2.6, last_band=4.0, encoder_band=4.0)


def run(images: WorkingSet, hooks: Hooks, begun: Plain = None, **settings: Any) -> TrainedModel:
    return train(images, 10.0, dataclasses.replace(SMALL, **settings), Fabric(accelerator="cpu", devices=1), 3, hooks, begun)


def spoilt(monkeypatch: pytest.MonkeyPatch, updates: set[int]) -> None:
    """Updates, counted as they are made, whose loss and weights are not numbers."""
    original, count = Update.__call__, []

    def spoilt_update(self: Update, state: TrainingState, plan: Any) -> Losses:
        losses = original(self, state, plan)
        count.append(1)
        if len(count) not in updates:
            return losses
        with torch.no_grad():
            next(state.model.encoder.parameters()).fill_(torch.nan)
        return Losses(losses.total * torch.nan, losses.image, losses.pose)

    monkeypatch.setattr(Update, "__call__", spoilt_update)


def test_a_loss_that_is_no_number_takes_the_training_back(blobs: WorkingSet, monkeypatch: pytest.MonkeyPatch) -> None:
    spoilt(monkeypatch, {SAFE_EVERY + 7})
    said: list[str] = []
    log: list[Progress] = []
    states: list[Plain] = []
    trained = run(blobs, Hooks(log.append, lambda state, model: states.append(state), said.append))
    assert said == [f"a loss of stage 1 is not a number: back to update {SAFE_EVERY}, at 0.5 of the learning rate"]
    assert [p.step for p in log] == [*range(1, SAFE_EVERY + 7), *range(SAFE_EVERY + 1, SMALL.steps + 1)]
    assert all(p.isfinite().all() for p in trained.model.parameters())
    assert [(s["step"], s["rate"], s["restored"]) for s in states] == [(25, 1.0, 0), (50, 0.5, 1), (60, 0.5, 1)]


def test_after_three_times_it_is_given_up(blobs: WorkingSet, monkeypatch: pytest.MonkeyPatch) -> None:
    spoilt(monkeypatch, set(range(5, 1000)))
    said: list[str] = []
    with pytest.raises(Diverged, match="after 3 returns"):
        run(blobs, Hooks(say=said.append))
    assert len(said) == MOST_RESTORED == 3 and "0.125 of the learning rate" in said[-1]


def test_weights_that_are_no_numbers_are_never_kept(blobs: WorkingSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The update before a safe point spoils the weights, not its own loss."""
    original, done = Update.__call__, []

    def late(self: Update, state: TrainingState, plan: Any) -> Losses:
        losses = original(self, state, plan)
        if state.step + 1 == SAFE_EVERY and not done:
            done.append(1)
            with torch.no_grad():
                next(state.model.encoder.parameters()).fill_(torch.inf)
        return losses

    monkeypatch.setattr(Update, "__call__", late)
    kept: list[Plain] = []
    run(blobs, Hooks(on_safe=lambda state, model: kept.append(state)), steps=30)
    assert done and [k["step"] for k in kept] == [25, 30]
    assert all(value.isfinite().all() for state in kept for value in state["model"].values())


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory"), MemoryError()]
)
def test_without_memory_batches_go_in_parts(blobs: WorkingSet, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    original = AutoEncoder.forward

    def small_only(self: AutoEncoder, image_ft: torch.Tensor, *rest: Any) -> Losses:
        if len(image_ft) > 12:
            raise error
        return original(self, image_ft, *rest)

    monkeypatch.setattr(AutoEncoder, "forward", small_only)
    said: list[str] = []
    log: list[Progress] = []
    run(blobs, Hooks(on_step=log.append, say=said.append), steps=4)
    assert said == [f"out of memory: batches of 48 images in {n} parts from now on" for n in (2, 4)]
    assert len(log) == 4 and all(p.losses.total.isfinite() for p in log)


def test_another_error_is_not_taken_for_that(blobs: WorkingSet, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: AutoEncoder, *rest: Any) -> Losses:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(AutoEncoder, "forward", wrong)
    with pytest.raises(RuntimeError, match="shapes"):
        run(blobs, Hooks())


def test_parts_learn_what_the_whole_learns(blobs: WorkingSet) -> None:
    """But for the batch statistics, which are those of a part."""
    begun: list[Plain] = []
    run(blobs, Hooks(on_safe=lambda state, model: begun.append(state)), steps=1, pip=False)
    one, four = (run(blobs, Hooks(), dict(begun[0], parts=parts), steps=3, pip=False).volume() for parts in (1, 4))
    torch.testing.assert_close(one, four, atol=0.05 * one.abs().max().item(), rtol=0)
    assert not torch.equal(one, four)


def test_going_on_elsewhere_takes_other_random_numbers(blobs: WorkingSet) -> None:
    """A generator's state means nothing to that of another device, and is refused by it."""
    states: list[Plain] = []
    run(blobs, Hooks(on_safe=lambda state, model: states.append(state)))
    assert states[0]["device"] == "cpu"
    moved = states[0] | {"device": "cuda", "generator": torch.zeros(16, dtype=torch.uint8)}
    steps: list[int] = []
    run(blobs, Hooks(on_step=lambda progress: steps.append(progress.step)), moved)
    assert steps[0] == states[0]["step"] + 1


def test_going_on_takes_the_same_steps(blobs: WorkingSet) -> None:
    states: list[Plain] = []
    whole = run(blobs, Hooks(on_safe=lambda state, model: states.append(state)))
    resumed = run(blobs, Hooks(), states[0])
    for a, b in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
