"""The training state, for checkpoints, resumption, and recovery from a loss that is NaN or infinite."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ace_em.errors import Diverged
from ace_em.io.plain import Plain
from ace_em.training.autoencoder import AutoEncoder

MOST_RESTORED = 3
"""Maximum number of restarts from the last saved state before training is abandoned."""


@dataclass
class TrainingState:
    """Networks, optimiser and random state after ``step`` updates.

    Attributes
    ----------
    rate : factor on the scheduled learning rates, halved at each restart.
    restored : number of restarts so far.
    parts : number of parts in which images are projected, to fit in memory.
    batch : images per update.
    """

    model: AutoEncoder
    adam: torch.optim.Optimizer
    generator: torch.Generator
    step: int = 0
    rate: float = 1.0
    restored: int = 0
    parts: int = 1
    batch: int = 0

    def packed(self) -> Plain:
        """A deep copy on the CPU, independent of later updates."""
        numbers = {name: getattr(self, name) for name in ("step", "rate", "restored", "parts", "batch")}
        networks = {"model": _cpu(self.model.state_dict()), "adam": _cpu(self.adam.state_dict())}
        return numbers | networks | {"generator": self.generator.get_state(), "device": self.generator.device.type}

    def load(self, data: Plain) -> None:
        """Load a packed state."""
        self._load_networks(data)
        if data.get("device", "cpu") == self.generator.device.type:
            self.generator.set_state(data["generator"])
        else:
            # generator states differ between devices: start a new sequence that does not repeat the earlier one
            self.generator.manual_seed(self.generator.initial_seed() + data["step"])
        self.rate, self.restored = data["rate"], data["restored"]
        self.parts, self.batch = data["parts"], data["batch"]

    def go_back(self, data: Plain) -> None:
        """Return to the networks of a packed state with half the learning rate; new batches are drawn.

        Raises
        ------
        Diverged : after :data:`MOST_RESTORED` restarts.
        """
        if self.restored == MOST_RESTORED:
            raise Diverged(
                f"training diverged: the loss was NaN or infinite in update {self.step}, after {self.restored} restarts from an "
                "earlier state, each with half the learning rate. Try a lower --ace.lr-encoder, --ace.voxel.lr or "
                "--ace.fouriernet.lr"
            )
        self._load_networks(data)
        self.rate, self.restored = self.rate / 2, self.restored + 1

    def _load_networks(self, data: Plain) -> None:
        self.model.load_state_dict(data["model"])
        # load_state_dict keeps references to the tensors
        self.adam.load_state_dict(copy.deepcopy(data["adam"]))
        self.step = data["step"]

    def is_finite(self) -> bool:
        """Whether every weight is finite."""
        return all(bool(p.isfinite().all()) for p in self.model.parameters())


def _cpu(state: Plain) -> Plain:
    """Nested dicts and lists with their tensors copied to the CPU."""
    if isinstance(state, dict):
        return {key: _cpu(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [_cpu(value) for value in state]
    return state.detach().clone().cpu() if isinstance(state, torch.Tensor) else state


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generator of torch (for initial weights), and restore its state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        yield
