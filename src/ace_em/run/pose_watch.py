"""How stable the encoder's poses are while stage 1 trains alone: no later stage tells."""

import torch
from torch import Tensor

from ace_em.data.particle_stack import CPU, ParticleStack
from ace_em.io.plain import Plain
from ace_em.maths.rotations import angular_distance_deg
from ace_em.run import log
from ace_em.run.context import RunContext
from ace_em.training.autoencoder import AutoEncoder
from ace_em.training.infer import encode
from ace_em.training.loop import Progress

WATCHED = 500
"""Images whose poses are compared while the training goes on."""
LOOKS = 20
"""How often."""


class PoseWatch:
    """How far the poses of some images turn while the training goes on.

    ``moved_deg`` is between the last two looks; 180 before there were two.
    """

    def __init__(self, stack: ParticleStack, context: RunContext) -> None:
        self.stack = stack.subset(slice(0, WATCHED))
        self.every = max(1, context.config.ace.steps // LOOKS)
        self.context = context
        self.rotation: Tensor | None = None
        self.moved_deg = torch.full((len(self.stack),), 180.0)

    def __call__(self, progress: Progress, model: AutoEncoder) -> None:
        if progress.step % self.every:
            return
        pose = encode(model, self.stack).to(CPU)
        if self.rotation is not None:
            self.moved_deg = angular_distance_deg(self.rotation, pose.rotation)
            log.poses_watched(progress.step, self.moved_deg, self.context.config, self.context.reporter)
        self.rotation = pose.rotation

    def packed(self) -> Plain:
        """The state, for a checkpoint."""
        return [self.rotation, self.moved_deg]

    def load(self, state: Plain) -> None:
        """Take up a packed state."""
        self.rotation, self.moved_deg = state
