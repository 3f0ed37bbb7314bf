"""Stability of the encoder's poses during stage 1, the convergence test of a run without later stages."""

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
"""Images whose poses are monitored."""
CHECKS = 20
"""Number of checks during the training."""


class PoseWatch:
    """Change of the poses of some images during the training.

    ``moved_deg`` is the angle between the last two checks; 180 before the second check.
    """

    def __init__(self, stack: ParticleStack, context: RunContext) -> None:
        self.stack = stack.subset(slice(0, WATCHED))
        self.every = max(1, context.config.ace.steps // CHECKS)
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
        """Restore a packed state."""
        self.rotation, self.moved_deg = state
