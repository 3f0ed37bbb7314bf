"""The stages of a run one by one: each takes up the work where the journal says that it stands."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ace_em.data.working_set import Images
from ace_em.inference.confidence import Evidence, evidence
from ace_em.io.plain import unpacked
from ace_em.metrics.alignment import apply_frame, turn_volume
from ace_em.physics.pose import Pose
from ace_em.refinement.abinitio import Explorer, HeldOut, Round, explore, held_out_rows, judge_held_out
from ace_em.refinement.abinitio import without_past as rounds_without_past
from ace_em.refinement.blank import BlankTest
from ace_em.refinement.half_sets import (
    HalfSets,
    HalfSetState,
    at_box,
    refine_half_sets,
    search_half_sets,
    shared_start,
    without_past,
)
from ace_em.refinement.noise_scale import Calibration
from ace_em.refinement.search import SearchSpace
from ace_em.refinement.symmetry import find_axes
from ace_em.run import log as run_log
from ace_em.run.autoencoder_only import Trained, start_seed, train_start
from ace_em.run.context import Job, poses_tried, search_space
from ace_em.run.convergence import explains
from ace_em.run.inputs import read_images

SYMMETRY_BAND = 6.5
"""Axes are looked for in the map up to this, in cycles per diameter."""


@dataclass(frozen=True)
class Start:
    """Where stage 1 and the exploring of one random start ended, and how well its map explains images held out.

    ``networks`` are the weights of encoder and decoder by name.
    """

    number: int
    networks: dict[str, Tensor]
    last: Round
    held_out: HeldOut


def run_start(number: int, job: Job, images: Images) -> Start:
    """Stage 1 and exploring from one random start."""
    config, plan, journal, name = job.config, job.plan, job.journal, f"start {number}"
    trained = journal.result(Trained, f"{name}: trained")
    if trained is None:
        model = train_start(number, plan, images, config, job.reporter, journal, job.show)
        trained = Trained.of(model, images)
        journal.finish(f"{name}: trained", trained)
    no_group = torch.eye(3)[None]
    space = SearchSpace(images.box, plan.diameter_px(images.box), config.search, no_group, plan.independent)
    explorer = Explorer(images, plan.mask(images.box), space, config.search, plan.search_device)
    generator = torch.Generator().manual_seed(start_seed(config, number))
    # the same images for every start
    rows, seen = held_out_rows(len(images), config.search, torch.Generator().manual_seed(config.seed))
    last = explored(name, number, job, explorer, trained, seen, generator)
    last, held_out = judge_held_out(explorer, last, rows, generator)
    run_log.start_judged(number, held_out, len(rows), job.reporter)
    start = Start(number, trained.networks, last, held_out)
    journal.finish(f"{name}: judged", start, instead_of=f"{name}:")
    return start


@dataclass(frozen=True)
class Rounds:
    """The rounds of exploring so far, and the state of the random numbers after them."""

    history: list[Round]
    random: Tensor


def explored(
    name: str, number: int, job: Job, explorer: Explorer, trained: Trained, seen: Tensor, generator: torch.Generator
) -> Round:
    """The last round of exploring of a start."""
    history: list[Round] = []
    begun = job.journal.safe_point(f"{name}: explore")
    if begun is not None:
        rounds = unpacked(Rounds, begun)
        history = rounds.history
        generator.set_state(rounds.random)
    with job.reporter.task(f"exploring, start {number}", job.config.search.explore_rounds) as task:

        def on_block(round_number: int, total: int, done: int) -> None:
            job.journal.heed_stop()
            last = history[-1] if history else None
            state = f"stable {last.stable:.0%}, explained {last.explained:.0%}" if last else ""
            task.update(round_number - 1, f"{done} of {total} images  {state}")

        for last in explore(explorer, trained.volume, trained.pose, seen, generator, on_block, history):
            run_log.exploring_round(last, number, job.plan, job.reporter)
            job.journal.at(f"{name}: explore", Rounds(rounds_without_past(history), generator.get_state()))
            job.show(last.halves.combined)
    return history[-1]


def best_start(job: Job, images: Images) -> Start:
    """Starts from random weights until one explains images it has not seen; otherwise the one that explains them best."""
    config, reporter, journal = job.config, job.reporter, job.journal
    starts: list[Start] = []
    for number in range(1, config.starts + 1):
        start = journal.result(Start, f"start {number}: judged") or run_start(number, job, images)
        starts.append(start)
        if explains(start.held_out, config.search):
            break
        if number < config.starts:
            reporter.say("that is poor: trying another start")
            reporter.expected.once_more("start")
    # one whose map says nothing about images it has not seen is no candidate, however well it fits their noise
    best = max(starts, key=lambda s: (s.held_out.against_null >= config.search.least_z, s.held_out.explained))
    if len(starts) > 1:
        reporter.say(f"keeping start {best.number}: the held-out images are the likeliest under its map")
    reporter.record("kept", start=best.number)
    journal.finish("kept", best, instead_of="start ")
    return best


def on_axes(start: Start, job: Job) -> tuple[Tensor, Pose]:
    """The explored map and poses, turned so that the point group's axes stand as RELION has them."""
    plan, config, reporter = job.plan, job.config, job.reporter
    volume, pose, box = start.last.halves.combined, start.last.pose, plan.working_box
    if len(plan.group) == 1:
        return volume, pose
    band = SYMMETRY_BAND * box / plan.diameter_px(box)
    axes = find_axes(volume, plan.group, band, torch.Generator().manual_seed(config.seed))
    reporter.say(f"{config.symmetry.upper()}: the map correlates with its symmetric copies to {axes.correlation:.2f}")
    reporter.record("symmetry", group=config.symmetry.upper(), correlation=round(axes.correlation, 4))
    if axes.correlation < 0.5:
        reporter.say(f"that is little: does the particle have {config.symmetry.upper()}? Compare with a run in C1")
    return turn_volume(volume, axes.frame), apply_frame(pose, axes.frame)


