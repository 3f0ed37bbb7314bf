"""Training with non-finite losses, lack of memory, and resumption from a saved state."""

import dataclasses
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric

from ace_em.config import AceConfig, FourierEncoderConfig
from ace_em.errors import Diverged
from ace_em.io.plain import Plain
from ace_em.tasks.schedules import StepPlan
from ace_em.training import loop
from ace_em.training.autoencoder import AutoEncoder, Losses
from ace_em.training.loop import CHECKPOINT_EVERY, Progress, Training
from ace_em.training.state import MOST_RESTORED
from stacks import FixedStack

SMALL = AceConfig(
    steps=60,
    batch=48,
    warmup_steps=5,
    first_band=2.6,
    last_band=4.0,
    fourier=FourierEncoderConfig(band=4.0, width=64, depth=2),
)


def start(stack: FixedStack, begun: Plain = None, **settings: Any) -> Training:
    return Training(stack, 10.0, dataclasses.replace(SMALL, **settings), Fabric(accelerator="cpu", devices=1), 3, begun)


def run(training: Training) -> tuple[list[Progress], list[Plain]]:
    """All updates and all saved states."""
    log, saved = [], []
    for progress in training:
        log.append(progress)
        if progress.saved:
            saved.append(training.saved)
    return log, saved


def notes(log: list[Progress]) -> list[str]:
    return [note for progress in log for note in progress.notes]


def weights(training: Training) -> list[torch.Tensor]:
    return list(training.model.state_dict().values())


def spoil(monkeypatch: pytest.MonkeyPatch, updates: set[int]) -> None:
    """Make loss and weights NaN in the given updates, counted as they are made."""
    original, count = Training._update, []

    def spoilt(self: Training, plan: StepPlan) -> Losses:
        losses = original(self, plan)
        count.append(1)
        if len(count) not in updates:
            return losses
        with torch.no_grad():
            next(self.model.encoder.parameters()).fill_(torch.nan)
        return losses | {"total": losses["total"] * torch.nan}

    monkeypatch.setattr(Training, "_update", spoilt)


def test_training_restarts_after_a_non_finite_loss(blobs: FixedStack, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, {CHECKPOINT_EVERY + 7})
    training = start(blobs)
    log, saved = run(training)
    assert notes(log) == [f"the training loss is not finite: back to update {CHECKPOINT_EVERY}, with 0.5 times the learning rate"]
    assert [p.step for p in log] == [*range(1, CHECKPOINT_EVERY + 7), *range(CHECKPOINT_EVERY + 1, SMALL.steps + 1)]
    assert all(p.isfinite().all() for p in training.model.parameters())
    assert [(s["step"], s["rate"], s["restored"]) for s in saved] == [(25, 1.0, 0), (50, 0.5, 1), (60, 0.5, 1)]


def test_training_diverges_after_three_restarts(blobs: FixedStack, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, set(range(5, 1000)))
    training = start(blobs)
    with pytest.raises(Diverged, match="training diverged: the loss was NaN or infinite in update .* after 3 restarts"):
        run(training)
    assert training.state.restored == MOST_RESTORED == 3 and training.state.rate == 0.125


def test_non_finite_weights_are_never_saved(blobs: FixedStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """The update before a save makes the weights NaN, but not its own loss."""
    original, done = Training._update, []

    def late(self: Training, plan: StepPlan) -> Losses:
        losses = original(self, plan)
        if self.state.step + 1 == CHECKPOINT_EVERY and not done:
            done.append(1)
            with torch.no_grad():
                next(self.model.encoder.parameters()).fill_(torch.inf)
        return losses

    monkeypatch.setattr(Training, "_update", late)
    _, saved = run(start(blobs, steps=30))
    assert done and [s["step"] for s in saved] == [25, 30]
    assert all(value.isfinite().all() for state in saved for value in state["model"].values())


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory"), MemoryError()]
)
def test_out_of_memory_projects_images_in_parts(blobs: FixedStack, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    original = AutoEncoder.forward

    def in_four_only(self: AutoEncoder, *rest: Any) -> Losses:
        if rest[-1] < 4:
            raise error
        return original(self, *rest)

    monkeypatch.setattr(AutoEncoder, "forward", in_four_only)
    log, _ = run(start(blobs, steps=4))
    said = [f"out of memory: each batch is projected in {n} parts from now on" for n in (2, 4)]
    assert notes(log) == said
    assert len(log) == 4 and all(p.losses["total"].isfinite() for p in log)


def test_out_of_memory_then_halves_the_batch(blobs: FixedStack, monkeypatch: pytest.MonkeyPatch) -> None:
    original = AutoEncoder.forward

    def small_only(self: AutoEncoder, image_ft: torch.Tensor, *rest: Any) -> Losses:
        if len(image_ft) > 12:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, image_ft, *rest)

    monkeypatch.setattr(AutoEncoder, "forward", small_only)
    training = start(blobs, steps=3)
    log, _ = run(training)
    assert notes(log)[-2:] == [f"out of memory: batches of {n} images from now on" for n in (24, 12)]
    assert training.state.parts == loop.MOST_PARTS and training.state.batch == 12 and len(log) == 3


def test_out_of_memory_with_two_images_is_an_error(blobs: FixedStack, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(self: AutoEncoder, *rest: Any) -> Losses:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(AutoEncoder, "forward", none)
    with pytest.raises(torch.OutOfMemoryError):
        run(start(blobs))


def test_other_errors_are_not_handled_as_out_of_memory(blobs: FixedStack, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: AutoEncoder, *rest: Any) -> Losses:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(AutoEncoder, "forward", wrong)
    with pytest.raises(RuntimeError, match="shapes"):
        run(start(blobs))


def test_parts_give_the_same_gradients(blobs: FixedStack) -> None:
    """The encoder sees the whole batch, so batch statistics and gradients are the same."""
    volumes, losses = [], []
    for parts in (1, 5):
        training = start(blobs, steps=1)
        training.state.parts = parts
        losses.append(run(training)[0][0].losses)
        volumes.append(training.model.decoder.density.detach())
    for name, loss in losses[0].items():
        torch.testing.assert_close(losses[1][name], loss, rtol=1e-5, atol=1e-6)
    # Adam's first step has the sign of the gradient, so only parameters with gradients near zero may differ
    assert (volumes[0] - volumes[1]).abs().median() < 1e-6


def test_resuming_on_another_device_reseeds_the_generator(blobs: FixedStack) -> None:
    """The generator of another device does not accept the saved state."""
    saved = run(start(blobs))[1][0]
    assert saved["device"] == "cpu"
    moved = saved | {"device": "cuda", "generator": torch.zeros(16, dtype=torch.uint8)}
    assert run(start(blobs, moved))[0][0].step == saved["step"] + 1


def test_resumed_training_is_identical(blobs: FixedStack) -> None:
    whole = start(blobs)
    saved = run(whole)[1]
    resumed = start(blobs, saved[0])
    run(resumed)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))
