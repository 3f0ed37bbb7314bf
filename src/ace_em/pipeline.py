"""From particles to RUN/: the stages in order. The only file that knows them all."""

import dataclasses
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from ace_em.config import RunConfig
from ace_em.data.particles import Particles
from ace_em.data.preprocess import Survey, WorkingSet, survey, working_set
from ace_em.data.split import half_sets
from ace_em.errors import InputError
from ace_em.metrics.fsc import resolution_shell
from ace_em.models.voxel_grid import ball_radius_px, soft_ball
from ace_em.physics.pose import Pose
from ace_em.progress import Reporter, clock
from ace_em.refinement.backprojection import Halves
from ace_em.refinement.half_sets import HalfSetState, at_box, change_box, low_pass, refine_half_sets
from ace_em.refinement.rounds import Round, finished, search_rounds
from ace_em.run_folder import RunFolder
from ace_em.training.loop import Progress, encode, train
from ace_em.training.step import AutoEncoder

LARGEST_DEFAULT_BOX = 128
LEAST_PARTICLES = 100


@dataclass(frozen=True)
class Plan:
    """What the run will do, settled before it starts."""

    particles: Particles
    look: Survey
    diameter_angstrom: float
    working_box: int
    boxes: list[int]
    device: str
    threads: int

    @property
    def box_angstrom(self) -> float:
        return self.particles.box * self.particles.pixel_size_angstrom

    def diameter_px(self, box: int) -> float:
        return self.diameter_angstrom / self.box_angstrom * box

    def mask(self, box: int) -> Tensor:
        """Soft ball that holds the particle."""
        return soft_ball(box, ball_radius_px(box, self.diameter_px(box)))


@dataclass(frozen=True)
class Start:
    """Where stages 1 and 2 of one random start ended."""

    number: int
    model: AutoEncoder
    last: Round


def free_threads() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_device(name: str) -> str:
    """``auto`` takes what is there: CUDA, then Apple's MPS, then the CPU."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next(d for d in ("cuda", "mps", "cpu") if available[d])
    if not available[name]:
        raise InputError(f"--device {name}: no such device here; expected auto or cpu")
    return name


def even_box(least: float) -> int:
    """The next even box of at least 24 whose FFT is fast (no prime factor above 5)."""
    box = max(24, 2 * math.ceil(least / 2))
    while _largest_prime_factor(box) > 5:
        box += 2
    return box


def _largest_prime_factor(n: int) -> int:
    largest, factor = 1, 2
    while n > 1:
        while n % factor == 0:
            n, largest = n // factor, factor
        factor += 1
    return largest


def check(config: RunConfig) -> None:
    """Refuse settings that make no run."""
    ace, search, refinement = config.ace, config.search, config.refine
    rules = {
        "seed": (config.seed, 0 <= config.seed < 2**31, "0 to 2^31"),
        "threads": (config.threads, config.threads >= 0, "0 or more"),
        "diameter": (config.diameter, config.diameter >= 0, "0 or a number of Angstrom"),
        "starts": (config.starts, config.starts >= 1, "1 or more"),
        "ace.steps": (ace.steps, ace.steps >= 1, "1 or more"),
        "ace.batch": (ace.batch, ace.batch >= 2, "2 or more"),
        "ace.hypotheses": (ace.hypotheses, ace.hypotheses >= 1, "1 or more"),
        "ace.width": (ace.width, ace.width >= 1, "1 or more"),
        "ace.first_band": (ace.first_band, 0 < ace.first_band <= ace.last_band, "more than 0, and ace.last_band at most"),
        "search.first_band": (search.first_band, 0 < search.first_band <= search.last_band, "0 to search.last_band"),
        "search.spacing": (search.spacing, search.spacing > 0.2, "more than 0.2"),
        "search.explore_images": (search.explore_images, search.explore_images >= 2, "2 or more"),
        "search.max_rounds": (search.max_rounds, search.max_rounds >= 1, "1 or more"),
        "search.shift_step": (search.shift_step, search.shift_step > 0, "more than 0"),
        "refine.max_rounds": (refinement.max_rounds, refinement.max_rounds >= 1, "1 or more"),
    }
    for name, (value, fine, expected) in rules.items():
        if not fine:
            raise InputError(f"--{name} {value}: expected {expected}")


def make_plan(particles: Particles, config: RunConfig) -> Plan:
    """Survey the images and fix boxes, device and threads."""
    if len(particles) < LEAST_PARTICLES:
        raise InputError(f"{particles.table.path}: {len(particles)} particles; expected at least {LEAST_PARTICLES}")
    sign = {"auto": None, "white": 1.0, "black": -1.0}[config.contrast]
    threads = config.threads or free_threads()
    torch.set_num_threads(threads)
    look = survey(particles, sign, config.seed)
    diameter = config.diameter or look.diameter_angstrom
    box_angstrom = particles.box * particles.pixel_size_angstrom
    if not 4 * particles.pixel_size_angstrom <= diameter <= 1.5 * box_angstrom:
        raise InputError(f"--diameter {diameter:g}: expected Angstrom, no more than 1.5 times the box of {box_angstrom:.0f} A")
    shells_per_band = box_angstrom / diameter
    working = min(even_box(2.2 * config.ace.last_band * shells_per_band), particles.box)
    final = config.final_box or min(particles.box, LARGEST_DEFAULT_BOX)
    if not 16 <= final <= particles.box:
        raise InputError(f"--final_box {final}: expected 16 to {particles.box}, the box of the images")
    middle = [b for b in (64,) if working < b < final]
    return Plan(particles, look, diameter, working, [*middle, final], choose_device(config.device), threads)


def announce(plan: Plan, config: RunConfig, reporter: Reporter) -> None:
    """The plan, before anything long starts."""
    p, look = plan.particles, plan.look
    colour = "white" if look.sign > 0 else "black"
    how = "measured" if config.contrast == "auto" else "as told"
    reporter.say(f"{p.table.path}: {len(p)} particles, {p.box} px at {p.pixel_size_angstrom:g} A/px")
    reporter.say(f"protein is {colour} ({how}, z = {look.contrast_z:+.0f}), signal over noise {look.snr:.3f}")
    if config.contrast == "auto" and abs(look.contrast_z) < 5:
        reporter.say("the contrast is not clear from the images: if the map comes out inverted, give --contrast")
    reporter.say(
        f"diameter about {plan.diameter_angstrom:.0f} A; working box {plan.working_box} px, final box {plan.boxes[-1]} px"
    )
    coefficients = math.pi / 2 * (plan.working_box / 2) ** 2
    training = config.ace.steps * config.ace.batch * (coefficients + 400) * 6e-7 / min(plan.threads, 2)
    searching = len(p) * coefficients * 4e-5 / min(plan.threads, 2)
    seconds = training + searching + len(p) * plan.boxes[-1] ** 2 * 1.3e-6
    reporter.say(
        f"on {plan.device}, {plan.threads} thread(s), seed {config.seed}; about {clock(seconds)} on two 2024 server cores if "
        "the first start settles"
    )


def record_survey(plan: Plan, reporter: Reporter) -> None:
    """What was found out about the images, as a record."""
    reporter.record(
        "survey",
        n_particles=len(plan.particles),
        box=plan.particles.box,
        pixel_size_angstrom=plan.particles.pixel_size_angstrom,
        contrast="white" if plan.look.sign > 0 else "black",
        contrast_z=round(plan.look.contrast_z, 2),
        diameter_angstrom=round(plan.diameter_angstrom, 1),
        snr=round(plan.look.snr, 4),
    )


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
