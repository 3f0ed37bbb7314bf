"""The state of stage 1 between two updates: what is kept, put back after a loss that is no number, and gone on from."""

import copy
from dataclasses import dataclass

import torch

from ace_em.errors import Diverged
from ace_em.io.plain import Plain
from ace_em.training.autoencoder import AutoEncoder

MOST_RESTORED = 3
"""Times that the training is taken back to its last good state before it is given up."""


@dataclass
class TrainingState:
    """Networks, optimiser and random state after ``step`` updates.

    Attributes
    ----------
    rate : what the learning rates of the schedule are multiplied by; halved each time the training was taken back.
    restored : how often that was.
    parts : a batch goes through the networks in so many parts, as large as the device has memory for.
    """

    model: AutoEncoder
    adam: torch.optim.Optimizer
    generator: torch.Generator
    step: int = 0
    rate: float = 1.0
    restored: int = 0
    parts: int = 1

    def packed(self) -> Plain:
        """A copy, on the CPU, that the coming updates do not change."""
        numbers = {name: getattr(self, name) for name in ("step", "rate", "restored", "parts")}
        networks = {"model": _cpu(self.model.state_dict()), "adam": _cpu(self.adam.state_dict())}
        return numbers | networks | {"generator": self.generator.get_state(), "device": self.generator.device.type}

    def load(self, data: Plain) -> None:
        """Go back, or on, to a packed state."""
        self._load_networks(data)
        if data.get("device", "cpu") == self.generator.device.type:
            self.generator.set_state(data["generator"])
        else:
            # another device has random numbers of its own: others than those that the run would have had, but not the same again
            self.generator.manual_seed(self.generator.initial_seed() + data["step"])
        self.rate, self.restored, self.parts = data["rate"], data["restored"], data["parts"]

    def take_back(self, data: Plain) -> None:
        """The networks of a packed state, half the learning rate, and the batches that come next rather than the same again."""
        if self.restored == MOST_RESTORED:
            raise Diverged(
                f"the losses of stage 1 are not numbers, in update {self.step} and after {self.restored} returns to an "
                f"earlier state at half the learning rate each. Try a lower --ace.lr-encoder and --ace.lr-decoder"
            )
        self._load_networks(data)
        self.rate, self.restored = self.rate / 2, self.restored + 1

    def _load_networks(self, data: Plain) -> None:
        self.model.load_state_dict(data["model"])
        # the optimiser keeps the tensors that it is given
        self.adam.load_state_dict(copy.deepcopy(data["adam"]))
        self.step = data["step"]

    def is_finite(self) -> bool:
        """Whether every weight is a number."""
        return all(bool(p.isfinite().all()) for p in self.model.parameters())


def _cpu(state: Plain) -> Plain:
    """Nested dicts and lists with their tensors copied to the CPU."""
    if isinstance(state, dict):
        return {key: _cpu(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [_cpu(value) for value in state]
    return state.detach().clone().cpu() if isinstance(state, torch.Tensor) else state
