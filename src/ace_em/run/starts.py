"""Random starts: stage 1 and the ab initio search from each, and the choice of the best."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ace_em.data.particle_stack import CPU, ParticleStack
from ace_em.io.plain import unpacked
from ace_em.physics.image_content import of_unusual_power
from ace_em.physics.pose import Pose
from ace_em.refinement.abinitio import AbInitioSetup, Round, ab_initio, of_first_map, without_old_maps
from ace_em.refinement.held_out import HeldOut, held_out_rows, judge_held_out
from ace_em.refinement.search import SearchSpace
from ace_em.run import log
from ace_em.run.context import RunContext
from ace_em.run.convergence import explains
from ace_em.run.pose_watch import PoseWatch
from ace_em.training.autoencoder import AutoEncoder
from ace_em.training.fabric import make_fabric
from ace_em.training.infer import encode
from ace_em.training.loop import Training


@dataclass(frozen=True)
class Trained:
    """Result of stage 1 on the CPU: the decoder's map, the encoder's poses (N,), and the weights of the networks by name."""

    volume: Tensor
    pose: Pose
    networks: dict[str, Tensor]

    @staticmethod
    @torch.no_grad()
    def of(model: AutoEncoder, stack: ParticleStack) -> "Trained":
        pose = encode(model, stack).to(CPU)
        model = model.cpu()
        return Trained(model.decoder.volume(), pose, model.state_dict())


@dataclass(frozen=True)
class Start:
    """Result of one random start: the last round of its ab initio search, and how well its map explains held-out images.

    Attributes
    ----------
    networks : weights of encoder and decoder by name.
    particles : (N,) bool, the images of the first map, where the search needed a second one and the first explains too little.
    """

    number: int
    networks: dict[str, Tensor]
    last: Round
    held_out: HeldOut
    particles: Tensor | None = None


def start_seed(seed: int, number: int) -> int:
    """Random seed of a start, distinct for every seed and start."""
    return seed * 100 + number


def train_start(number: int, context: RunContext, stack: ParticleStack, watch: PoseWatch | None = None) -> AutoEncoder:
    """Train stage 1 from the random weights of start ``number`` (from 1), or resume it."""
    plan, config, reporter = context.plan, context.config, context.reporter
    name = f"start {number}: training"
    saved = context.checkpoint.load_progress(name)
    if saved is not None and watch is not None:
        watch.load(saved["watched"])
    training = Training(
        stack,
        plan.diameter_px(stack.box),
        config.ace,
        make_fabric(plan.device, config),
        start_seed(config.seed, number),
        saved and saved["training"],
    )
    with reporter.task(f"ACE training, start {number}", config.ace.steps) as task:
        for progress in training:
            for note in progress.notes:
                reporter.say(note)
            if watch is not None:
                watch(progress, training.model)
            if progress.step % 10 == 0 or progress.step == config.ace.steps:
                task.update(progress.step, log.ace_step(progress, number, plan, config, reporter))
            if progress.saved:
                watched = None if watch is None else watch.packed()
                context.checkpoint.save_progress(name, {"training": training.saved, "watched": watched})
                with torch.no_grad():
                    context.show(training.model.decoder.volume())
    return training.model


def run_start(number: int, context: RunContext, stack: ParticleStack, particles: Tensor | None = None) -> Start:
    """Stage 1 and the ab initio search of one random start, from the images (N,) that an earlier start found to be ``particles``.

    Without these, stage 1 uses all images but those of unusual power.
    """
    config, plan, checkpoint, name = context.config, context.plan, context.checkpoint, f"start {number}"
    trained = checkpoint.load_done(Trained, f"{name}: trained")
    if trained is None:
        used = ~of_unusual_power(stack.power()) if particles is None else particles
        trained = Trained.of(train_start(number, context, stack if used.all() else stack.subset(used)), stack)
        checkpoint.save_done(f"{name}: trained", trained)
    no_group = torch.eye(3)[None]
    space = SearchSpace(stack.box, plan.diameter_px(stack.box), config.search, no_group, plan.independent)
    setup = AbInitioSetup(stack, plan.mask(stack.box), space, config.search, plan.search_device)
    generator = torch.Generator().manual_seed(start_seed(config.seed, number))
    # the same held-out images for every start
    held_out_images, search_images = held_out_rows(len(stack), config.search, torch.Generator().manual_seed(config.seed))
    if particles is not None:
        search_images = search_images[particles[search_images]]
    last = ab_initio_rounds(number, context, setup, trained, search_images, generator)
    last, held_out = judge_held_out(setup, last, held_out_images, generator)
    log.start_judged(number, held_out, len(held_out_images), context.reporter)
    found: Tensor | None = None
    if last.second is not None and not explains(held_out, config.search):
        found = of_first_map(setup, last, generator)
    start = Start(number, trained.networks, replace(last, second=None), held_out, found)
    checkpoint.save_done(f"{name}: judged", start, instead_of=f"{name}:")
    return start


@dataclass(frozen=True)
class Rounds:
    """Finished rounds of an ab initio search, and the state of the random generator after them."""

    history: list[Round]
    random: Tensor


def ab_initio_rounds(
    number: int, context: RunContext, setup: AbInitioSetup, trained: Trained, rows: Tensor, generator: torch.Generator
) -> Round:
    """Run or resume the ab initio search of a start on the images ``rows``; returns its last round."""
    name, checkpoint = f"start {number}: ab initio search", context.checkpoint
    history: list[Round] = []
    saved = checkpoint.load_progress(name)
    if saved is not None:
        rounds = unpacked(Rounds, saved)
        history = rounds.history
        generator.set_state(rounds.random)
    with context.reporter.task(f"ab initio search, start {number}", context.config.search.ab_initio_rounds) as task:

        def on_block(round_number: int, total: int, done: int) -> None:
            checkpoint.raise_if_stop_requested()
            last = history[-1] if history else None
            state = f"stable {last.stable:.0%}, explained {last.explained:.0%}" if last else ""
            task.update(round_number - 1, f"{done} of {total} images  {state}")

        for last in ab_initio(setup, trained.volume, trained.pose, rows, generator, on_block, history):
            log.ab_initio_round(last, number, context.plan, context.reporter)
            checkpoint.save_progress(name, Rounds(without_old_maps(history), generator.get_state()))
            context.show(last.halves.combined)
    return history[-1]


def best_start(context: RunContext, stack: ParticleStack) -> Start:
    """The first random start whose map explains the held-out images; otherwise the best of all starts."""
    config, reporter, checkpoint = context.config, context.reporter, context.checkpoint
    starts: list[Start] = []
    particles: Tensor | None = None
    for number in range(1, config.starts + 1):
        start = checkpoint.load_done(Start, f"start {number}: judged") or run_start(number, context, stack, particles)
        starts.append(start)
        if explains(start.held_out, config.search):
            break
        if number < config.starts:
            # if a start without some of the images fails as well, the next one uses all of them again
            particles = start.particles if particles is None else None
            left_out = 0.0 if particles is None else 1 - particles.float().mean().item()
            without = f", without {left_out:.0%} of the images" if left_out else ""
            reporter.say(f"the map explains too little of the held-out images: trying another start{without}")
            reporter.expected.once_more("start")
    # a map that is not better than random phases is chosen last, however well it fits noise
    best = max(starts, key=lambda s: (s.held_out.against_null >= config.search.least_z, s.held_out.explained))
    if len(starts) > 1:
        reporter.say(f"keeping start {best.number}, whose map explains the held-out images best")
    reporter.record("kept", start=best.number)
    checkpoint.save_done("kept", best, instead_of="start ")
    return best
