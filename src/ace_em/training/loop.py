"""The training loop of stage 1, as an iterator over updates."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric

from ace_em.config import AceConfig
from ace_em.data.particle_stack import ParticleStack
from ace_em.io.plain import Plain
from ace_em.maths.blocks import free_cached, is_out_of_memory
from ace_em.tasks.ipi import image_copies
from ace_em.tasks.schedules import StepPlan, learning_rate_factor, step_plan
from ace_em.training.autoencoder import AutoEncoder, Losses, build_model
from ace_em.training.state import TrainingState, seeded

CHECKPOINT_EVERY = 25
"""Updates between saved states: an interruption or a non-finite loss loses fewer updates than this."""
MOST_PARTS = 16
"""Maximum number of parts in which images are projected; after that the batch is made smaller."""


@dataclass(frozen=True)
class Progress:
    """Progress after one update.

    Attributes
    ----------
    step : number of updates so far.
    losses : scalars by name.
    band : last shell used in the image loss.
    notes : messages for the user, for example on lack of memory or a return to an earlier state.
    saved : whether :attr:`Training.saved` was updated.
    """

    step: int
    losses: Losses
    band: float
    notes: tuple[str, ...]
    saved: bool


def optimiser(model: AutoEncoder, config: AceConfig) -> torch.optim.AdamW:
    """AdamW with separate settings for the encoder and the decoder."""
    return torch.optim.AdamW(
        [
            {"params": list(model.encoder.parameters()), "lr": config.lr_encoder, "weight_decay": 1e-3},
            {
                "params": list(model.decoder.parameters()),
                "lr": model.decoder.learning_rate(config),
                "weight_decay": 0.0,
                "betas": (0.9, 0.95),
            },
        ]
    )


class Training:
    """Training of stage 1, as an iterator: each iteration performs one update and yields a :class:`Progress`.

    Each process samples its own batches; Fabric averages the gradients.

    Parameters
    ----------
    stack : the images.
    diameter_px : particle diameter in pixels of the box of the stack.
    seed : seed of the initial weights, batches and poses. The global random state of torch is not changed.
    begun : state to resume from, an earlier :attr:`saved`.
    model : model to train instead of one with random weights.

    Attributes
    ----------
    model : the networks, on the device of Fabric.
    saved : last saved state. Training resumed from it is bit-for-bit identical on the same device.

    Raises
    ------
    Diverged : while iterating, if the loss is still not finite after three restarts at a lower learning rate.
    """

    def __init__(
        self,
        stack: ParticleStack,
        diameter_px: float,
        config: AceConfig,
        fabric: Fabric,
        seed: int,
        begun: Plain | None = None,
        model: AutoEncoder | None = None,
    ) -> None:
        self.stack, self.config, self.fabric = stack.to(fabric.device), config, fabric
        self.shells_per_band = stack.box / diameter_px
        generator = torch.Generator(fabric.device).manual_seed(1 + seed * 1009 + fabric.global_rank)
        with seeded(seed):
            model = build_model(self.stack, diameter_px, config, generator) if model is None else model
        # parts of the model are created on different devices; move them together before the optimiser is created
        self.model = model.to(fabric.device)
        # the half-plane is no buffer and does not move with the model
        self.model.half_plane = self.stack.half_plane
        self.adam = optimiser(self.model, config)
        self.base_rates = [group["lr"] for group in self.adam.param_groups]
        self.state = TrainingState(self.model, self.adam, generator, batch=config.batch)
        self.wrapped: Callable[..., Losses]
        self.wrapped, self.wrapped_adam = fabric.setup(self.model, self.adam)
        if begun is not None:
            self.state.load(begun)
        self.saved: Plain = begun or self.state.packed()
        self._notes: list[str] = []

    def __iter__(self) -> Iterator[Progress]:
        state = self.state
        while state.step < self.config.steps:
            self.model.train()
            for group, rate in zip(self.adam.param_groups, self.base_rates, strict=True):
                group["lr"] = rate * state.rate * learning_rate_factor(state.step, self.config)
            plan = step_plan(state.step, self.shells_per_band, self.config)
            losses = self._update(plan)
            state.step += 1
            save = state.step % CHECKPOINT_EVERY == 0 or state.step == self.config.steps
            if not losses["total"].isfinite() or (save and not state.is_finite()):
                state.go_back(self.saved)
                self._notes.append(
                    f"the training loss is not finite: back to update {state.step}, with {state.rate:g} times the learning rate"
                )
                continue
            if save:
                self.saved = state.packed()
            notes, self._notes = tuple(self._notes), []
            yield Progress(state.step, losses, plan.band, notes, save)

    def _update(self, plan: StepPlan) -> Losses:
        """One step of the optimiser. If memory runs out it is repeated, first in more parts, then with a smaller batch."""
        state = self.state
        rows = torch.randint(len(self.stack), (state.batch,), generator=state.generator, device=self.fabric.device)
        while True:
            self.wrapped_adam.zero_grad()
            try:
                batch = image_copies(self.stack.batch(rows, self.fabric.device), self.config, state.generator)
                losses = self.wrapped(
                    batch.image_ft, batch.effective_ctf, batch.noise_variance, plan, state.generator, state.parts
                )
                self.fabric.backward(losses["total"])
                self.wrapped_adam.step()
                return {name: loss.detach() for name, loss in losses.items()}
            except (RuntimeError, MemoryError) as error:
                # batch normalisation needs at least two images
                if not is_out_of_memory(error) or (state.parts >= min(MOST_PARTS, state.batch) and state.batch < 4):
                    raise
            free_cached()
            if state.parts < min(MOST_PARTS, state.batch):
                state.parts *= 2
                self._notes.append(f"out of memory: each batch is projected in {state.parts} parts from now on")
            else:
                state.batch //= 2
                rows = rows[: state.batch]
                self._notes.append(f"out of memory: batches of {state.batch} images from now on")
