"""From particles to RUN/: the stages in order. The only file that knows them all."""

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ace_em import run_log
from ace_em.amortised import amortised, start_seed, train_start
from ace_em.config import RunConfig
from ace_em.data.particles import Particles
from ace_em.data.preprocess import working_set
from ace_em.data.split import half_sets
from ace_em.data.working_set import WorkingSet
from ace_em.metrics.alignment import apply_frame, turn_volume
from ace_em.physics.pose import Pose
from ace_em.plan import Plan, announce, check, make_plan, record_survey
from ace_em.progress import Reporter
from ace_em.refinement.calibration import Calibration
from ace_em.refinement.exploring import Explorer, HeldOut, Round, expected_share, explore, held_out_rows, judge_held_out
from ace_em.refinement.half_sets import (
    HalfSets,
    HalfSetState,
    at_box,
    refine_defocus_rounds,
    refine_half_sets,
    search_half_sets,
    shared_start,
)
from ace_em.refinement.search import SearchSpace
from ace_em.refinement.symmetry import find_axes
from ace_em.results import Outcome, write_results
from ace_em.run_folder import RunFolder
from ace_em.training.loop import encode
from ace_em.training.step import AutoEncoder
from ace_em.verdict import Verdict, explains, judge, judge_amortised

SYMMETRY_BAND = 6.5
"""Axes are looked for in the map up to this, in cycles per diameter."""


@dataclass(frozen=True)
class Start:
    """Where stage 1 and the exploring of one random start ended, and how well its map explains images held out."""

    number: int
    model: AutoEncoder
    last: Round
    held_out: HeldOut


def run_start(number: int, plan: Plan, images: WorkingSet, config: RunConfig, run: RunFolder, reporter: Reporter) -> Start:
    """Stage 1 and exploring from one random start."""
    trained = train_start(number, plan, images, config, reporter)
    model = trained.model.cpu()
    no_group = torch.eye(3)[None]
    space = SearchSpace(images.box, plan.diameter_px(images.box), config.search, no_group)
    explorer = Explorer(images, plan.mask(images.box), space, config.search)
    generator = torch.Generator().manual_seed(start_seed(config, number))
    # the same images for every start
    rows, seen = held_out_rows(len(images), config.search, torch.Generator().manual_seed(config.seed))
    last = None
    with reporter.task(f"exploring, start {number}", config.search.explore_rounds) as task:

        def on_block(round_number: int, total: int, done: int) -> None:
            state = f"stable {last.stable:.0%}, explained {last.explained:.0%}" if last else ""
            task.update(round_number - 1, f"{done} of {total} images  {state}")

        for last in explore(explorer, trained.volume(), encode(model, images), seen, generator, on_block):
            run_log.exploring_round(last, number, plan, reporter)
            save_checkpoint(run, model, last.pose, last.halves.combined, "explore", last.number)
    assert last is not None
    last, held_out = judge_held_out(explorer, last, rows, generator)
    run_log.start_judged(number, held_out, len(rows), reporter)
    return Start(number, model, last, held_out)


def save_checkpoint(run: RunFolder, model: AutoEncoder, pose: Pose, volume: Tensor, stage: str, number: int) -> None:
    """What is needed to look at, or go on from, the present state."""
    run.write_checkpoint(
        {
            "model": model.state_dict(),
            "rotation": pose.rotation,
            "shift_px": pose.shift_px,
            "volume": volume,
            "stage": stage,
            "round": number,
        }
    )


def best_start(plan: Plan, images: WorkingSet, config: RunConfig, run: RunFolder, reporter: Reporter) -> Start:
    """Starts from random weights until one explains images it has not seen; otherwise the one that explains them best."""
    starts: list[Start] = []
    for number in range(1, config.starts + 1):
        starts.append(run_start(number, plan, images, config, run, reporter))
        if explains(starts[-1].held_out, config.search):
            break
        if number < config.starts:
            reporter.say("that is poor: trying another start")
    # one whose map says nothing about images it has not seen is no candidate, however well it fits their noise
    best = max(starts, key=lambda s: (s.held_out.against_null >= config.search.least_z, s.held_out.explained))
    if len(starts) > 1:
        reporter.say(f"keeping start {best.number}: the held-out images are the likeliest under its map")
    reporter.record("kept", start=best.number)
    return best


def on_axes(plan: Plan, start: Start, config: RunConfig, reporter: Reporter) -> tuple[Tensor, Pose]:
    """The explored map and poses, turned so that the point group's axes stand as RELION has them."""
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


