"""From particles to RUN/: the stages in order. The only file that knows them all."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from ace_em.config import RunConfig
from ace_em.data.particles import Particles
from ace_em.data.preprocess import WorkingSet, working_set
from ace_em.data.split import half_sets
from ace_em.metrics.fsc import resolution_shell
from ace_em.physics.pose import Pose
from ace_em.plan import Plan, announce, check, make_plan, record_survey
from ace_em.progress import Reporter, clock
from ace_em.refinement.backprojection import Halves
from ace_em.refinement.half_sets import HalfSetState, at_box, change_box, low_pass, refine_half_sets
from ace_em.refinement.rounds import Round, finished, search_rounds
from ace_em.run_folder import RunFolder
from ace_em.training.loop import Progress, encode, train
from ace_em.training.step import AutoEncoder


@dataclass(frozen=True)
class Start:
    """Where stages 1 and 2 of one random start ended."""

    number: int
    model: AutoEncoder
    last: Round


def run_start(number: int, plan: Plan, images: WorkingSet, config: RunConfig, run: RunFolder, reporter: Reporter) -> Start:
    """Stages 1 and 2 from one random start."""
    seed = config.seed * 100 + number
    box = plan.working_box
    accelerator = "gpu" if plan.device == "cuda" else plan.device
    fabric = Fabric(accelerator=accelerator, devices=1, precision=config.precision)
    box_angstrom = plan.box_angstrom
    with reporter.task(f"ACE training, start {number}", config.ace.steps) as task:

        def on_step(progress: Progress) -> None:
            if progress.step % 10 and progress.step != config.ace.steps:
                return
            image, pose = progress.losses.image.item(), progress.losses.pose.item()
            band = box_angstrom / progress.band
            task.update(progress.step, f"band {band:.0f} A  image loss {image:.3f}  pose loss {pose:.3f}")
            reporter.record(
                "ace",
                start=number,
                step=progress.step,
                steps=config.ace.steps,
                image_loss=round(image, 5),
                pip_loss=round(pose, 5),
                band_angstrom=round(band, 2),
            )

        trained = train(images, plan.diameter_px(box), config.ace, fabric, seed, on_step)
    model = trained.model.cpu()
    pose = encode(model, images)
    generator = torch.Generator().manual_seed(seed)
    history: list[Round] = []
    n_rounds = config.search.explore_rounds + config.search.max_rounds
    with reporter.task(f"pose search, start {number}", n_rounds) as task:

        def on_block(round_number: int, total: int, done: int) -> None:
            last = history[-1] if history else None
            state = f"stable {last.stable:.0%}, explained {last.explained:.0%}" if last else ""
            task.update(round_number - 1, f"{done} of {total} images  {state}")

        rounds = search_rounds(
            images, trained.volume(), pose, plan.mask(box), plan.diameter_px(box), config.search, generator, on_block
        )
        for state in rounds:
            history.append(state)
            report_round(state, number, plan, reporter)
            save_checkpoint(run, model, state.pose, state.halves.combined, number, state.number)
            if finished(history, config.search):
                break
    return Start(number, model, history[-1])


def report_round(state: Round, start: int, plan: Plan, reporter: Reporter) -> None:
    """A line and a record after a search round."""
    band, resolution = plan.box_angstrom / state.band, plan.box_angstrom / state.fsc143_shell
    moved = state.moved_deg.median().item()
    reporter.say(
        f"search round {state.number}{' (subset)' if state.exploring else ''}: band {band:.1f} A, {state.stable:.0%} of poses "
        f"stable, median move {moved:.1f} deg, {state.explained:.1%} of the signal explained"
    )
    reporter.record(
        "search",
        start=start,
        round=state.number,
        band_angstrom=round(band, 2),
        stable=round(state.stable, 4),
        moved_median_deg=round(moved, 3),
        exploring=state.exploring,
        explained=round(state.explained, 4),
        fsc143_angstrom=round(resolution, 2),
    )


def save_checkpoint(run: RunFolder, model: AutoEncoder, pose: Pose, volume: Tensor, start: int, number: int) -> None:
    """What is needed to look at, or go on from, the present state."""
    run.write_checkpoint(
        {
            "model": model.state_dict(),
            "rotation": pose.rotation,
            "shift_px": pose.shift_px,
            "volume": volume,
            "start": start,
            "round": number,
        }
    )


def best_start(plan: Plan, images: WorkingSet, config: RunConfig, run: RunFolder, reporter: Reporter) -> Start:
    """Starts from random weights until one settles; otherwise the one whose map explains the images best."""
    starts: list[Start] = []
    for number in range(1, config.starts + 1):
        starts.append(run_start(number, plan, images, config, run, reporter))
        if settled(starts[-1], config):
            break
        if number < config.starts:
            last = starts[-1].last
            reporter.say(
                f"start {number} did not settle ({last.stable:.0%} of poses stable, {last.explained:.0%} of the signal "
                "explained): trying another"
            )
    best = max(starts, key=lambda s: s.last.explained)
    if len(starts) > 1:
        reporter.say(f"keeping start {best.number}: it explains the most, {best.last.explained:.1%}")
    return best


def settled(start: Start, config: RunConfig) -> bool:
    """Whether the poses stopped moving, and explain the images."""
    last, limits = start.last, config.search
    return last.stable >= limits.settled_share and last.explained >= limits.settled_explained


def refine(plan: Plan, start: Start, config: RunConfig, reporter: Reporter) -> HalfSetState:
    """Stage 3 through the working boxes."""
    half_set = torch.from_numpy(chosen_half_sets(plan.particles, config.seed))
    box, pose = plan.working_box, start.last.pose
    band = start.last.band
    common = low_pass(start.last.halves.combined, band)
    halves = dataclasses.replace(start.last.halves, half1=common, half2=common, combined=common)
    state = None
    for next_box in plan.boxes:
        with reporter.task(f"reading images at {next_box} px", len(plan.particles)) as task:
            images = working_set(plan.particles, plan.look, next_box, on_block=task.update)
        halves, pose = at_box(halves, next_box), pose.rescaled(next_box / box)
        box = next_box
        rounds = refine_half_sets(images, halves, pose, half_set, plan.mask(box), band, config.refine)
        with reporter.task(f"refinement at {box} px", config.refine.max_rounds) as task:
            for number, state in enumerate(rounds, start=1):
                resolution = plan.box_angstrom / state.fsc143_shell
                task.update(number, f"FSC 0.143 at {resolution:.1f} A")
                report_refinement(state, number, box, plan, config, reporter)
        assert state is not None
        halves, pose, band = state.halves, state.pose, state.band
    assert state is not None
    return state


def report_refinement(state: HalfSetState, number: int, box: int, plan: Plan, config: RunConfig, reporter: Reporter) -> None:
    """A line and a record after a refinement round."""
    resolution, moved = plan.box_angstrom / state.fsc143_shell, state.moved_deg
    stable = (moved < config.search.stable_deg).float().mean().item()
    reporter.say(
        f"refinement at {box} px, round {number}: half-map FSC 0.143 at {resolution:.2f} A, median move {moved.median():.2f} deg"
    )
    reporter.record(
        "refine",
        box=box,
        round=number,
        band_angstrom=round(plan.box_angstrom / state.band, 2),
        stable=round(stable, 4),
        moved_median_deg=round(moved.median().item(), 4),
        fsc143_angstrom=round(resolution, 3),
    )


def chosen_half_sets(particles: Particles, seed: int) -> np.ndarray:
    """The half-sets of the input's rlnRandomSubset when it has both, otherwise random halves."""
    given = particles.half_sets()
    if given is not None and set(np.unique(given)) == {1, 2} and np.bincount(given)[1:].min() > len(given) / 4:
        return given
    return half_sets(len(particles), seed)


