"""The stages of a run, each resumed from where the checkpoint says it stands."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ace_em.data.particle_stack import CPU, ParticleStack
from ace_em.data.preprocess import read_stack
from ace_em.data.split import subset
from ace_em.data.survey import noise_groups, pooled
from ace_em.inference.confidence import Evidence, ResidualBaseline, evidence
from ace_em.inference.predictor import Predictor
from ace_em.io.plain import unpacked
from ace_em.metrics.alignment import apply_frame, turn_volume
from ace_em.physics.image_content import ContentTest, of_unusual_power
from ace_em.physics.pose import Pose
from ace_em.refinement.abinitio import AbInitioSetup, Round, ab_initio, of_first_map
from ace_em.refinement.abinitio import without_old_maps as rounds_without_old_maps
from ace_em.refinement.half_sets import (
    HalfSets,
    HalfSetState,
    at_box,
    change_box,
    refine_half_sets,
    search_half_sets,
    shared_start,
    without_old_maps,
)
from ace_em.refinement.held_out import HeldOut, held_out_rows, judge_held_out
from ace_em.refinement.search import SearchSpace
from ace_em.refinement.symmetry import find_axes
from ace_em.run import log
from ace_em.run.context import RunContext
from ace_em.run.convergence import explains
from ace_em.run.inputs import read_images
from ace_em.run.pose_watch import PoseWatch
from ace_em.training.autoencoder import AutoEncoder
from ace_em.training.encoder_on_map import train_encoder_on_map
from ace_em.training.fabric import make_fabric
from ace_em.training.infer import encode
from ace_em.training.loop import Training

SYMMETRY_BAND = 6.5
"""Axes are looked for in the map up to this, in cycles per diameter."""


@dataclass(frozen=True)
class Trained:
    """The end of stage 1: the decoder's map, the encoder's poses (N,), and the networks' weights by name, all on the CPU."""

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
    """Where stage 1 and the ab initio search of one random start ended, and how well its map explains held-out images.

    ``networks`` are the weights of encoder and decoder by name. Where a second map was in use and the first explains too little,
    ``particles`` (N,) bool are the images of the first.
    """

    number: int
    networks: dict[str, Tensor]
    last: Round
    held_out: HeldOut
    particles: Tensor | None = None


def start_seed(seed: int, number: int) -> int:
    """Every start of every seed has its own."""
    return seed * 100 + number


