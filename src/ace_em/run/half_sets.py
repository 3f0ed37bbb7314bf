"""The stages on two half-sets: search of all images, local refinement, and the confidence of the poses."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ace_em.data.particle_stack import ParticleStack
from ace_em.inference.confidence import Evidence, evidence
from ace_em.io.plain import unpacked
from ace_em.metrics.alignment import apply_frame, turn_volume
from ace_em.physics.image_content import ContentTest
from ace_em.physics.pose import Pose
from ace_em.refinement.half_sets import (
    HalfSets,
    HalfSetState,
    at_box,
    refine_half_sets,
    search_half_sets,
    shared_start,
    without_old_maps,
)
from ace_em.refinement.hand import of_one_hand
from ace_em.refinement.symmetry import find_axes
from ace_em.run import log
from ace_em.run.context import RunContext
from ace_em.run.inputs import read_images
from ace_em.run.starts import Start

SYMMETRY_BAND = 6.5
"""Band of the search for symmetry axes, in cycles per diameter."""


def on_axes(start: Start, context: RunContext) -> tuple[Tensor, Pose]:
    """The ab initio map and poses, rotated so that the symmetry axes follow RELION's convention."""
    plan, config, reporter = context.plan, context.config, context.reporter
    volume, pose, box = start.last.halves.combined, start.last.pose, plan.working_box
    if len(plan.group) == 1:
        return volume, pose
    band = SYMMETRY_BAND * box / plan.diameter_px(box)
    axes = find_axes(volume, plan.group, band, torch.Generator().manual_seed(config.seed))
    name = config.symmetry.upper()
    reporter.say(f"{name}: the correlation of the map with its symmetric copies is {axes.correlation:.2f}")
    reporter.record("symmetry", group=name, correlation=round(axes.correlation, 4))
    if axes.correlation < 0.5:
        reporter.say(f"low correlation under {name}: check the symmetry and compare with a run in C1")
    return turn_volume(volume, axes.frame), apply_frame(pose, axes.frame)


def on_pseudo_axes(searched: HalfSetState, context: RunContext) -> HalfSetState:
    """The state after the search with its poses rotated so that the axes of the pseudo-symmetry follow RELION's convention.

    Its maps stay as they are: the first round of the refinement makes new ones from the poses.
    """
    plan, config, reporter = context.plan, context.config, context.reporter
    generator = torch.Generator().manual_seed(config.seed)
    axes = find_axes(searched.halves.combined, plan.copies, searched.fsc143_shell, generator)
    name = config.relax_symmetry.upper()
    reporter.say(f"pseudo-symmetry {name}: the correlation of the map with its copies is {axes.correlation:.2f}")
    reporter.record("pseudo_symmetry", group=name, correlation=round(axes.correlation, 4))
    if axes.correlation < 0.5:
        reporter.say(f"low correlation under {name}: check --relax-symmetry")
    return replace(searched, posterior=searched.posterior.in_frame(axes.frame))


@dataclass(frozen=True)
class HalfRounds:
    """Finished rounds on half-sets at one box, and the state of the random generator after them."""

    history: list[HalfSetState]
    random: Tensor


def half_sets_of(stack: ParticleStack, context: RunContext) -> HalfSets:
    """The half-sets at the stack's box."""
    plan = context.plan
    test = ContentTest(plan.poses_tried(context.config), plan.independent)
    band = plan.search_space(stack.box, context.config).band(context.config.search.last_band)
    mask, flatten = plan.mask(stack.box), context.config.refine.flatten_solvent
    return HalfSets(stack, context.half_set, mask, plan.group, plan.search_device, test, band, flatten)


def search(start: Start, stack: ParticleStack, context: RunContext) -> HalfSetState:
    """Search the pose of every image against the map of its own half-set, at the working box."""
    plan, config, checkpoint, box = context.plan, context.config, context.checkpoint, context.plan.working_box
    space = plan.search_space(box, config)
    generator, n = torch.Generator().manual_seed(config.seed), len(plan.particles)
    saved = checkpoint.load_progress("search")
    if saved is None:
        volume, pose = on_axes(start, context)
        history = [shared_start(stack, volume, pose, space.band(config.search.shared_band))]
    else:
        rounds = unpacked(HalfRounds, saved)
        history = rounds.history
        generator.set_state(rounds.random)
    sets = half_sets_of(stack, context)
    with context.reporter.task("search of all images", config.search.max_rounds) as task:

        def on_block(number: int, done: int) -> None:
            checkpoint.raise_if_stop_requested()
            task.update(number - 1, f"{done} of about {n // 2} images of a half-set")

        for found in search_half_sets(sets, history, space, generator, on_block):
            state = history[-1] = of_one_hand(sets, found)
            if state is not found:
                context.reporter.say("the map of half-set 2 had the other hand and is mirrored")
            log.half_set_round("search", state, len(history) - 1, box, plan, config, context.reporter)
            context.show_fsc(state.halves.fsc)
            checkpoint.save_progress("search", HalfRounds(without_old_maps(history), generator.get_state()))
            context.show(state.halves.combined)
    checkpoint.save_done("search", history[-1])
    return history[-1]


def refine(searched: HalfSetState, context: RunContext) -> tuple[HalfSetState, HalfSets]:
    """Stage 3 at all its boxes; returns the last state and the half-sets at the last box."""
    plan, checkpoint = context.plan, context.checkpoint
    state, box = searched, plan.working_box
    sets: HalfSets | None = None
    for next_box in plan.boxes:
        name = f"refinement at {next_box} px"
        done = checkpoint.load_done(HalfSetState, name)
        if done is not None and next_box != plan.boxes[-1]:
            state, box = done, next_box
            continue
        saved = checkpoint.load_progress(name)
        if done is not None:
            history = [done]
        elif saved is not None:
            history = unpacked(HalfRounds, saved).history
        else:
            if next_box == plan.boxes[0] and len(plan.copies) > 1:
                state = on_pseudo_axes(state, context)
            history = [at_box(state, box, next_box)]
        sets = None  # free the images of the previous box before the next are read
        stack = read_images(plan, next_box, context.config, context.run.path, context.reporter)
        sets = replace(half_sets_of(stack, context), copies=plan.copies)
        del stack
        box = next_box
        if done is None:
            refine_at(box, sets, history, context)
            checkpoint.save_done(name, history[-1])
        state = history[-1]
    assert sets is not None
    return state, sets


def refine_at(box: int, sets: HalfSets, history: list[HalfSetState], context: RunContext) -> None:
    """Rounds of stage 3 at one box, appended to ``history``."""
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
    """Evidence for every pose from the map of the other half-set; ``sets`` at the box of ``state``."""
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