def grey_scaled(halves: Halves, plan: Plan, box: int) -> dict[str, Tensor]:
    """Maps whose projections, summed along z, have the grey values of the normalised images (noise of deviation 1)."""
    scale = (box / plan.particles.box) ** 3
    return {"volume": halves.combined * scale, "half1": halves.half1 * scale, "half2": halves.half2 * scale}


def reconstruct(particles_path: Path, out: Path, config: RunConfig, overwrite: bool = False) -> bool:
    """Particles to RUN/; returns whether the poses settled.

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
        images = working_set(particles, plan.look, plan.working_box, on_block=task.update)
    run = RunFolder.create(out, overwrite)
    run.write_config({"particles": str(particles_path.resolve()), **dataclasses.asdict(config)})
    reporter.records = run.metrics
    record_survey(plan, reporter)
    start = best_start(plan, images, config, run, reporter)
    del images
    state = refine(plan, start, config, reporter)
    write_results(plan, start, state, config, run, reporter)
    return settled(start, config)


def write_results(plan: Plan, start: Start, state: HalfSetState, config: RunConfig, run: RunFolder, reporter: Reporter) -> None:
    """Maps, FSC, poses, checkpoint, the last record and the report."""
    from ace_em.report.page import write_report

    box = plan.boxes[-1]
    pixel_size = plan.box_angstrom / box
    run.write_maps(grey_scaled(state.halves, plan, box), pixel_size)
    run.write_fsc(state.halves.fsc, pixel_size)
    run.write_poses(plan.particles, state.pose.rescaled(plan.particles.box / box), state.half_set.numpy())
    save_checkpoint(run, start.model, state.pose, change_box(state.halves.combined, box), start.number, start.last.number)
    resolution = plan.box_angstrom / resolution_shell(state.halves.fsc, 0.143)
    converged, last = settled(start, config), start.last
    state_of_poses = f"{last.stable:.0%} stable, {last.explained:.0%} of the signal explained"
    message = (
        f"poses settled ({state_of_poses}); half-maps agree to {resolution:.1f} A (FSC 0.143)"
        if converged
        else f"the poses did not settle ({state_of_poses}): do not trust this map; try another --seed, a larger --ace.steps, "
        f"or --diameter if {plan.diameter_angstrom:.0f} A is wrong"
    )
    reporter.record("end", converged=converged, resolution_angstrom=round(resolution, 3), message=message)
    write_report(run.path)
    reporter.say(message)
    reporter.say(f"{run.volume}, {run.poses}, {run.path / 'report.html'} written after {clock(reporter.elapsed_s)}")
