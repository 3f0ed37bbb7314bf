"""Stage 1 alone, as published: the result is the map of the decoder and the poses of the encoder."""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from ace_em.data.particle_stack import ParticleStack
from ace_em.refinement.backprojection import Halves, reconstruct_halves
from ace_em.refinement.explained import explained_share
from ace_em.refinement.half_sets import HalfSetState, first_state, inserted_halves
from ace_em.refinement.pose_refinement import reference_on, refine_poses
from ace_em.run.context import RunContext
from ace_em.run.half_sets import half_sets_of
from ace_em.run.pose_watch import PoseWatch
from ace_em.run.starts import Trained, train_start


@dataclass(frozen=True)
class AutoencoderResult:
    """The trained networks, and the last change in degrees of the monitored poses."""

    trained: Trained
    moved_deg: Tensor


def autoencoder_only(stack: ParticleStack, context: RunContext) -> tuple[HalfSetState, dict[str, Tensor]]:
    """Train once on all images. Returns the decoder's map, all poses and half-maps at these poses, and the networks' weights.

    The poses of both halves come from one network, so the half-map FSC is no evidence that they are correct. ``moved_deg`` of
    the state is the change for some of the images over the last twentieth of the training.
    """
    plan, checkpoint = context.plan, context.checkpoint
    done = checkpoint.load_done(AutoencoderResult, "autoencoder")
    if done is None:
        watch = PoseWatch(stack, context)
        done = AutoencoderResult(Trained.of(train_start(1, context, stack, watch), stack), watch.moved_deg)
        checkpoint.save_done("autoencoder", done)
    trained, sets = done.trained, half_sets_of(stack, context)
    unknown = torch.empty(0)
    state = first_state(stack, trained.pose, Halves(*[unknown] * 7), stack.box / 2)
    halves = dataclasses.replace(reconstruct_halves(*inserted_halves(sets, state), sets.mask), combined=trained.volume)
    # steps=0: residuals at unchanged poses
    residual = refine_poses(reference_on(plan.search_device, trained.volume), stack, trained.pose, steps=0).residual
    explained = explained_share(stack.power(), residual, stack.noise_power())
    return dataclasses.replace(state, halves=halves, moved_deg=done.moved_deg, explained=explained), trained.networks