def search(plan: Plan, start: Start, images: WorkingSet, config: RunConfig, run: RunFolder, reporter: Reporter) -> HalfSetState:
    """Every image against the map of its own half-set, at the working box."""
    box = plan.working_box
    space = SearchSpace(box, plan.diameter_px(box), config.search, plan.group)
    volume, pose = on_axes(plan, start, config, reporter)
    n = len(plan.particles)
    state = shared_start(volume, pose, space.band(config.search.shared_band), Calibration.none(box, n))
    sets = HalfSets(images, torch.from_numpy(chosen_half_sets(plan.particles, config.seed)), plan.mask(box), plan.group)
    generator = torch.Generator().manual_seed(config.seed)
    with reporter.task("search of all images", config.search.max_rounds) as task:

        def on_block(number: int, done: int) -> None:
            task.update(number - 1, f"{done} of about {n // 2} images of a half-set")

        rounds = search_half_sets(sets, state, space, generator, on_block)
        for number, state in enumerate(rounds, start=1):
            run_log.half_set_round("search", state, number, box, plan, config, reporter)
            save_checkpoint(run, start.model, state.pose, state.halves.combined, "search", number)
    return state


def refine(
    plan: Plan, start: Start, state: HalfSetState, config: RunConfig, run: RunFolder, reporter: Reporter
) -> tuple[HalfSetState, Tensor | None]:
    """Stage 3 through the working boxes; the defocus offsets (N,) in Angstrom too when they are asked for."""
    box = plan.working_box
    half_set = torch.from_numpy(chosen_half_sets(plan.particles, config.seed))
    for next_box in plan.boxes:
        with reporter.task(f"reading images at {next_box} px", len(plan.particles)) as task:
            images = working_set(plan.particles, plan.look, next_box, on_block=task.update)
        state, box = at_box(state, box, next_box), next_box
        state.calibration.apply_(images)
        sets = HalfSets(images, half_set, plan.mask(box), plan.group)
        with reporter.task(f"refinement at {box} px", config.refine.max_rounds) as task:
            rounds = refine_half_sets(sets, state, config.refine)
            for number, state in enumerate(rounds, start=1):
                task.update(number, f"FSC 0.143 at {plan.box_angstrom / state.fsc143_shell:.1f} A")
                run_log.half_set_round("refine", state, number, box, plan, config, reporter)
                save_checkpoint(run, start.model, state.pose, state.halves.combined, f"refine {box}", number)
    if not config.refine.defocus:
        return state, None
    reporter.say("fitting the defocus of every particle")
    state, fit = refine_defocus_rounds(sets, state, plan.particles.ctf, plan.box_angstrom / box, config.refine)
    run_log.defocus_fitted(fit, plan, state, reporter)
    return state, fit.offset_angstrom


def chosen_half_sets(particles: Particles, seed: int) -> np.ndarray:
    """The half-sets of the input's rlnRandomSubset when it has both, otherwise random halves."""
    given = particles.half_sets()
    if given is not None and set(np.unique(given)) == {1, 2} and np.bincount(given)[1:].min() > len(given) / 4:
        return given
    return half_sets(len(particles), seed)


def reconstruct(particles_path: Path, out: Path, config: RunConfig, overwrite: bool = False) -> Verdict:
    """Particles to RUN/; says whether the run converged.

    Raises
    ------
    InputError
        before anything is written, when the input or an option is wrong.
    """
    check(config)
    RunFolder.check(out, overwrite)
    particles = Particles.open(particles_path)
    reporter = Reporter()
    plan = make_plan(particles, config)
    announce(plan, config, reporter)
    # every image is read, and a bad one refused, before the folder is made
    with reporter.task(f"reading images at {plan.working_box} px", len(particles)) as task:
        turns = config.ace.symmetric_loss == "generalised"
        images = working_set(particles, plan.look, plan.working_box, on_block=task.update, keep_optics=turns)
    run = RunFolder.create(out, overwrite)
    run.write_config({"particles": str(particles_path.resolve()), **dataclasses.asdict(config)})
    reporter.records = run.metrics
    record_survey(plan, reporter)
    half_set = chosen_half_sets(particles, config.seed)
    if config.stages == "ace":
        save = partial(save_checkpoint, run)
        last = amortised(plan, images, torch.from_numpy(half_set), config, reporter, save)
        verdict = judge_amortised(last, expected_share(images, images.box / 2, len(images)), config)
        write_results(plan, Outcome(last, half_set, verdict, None), config, run, reporter)
        return verdict
    start = best_start(plan, images, config, run, reporter)
    # the search brings the transfers up to date, not what they were made of
    searched = search(plan, start, dataclasses.replace(images, optics=None), config, run, reporter)
    del images
    last, defocus = refine(plan, start, searched, config, run, reporter)
    verdict = judge(plan, config, start.held_out, searched, last)
    save_checkpoint(run, start.model, last.pose, last.halves.combined, "end", 0)
    write_results(plan, Outcome(last, half_set, verdict, defocus), config, run, reporter)
    return verdict
