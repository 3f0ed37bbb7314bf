"""Stage 1 from random weights, and stage 1 alone, as published: the decoder's map and the encoder's poses are the result."""

import dataclasses
from collections.abc import Callable

import torch
from lightning_fabric import Fabric
from torch import Tensor

from ace_em import run_log
from ace_em.config import RunConfig
from ace_em.data.working_set import WorkingSet
from ace_em.maths.rotations import angular_distance_deg
from ace_em.maths.slices import volume_to_ft
from ace_em.physics.pose import Pose
from ace_em.plan import Plan
from ace_em.progress import Reporter
from ace_em.refinement.backprojection import accumulate, reconstruct_halves
from ace_em.refinement.calibration import Calibration
from ace_em.refinement.exploring import explained_share
from ace_em.refinement.half_sets import HalfSetState
from ace_em.refinement.local import refine_poses
from ace_em.training.loop import Progress, TrainedModel, encode, train
from ace_em.training.step import AutoEncoder

WATCHED = 500
"""Images whose poses are read off while the training goes on."""
LOOKS = 20
"""And how often."""


def train_start(
    number: int,
    plan: Plan,
    images: WorkingSet,
    config: RunConfig,
    reporter: Reporter,
    on_step: Callable[[Progress], None] = lambda progress: None,
) -> TrainedModel:
    """Stage 1 from the random weights of start ``number`` (from 1)."""
    accelerator = "gpu" if plan.device == "cuda" else plan.device
    fabric = Fabric(accelerator=accelerator, devices=1, precision=config.precision)
    with reporter.task(f"ACE training, start {number}", config.ace.steps) as task:

        def report(progress: Progress) -> None:
            on_step(progress)
            if progress.step % 10 == 0 or progress.step == config.ace.steps:
                task.update(progress.step, run_log.ace_step(progress, number, plan, config, reporter))

        return train(images, plan.diameter_px(images.box), config.ace, fabric, start_seed(config, number), report)


def start_seed(config: RunConfig, number: int) -> int:
    """Every start of every seed has its own."""
    return config.seed * 100 + number


Save = Callable[[AutoEncoder, Pose, Tensor, str, int], None]
"""Keeps a state: the networks, poses, the map, the stage, its step."""


class PoseWatch:
    """How far the poses of some images turn while the training goes on; every look is saved."""

    def __init__(self, images: WorkingSet, config: RunConfig, reporter: Reporter, save: Save) -> None:
        self.images = images.rows(slice(0, WATCHED))
        self.every = max(1, config.ace.steps // LOOKS)
        self.config, self.reporter, self.save = config, reporter, save
        self.rotation: Tensor | None = None
        self.moved_deg = torch.full((len(self.images),), 180.0)

    def __call__(self, progress: Progress) -> None:
        if progress.step % self.every:
            return
        pose = encode(progress.model, self.images).to(torch.device("cpu"))
        if self.rotation is not None:
            self.moved_deg = angular_distance_deg(self.rotation, pose.rotation)
            run_log.poses_watched(progress.step, self.moved_deg, self.config, self.reporter)
        self.rotation = pose.rotation
        with torch.no_grad():
            self.save(progress.model, pose, progress.model.decoder.volume(), "ace", progress.step)


def amortised(
    plan: Plan, images: WorkingSet, half_set: Tensor, config: RunConfig, reporter: Reporter, save: Save
) -> HalfSetState:
    """Train once on all images; the decoder's volume, every image's pose, and half-maps from those poses.

    The poses of both halves come from one network: their FSC says how much the images agree under these poses, not that
    the poses are right. ``moved_deg`` of the state is that of some images over the last twentieth of the training.
    """
    watch = PoseWatch(images, config, reporter, save)
    trained = train_start(1, plan, images, config, reporter, watch)
    trained.model.cpu()
    pose, volume = encode(trained.model, images), trained.volume()
    one, two = (accumulate(images.rows(half_set == number), pose[half_set == number]) for number in (1, 2))
    halves = dataclasses.replace(reconstruct_halves(one, two, plan.mask(images.box)), combined=volume)
    # no steps: the residuals where the poses are, block by block
    left = refine_poses(volume_to_ft(volume), images, pose, steps=0).residual
    explained = explained_share(images, left)
    save(trained.model, pose, volume, "end", 0)
    return HalfSetState(pose, halves, images.box / 2, watch.moved_deg, explained, Calibration.none(images.box, len(images)))
