"""Stage 1 from random weights, and stage 1 alone, as published: the decoder's map and the encoder's poses are the result."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ace_em.config import RunConfig
from ace_em.data.working_set import CPU, Images, image_power
from ace_em.io.plain import Plain
from ace_em.maths.rotations import angular_distance_deg
from ace_em.physics.pose import Pose
from ace_em.refinement.abinitio import explained_share
from ace_em.refinement.backprojection import accumulate, reconstruct_halves
from ace_em.refinement.half_sets import HalfSetState
from ace_em.refinement.noise_scale import Calibration
from ace_em.refinement.pose_refinement import reference_on, refine_poses
from ace_em.run import log as run_log
from ace_em.run.checkpoint import Journal
from ace_em.run.plan import Plan
from ace_em.run.reporter import Reporter
from ace_em.training.autoencoder import AutoEncoder
from ace_em.training.fabric import make_fabric
from ace_em.training.loop import Hooks, Progress, TrainedModel, encode, train

WATCHED = 500
"""Images whose poses are read off while the training goes on."""
LOOKS = 20
"""And how often."""


class PoseWatch:
    """How far the poses of some images turn while the training goes on."""

    def __init__(self, images: Images, config: RunConfig, reporter: Reporter) -> None:
        self.images = images.rows(slice(0, WATCHED))
        self.every = max(1, config.ace.steps // LOOKS)
        self.config, self.reporter = config, reporter
        self.rotation = torch.empty(0)
        self.moved_deg = torch.full((len(self.images),), 180.0)

    def __call__(self, progress: Progress) -> None:
        if progress.step % self.every:
            return
        pose = encode(progress.model, self.images).to(torch.device("cpu"))
        if len(self.rotation):
            self.moved_deg = angular_distance_deg(self.rotation, pose.rotation)
            run_log.poses_watched(progress.step, self.moved_deg, self.config, self.reporter)
        self.rotation = pose.rotation


def train_start(
    number: int,
    plan: Plan,
    images: Images,
    config: RunConfig,
    reporter: Reporter,
    journal: Journal,
    show: Callable[[Tensor], None],
    watch: PoseWatch | None = None,
) -> TrainedModel:
    """Stage 1 from the random weights of start ``number`` (from 1), or on from its last safe point; ``show`` gets the map."""
    fabric = make_fabric(plan.device, config)
    name = f"start {number}: ace"
    begun = journal.safe_point(name)
    if begun is not None and watch is not None:
        watch.rotation, watch.moved_deg = begun["watched"]
    with reporter.task(f"ACE training, start {number}", config.ace.steps) as task:

        def on_step(progress: Progress) -> None:
            if watch is not None:
                watch(progress)
            if progress.step % 10 == 0 or progress.step == config.ace.steps:
                task.update(progress.step, run_log.ace_step(progress, number, plan, config, reporter))

        def on_safe(state: Plain, model: AutoEncoder) -> None:
            journal.at(name, {"training": state, "watched": [] if watch is None else [watch.rotation, watch.moved_deg]})
            with torch.no_grad():
                show(model.decoder.volume())

        hooks = Hooks(on_step, on_safe, reporter.say)
        seed = start_seed(config, number)
        return train(images, plan.diameter_px(images.box), config.ace, fabric, seed, hooks, begun and begun["training"])


def start_seed(config: RunConfig, number: int) -> int:
    """Every start of every seed has its own."""
    return config.seed * 100 + number


@dataclass(frozen=True)
class Trained:
    """The end of a training: the decoder's map, the encoder's poses, and the networks' weights by name.

    ``moved_deg`` is how far the poses that were watched turned last; empty when none were.
    """

    volume: Tensor
    pose: Pose
    networks: dict[str, Tensor]
    moved_deg: Tensor

    @staticmethod
    def of(trained: TrainedModel, images: Images, watch: PoseWatch | None = None) -> "Trained":
        """What a trained model makes of the images, on the CPU."""
        pose = encode(trained.model, images).to(CPU)
        model = trained.model.cpu()
        moved = torch.empty(0) if watch is None else watch.moved_deg
        return Trained(trained.volume(), pose, model.state_dict(), moved)


def amortised(
    plan: Plan,
    images: Images,
    half_set: Tensor,
    config: RunConfig,
    reporter: Reporter,
    journal: Journal,
    show: Callable[[Tensor], None],
) -> tuple[HalfSetState, dict[str, Tensor]]:
    """Train once on all images; the decoder's volume, every image's pose, and half-maps from those poses; the networks.

    The poses of both halves come from one network: their FSC says how much the images agree under these poses, not that
    the poses are right. ``moved_deg`` of the state is that of some images over the last twentieth of the training.
    """
    trained = journal.result(Trained, "autoencoder")
    if trained is None:
        watch = PoseWatch(images, config, reporter)
        trained = Trained.of(train_start(1, plan, images, config, reporter, journal, show, watch), images, watch)
        journal.finish("autoencoder", trained)
    pose, volume = trained.pose, trained.volume
    device = plan.search_device
    one, two = (accumulate(images, pose, torch.nonzero(half_set == number)[:, 0], device=device) for number in (1, 2))
    halves = dataclasses.replace(reconstruct_halves(one, two, plan.mask(images.box)), combined=volume)
    # no steps: the residuals where the poses are, block by block
    left = refine_poses(reference_on(device, volume), images, pose, steps=0).residual
    explained = explained_share(image_power(images), left, images.noise_variance)
    calibration, shown = Calibration.none(images.box, len(images)), torch.ones(len(images), dtype=torch.bool)
    return HalfSetState(pose, halves, images.box / 2, trained.moved_deg, shown, explained, calibration), trained.networks