def train_start(number: int, context: RunContext, stack: ParticleStack, watch: PoseWatch | None = None) -> AutoEncoder:
    """Stage 1 from the random weights of start ``number`` (from 1), or resumed."""
    plan, config, reporter = context.plan, context.config, context.reporter
    name = f"start {number}: training"
    begun = context.checkpoint.load_progress(name)
    if begun is not None and watch is not None:
        watch.load(begun["watched"])
    training = Training(
        stack,
        plan.diameter_px(stack.box),
        config.ace,
        make_fabric(plan.device, config),
        start_seed(config.seed, number),
        begun and begun["training"],
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
    """Stage 1 and the ab initio search from one random start, from the images (N,) that an earlier one found to be ``particles``.

    Where there are none, from all.
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
    # the same images for every start
    rows, seen = held_out_rows(len(stack), config.search, torch.Generator().manual_seed(config.seed))
    found: Tensor | None = None
    seen = seen if particles is None else seen[particles[seen]]
    last = ab_initio_rounds(number, context, setup, trained, seen, generator)
    last, held_out = judge_held_out(setup, last, rows, generator)
    log.start_judged(number, held_out, len(rows), context.reporter)
    if last.second is not None and not explains(held_out, config.search):
        found = of_first_map(setup, last, generator)
    start = Start(number, trained.networks, replace(last, second=None), held_out, found)
    checkpoint.save_done(f"{name}: judged", start, instead_of=f"{name}:")
    return start


@dataclass(frozen=True)
class Rounds:
    """The rounds of the ab initio search so far, and the state of the random numbers after them."""

    history: list[Round]
    random: Tensor


def ab_initio_rounds(
    number: int, context: RunContext, setup: AbInitioSetup, trained: Trained, seen: Tensor, generator: torch.Generator
) -> Round:
    """The last round of a start's ab initio search."""
    name, checkpoint = f"start {number}: ab initio search", context.checkpoint
    history: list[Round] = []
    begun = checkpoint.load_progress(name)
    if begun is not None:
        rounds = unpacked(Rounds, begun)
        history = rounds.history
        generator.set_state(rounds.random)
    with context.reporter.task(f"ab initio search, start {number}", context.config.search.ab_initio_rounds) as task:

        def on_block(round_number: int, total: int, done: int) -> None:
            checkpoint.raise_if_stop_requested()
            last = history[-1] if history else None
            state = f"stable {last.stable:.0%}, explained {last.explained:.0%}" if last else ""
            task.update(round_number - 1, f"{done} of {total} images  {state}")

        for last in ab_initio(setup, trained.volume, trained.pose, seen, generator, on_block, history):
            log.ab_initio_round(last, number, context.plan, context.reporter)
            checkpoint.save_progress(name, Rounds(rounds_without_old_maps(history), generator.get_state()))
            context.show(last.halves.combined)
    return history[-1]


def best_start(context: RunContext, stack: ParticleStack) -> Start:
    """Random starts until the map of one explains images it has not seen; otherwise the start that explains them best."""
    config, reporter, checkpoint = context.config, context.reporter, context.checkpoint
    starts: list[Start] = []
    particles: Tensor | None = None
    for number in range(1, config.starts + 1):
        start = checkpoint.load_done(Start, f"start {number}: judged") or run_start(number, context, stack, particles)
        starts.append(start)
        if explains(start.held_out, config.search):
            break
        if number < config.starts:
            # a start from some of the images that fails as well speaks for all of them again
            particles = start.particles if particles is None else None
            without = (
                "" if particles is None else f", without the {1 - particles.float().mean():.0%} of the images that fit it less"
            )
            reporter.say(f"the map explains too little: trying another start{without}")
            reporter.expected.once_more("start")
    # a map that says nothing about images it has not seen is no candidate, however well it fits their noise
    best = max(starts, key=lambda s: (s.held_out.against_null >= config.search.least_z, s.held_out.explained))
    if len(starts) > 1:
        reporter.say(f"keeping start {best.number}, whose map explains the held-out images best")
    reporter.record("kept", start=best.number)
    checkpoint.save_done("kept", best, instead_of="start ")
    return best


def on_axes(start: Start, context: RunContext) -> tuple[Tensor, Pose]:
    """The ab initio map and poses, turned so that the point group's axes stand as RELION has them."""
    plan, config, reporter = context.plan, context.config, context.reporter
    volume, pose, box = start.last.halves.combined, start.last.pose, plan.working_box
    if len(plan.group) == 1:
        return volume, pose
    band = SYMMETRY_BAND * box / plan.diameter_px(box)
    axes = find_axes(volume, plan.group, band, torch.Generator().manual_seed(config.seed))
    name = config.symmetry.upper()
    reporter.say(f"{name}: the map correlates with its symmetric copies to {axes.correlation:.2f}")
    reporter.record("symmetry", group=name, correlation=round(axes.correlation, 4))
    if axes.correlation < 0.5:
        reporter.say(f"low self-correlation under {name}: check the symmetry, and compare with a run in C1")
    return turn_volume(volume, axes.frame), apply_frame(pose, axes.frame)


@dataclass(frozen=True)
class HalfRounds:
    """The rounds on half-sets at one box so far, and the state of the random numbers after them."""

    history: list[HalfSetState]
    random: Tensor


def half_sets_of(stack: ParticleStack, context: RunContext) -> HalfSets:
    """The half-sets at the stack's box."""
    plan = context.plan
    test = ContentTest(plan.poses_tried(context.config), plan.independent)
    return HalfSets(stack, context.half_set, plan.mask(stack.box), plan.group, plan.search_device, test)


def search(start: Start, stack: ParticleStack, context: RunContext) -> HalfSetState:
    """Every image against the map of its own half-set, at the working box."""
    plan, config, checkpoint, box = context.plan, context.config, context.checkpoint, context.plan.working_box
    space = plan.search_space(box, config)
    generator, n = torch.Generator().manual_seed(config.seed), len(plan.particles)
    begun = checkpoint.load_progress("search")
    if begun is None:
        volume, pose = on_axes(start, context)
        history = [shared_start(stack, volume, pose, space.band(config.search.shared_band))]
    else:
        rounds = unpacked(HalfRounds, begun)
        history = rounds.history
        generator.set_state(rounds.random)
    sets = half_sets_of(stack, context)
    with context.reporter.task("search of all images", config.search.max_rounds) as task:

        def on_block(number: int, done: int) -> None:
            checkpoint.raise_if_stop_requested()
            task.update(number - 1, f"{done} of about {n // 2} images of a half-set")

        for state in search_half_sets(sets, history, space, generator, on_block):
            log.half_set_round("search", state, len(history) - 1, box, plan, config, context.reporter)
            context.show_fsc(state.halves.fsc)
            checkpoint.save_progress("search", HalfRounds(without_old_maps(history), generator.get_state()))
            context.show(state.halves.combined)
    checkpoint.save_done("search", history[-1])
    return history[-1]


def refine(searched: HalfSetState, context: RunContext) -> tuple[HalfSetState, HalfSets]:
    """Stage 3 through its boxes; the half-sets of the last box too."""
    plan, checkpoint = context.plan, context.checkpoint
    state, box = searched, plan.working_box
    sets: HalfSets | None = None
    for next_box in plan.boxes:
        name = f"refinement at {next_box} px"
        done = checkpoint.load_done(HalfSetState, name)
        if done is not None and next_box != plan.boxes[-1]:
            state, box = done, next_box
            continue
        begun = checkpoint.load_progress(name)
        if done is not None:
            history = [done]
        else:
            history = [at_box(state, box, next_box)] if begun is None else unpacked(HalfRounds, begun).history
        sets = None  # the images of two boxes need not be in memory together
        sets = half_sets_of(read_images(plan, next_box, context.config, context.run.path, context.reporter), context)
        box = next_box
        if done is None:
            refine_at(box, sets, history, context)
            checkpoint.save_done(name, history[-1])
        state = history[-1]
    assert sets is not None
    return state, sets


def refine_at(box: int, sets: HalfSets, history: list[HalfSetState], context: RunContext) -> None:
    """The rounds of stage 3 at one box; appended to ``history``."""
    plan, config, name = context.plan, context.config, f"refinement at {box} px"
    with context.reporter.task(name, config.refine.max_rounds) as task:
        for state in refine_half_sets(sets, history, config.refine):
            number = len(history) - 1
            task.update(number, f"FSC 0.143 at {plan.box_angstrom / state.fsc143_shell:.1f} A")
            log.half_set_round("refine", state, number, box, plan, config, context.reporter)
            context.show_fsc(state.halves.fsc)
            context.checkpoint.save_progress(name, HalfRounds(without_old_maps(history), torch.empty(0)))
            context.show(state.halves.combined)


def judge_poses(sets: HalfSets, state: HalfSetState, context: RunContext) -> Evidence:
    """How well the other half's map supports every pose; ``sets`` are those of the ``state``."""
    done = context.checkpoint.load_done(Evidence, "confidence")
    if done is not None:
        return done
    with context.reporter.task("confidence of the poses", len(sets.stack)) as task:

        def on_block(n: int) -> None:
            context.checkpoint.raise_if_stop_requested()
            task.update(n)

        space = context.plan.search_space(sets.stack.box, context.config)
        found = evidence(sets, state, space, context.config.predict.distinct_deg, on_block)
    context.checkpoint.save_done("confidence", found)
    return found


def new_predictor(state: HalfSetState, networks: dict[str, Tensor], context: RunContext) -> Predictor:
    """The final map, with the encoder of stage 1."""
    plan, config, box = context.plan, context.config, context.plan.working_box
    group = noise_groups(plan.particles)
    look = pooled(replace(plan.look, noise=state.noise), group)
    return Predictor(
        box=plan.particles.box,
        pixel_size_angstrom=plan.particles.pixel_size_angstrom,
        diameter_angstrom=plan.diameter_angstrom,
        look=look,
        volume=change_box(state.halves.combined, box),
        encoder={n.removeprefix("encoder."): value for n, value in networks.items() if n.startswith("encoder.")},
        shift_sd_px=max(state.pose.shift_px.std().item() * box / plan.boxes[-1], 0.1),
        symmetry=config.symmetry,
        flip_hand=config.flip_hand,
        ace=config.ace,
        config=config.predict,
        baseline=ResidualBaseline(0.0, 1.0),
        poses_tried=float(plan.poses_tried(config)),
        converged=False,
    )


def train_encoder(state: HalfSetState, networks: dict[str, Tensor], context: RunContext) -> Predictor:
    """Stage 4: the encoder is trained on the final map, from the weights of stage 1's ``networks``."""
    plan, config, checkpoint, name = context.plan, context.config, context.checkpoint, "encoder training"
    done = checkpoint.load_done(Predictor, name)
    if done is not None:
        return done
    rows = subset(len(plan.particles), config.predict.images, config.seed)
    predictor = new_predictor(state, networks, context)
    with context.reporter.task(f"reading images at {plan.working_box} px", len(rows)) as task:
        stack = read_stack(plan.particles, predictor.look, plan.working_box, rows=rows, on_block=task.update)
    begun = checkpoint.load_progress(name)
    training = train_encoder_on_map(
        predictor.model(stack.half_plane),
        stack,
        predictor.diameter_px,
        config.predict,
        make_fabric(plan.device, config),
        config.seed,
        begun and begun["training"],
    )
    with context.reporter.task("training the encoder on the final map", config.predict.steps) as task:
        for progress in training:
            for note in progress.notes:
                context.reporter.say(note)
            if progress.step % 10 == 0 or progress.step == config.predict.steps:
                task.update(progress.step, log.encoder_step(progress, config.predict.steps, context.reporter))
            if progress.saved:
                checkpoint.save_progress(name, {"training": training.saved})
    trained = replace(predictor, encoder=training.model.cpu().encoder.state_dict())
    checkpoint.save_done(name, trained)
    return trained