@dataclass(frozen=True)
class HalfRounds:
    """The rounds on half-sets at one box so far, and the state of the random numbers after them."""

    history: list[HalfSetState]
    random: Tensor


def half_sets_of(images: Images, job: Job) -> HalfSets:
    """The half-sets at the images' box."""
    plan = job.plan
    blank = BlankTest(poses_tried(plan, job.config), plan.independent)
    return HalfSets(images, job.half_set, plan.mask(images.box), plan.group, plan.search_device, blank)


def search(start: Start, images: Images, job: Job) -> HalfSetState:
    """Every image against the map of its own half-set, at the working box; ``images`` are brought up to date in place."""
    plan, config, journal, box = job.plan, job.config, job.journal, job.plan.working_box
    space = search_space(plan, box, config)
    generator, n = torch.Generator().manual_seed(config.seed), len(plan.particles)
    begun = journal.safe_point("search")
    if begun is None:
        volume, pose = on_axes(start, job)
        history = [shared_start(volume, pose, space.band(config.search.shared_band), Calibration.none(box, n))]
    else:
        rounds = unpacked(HalfRounds, begun)
        history = rounds.history
        generator.set_state(rounds.random)
    for step in history[-1].applied:
        step.apply_(images)
    sets = half_sets_of(images, job)
    with job.reporter.task("search of all images", config.search.max_rounds) as task:

        def on_block(number: int, done: int) -> None:
            journal.heed_stop()
            task.update(number - 1, f"{done} of about {n // 2} images of a half-set")

        for state in search_half_sets(sets, history, space, generator, on_block):
            run_log.half_set_round("search", state, len(history) - 1, box, plan, config, job.reporter)
            job.show_fsc(state.halves.fsc)
            journal.at("search", HalfRounds(without_past(history), generator.get_state()))
            job.show(state.halves.combined)
    journal.finish("search", history[-1])
    return history[-1]


def refine(searched: HalfSetState, job: Job) -> tuple[HalfSetState, HalfSets]:
    """Stage 3 through the working boxes; the sets of the last box too, their images up to date with the state."""
    plan, journal = job.plan, job.journal
    state, box = searched, plan.working_box
    sets: HalfSets | None = None
    for next_box in plan.boxes:
        name = f"refine {next_box}"
        done = journal.result(HalfSetState, name)
        if done is not None and next_box != plan.boxes[-1]:
            state, box = done, next_box
            continue
        begun = journal.safe_point(name)
        if done is not None:
            history = [done]
        else:
            history = [at_box(state, box, next_box)] if begun is None else unpacked(HalfRounds, begun).history
        sets = None  # the images of two boxes need not be in memory together
        images = read_images(plan, next_box, job.config, job.run.path, job.reporter)
        for step in history[-1].applied:
            step.apply_(images)
        sets = half_sets_of(images, job)
        box = next_box
        if done is None:
            refine_at(box, sets, history, job)
            journal.finish(name, history[-1])
        state = history[-1]
    assert sets is not None
    return state, sets


def judge_poses(sets: HalfSets, state: HalfSetState, job: Job) -> Evidence:
    """What the other half's map says of every pose; ``sets`` are those of the ``state``."""
    done = job.journal.result(Evidence, "confidence")
    if done is not None:
        return done
    with job.reporter.task("confidence of the poses", len(sets.images)) as task:

        def on_block(n: int) -> None:
            job.journal.heed_stop()
            task.update(n)

        space = search_space(job.plan, sets.images.box, job.config)
        found = evidence(sets, state, space, job.config.predict.distinct_deg, on_block)
    job.journal.finish("confidence", found)
    return found


def refine_at(box: int, sets: HalfSets, history: list[HalfSetState], job: Job) -> None:
    """The rounds of stage 3 at one box; appended to ``history``."""
    plan, config = job.plan, job.config
    with job.reporter.task(f"refinement at {box} px", config.refine.max_rounds) as task:
        for state in refine_half_sets(sets, history, config.refine):
            number = len(history) - 1
            task.update(number, f"FSC 0.143 at {plan.box_angstrom / state.fsc143_shell:.1f} A")
            run_log.half_set_round("refine", state, number, box, plan, config, job.reporter)
            job.show_fsc(state.halves.fsc)
            job.journal.at(f"refine {box}", HalfRounds(without_past(history), torch.empty(0)))
            job.show(state.halves.combined)
