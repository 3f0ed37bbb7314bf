"""From particles to RUN/: the stages in order, from the start or from where a run stopped."""

import dataclasses
import hashlib
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from ace_em.config import RunConfig
from ace_em.data.particles import Particles
from ace_em.data.select import selected_rows
from ace_em.data.split import half_sets
from ace_em.data.working_set import Images, image_power
from ace_em.errors import Diverged, InputError, option
from ace_em.inference.predictor import Predictor
from ace_em.io.particle_table import read_particle_table
from ace_em.io.star import refuse_unwritable
from ace_em.refinement.abinitio import expected_share
from ace_em.refinement.half_sets import HalfSetState, refine_defocus_rounds
from ace_em.run.autoencoder_only import amortised
from ace_em.run.checkpoint import Journal
from ace_em.run.context import Job
from ace_em.run.convergence import Verdict, judge, judge_amortised
from ace_em.run.encoder_stage import teach, untaught
from ace_em.run.folder import RunFolder
from ace_em.run.inputs import read_images, refuse_small_disk
from ace_em.run.log import defocus_fitted
from ace_em.run.plan import Plan, announce, check, make_plan, record_survey
from ace_em.run.reporter import Mode, Reporter
from ace_em.run.results import Outcome, write_results
from ace_em.run.stages import Start, best_start, half_sets_of, judge_poses, refine, search

MAY_CHANGE = {"device", "threads", "memory", "scratch", "checkpoint_s", "project", "passthrough"}
"""Settings that a resumed run may change: they say how, not what."""


PATHS = ("subset", "exclude", "passthrough", "project", "scratch")
"""Settings that are paths, or several with commas between."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What `ace-em reconstruct` is asked for, beside its settings; ``command`` is the line as typed, for the report."""

    particles: Path
    out: Path
    overwrite: bool = False
    resume: bool = False
    mode: Mode = "text"
    command: str = ""


def open_particles(path: Path, config: RunConfig) -> Particles:
    """The particles that the settings choose."""
    if config.project and not Path(config.project).is_dir():
        raise InputError(f"--project {config.project}: no such folder; expected the one that image paths are relative to")
    passthrough = [Path(p) for p in config.passthrough.split(",") if p]
    table = read_particle_table(path, passthrough)
    rows = selected_rows(table, config.subset, config.exclude, config.max_particles, config.seed)
    if len(rows) < len(table):
        table = table.rows(rows)
    return Particles.of(table, Path(config.project) if config.project else None)


def with_whole_paths(config: RunConfig) -> RunConfig:
    """The settings with paths that mean the same from every folder: config.yaml may be used in another."""

    def whole(paths: str) -> str:
        return ",".join(str(Path(path).absolute()) for path in paths.split(",") if path)

    changes: dict[str, Any] = {name: whole(getattr(config, name)) for name in PATHS}
    return dataclasses.replace(config, **changes)


def chosen_half_sets(particles: Particles, seed: int) -> np.ndarray:
    """The half-sets of the input's rlnRandomSubset when it has both, otherwise random halves."""
    given = particles.half_sets()
    if given is not None and set(np.unique(given)) == {1, 2} and np.bincount(given)[1:].min() > len(given) / 4:
        return given
    return half_sets(len(particles), seed)


def reconstruct(request: Request, config: RunConfig) -> Verdict:
    """Particles to RUN/; says whether the run converged.

    Raises
    ------
    InputError
        before anything is written, when the input or an option is wrong.
    """
    check(config)
    config = with_whole_paths(config)
    reporter = Reporter(mode=request.mode)
    resumed = request.resume and RunFolder(request.out).metrics.exists()
    if request.resume and not resumed:
        reporter.say(f"{request.out}: no run is there to go on with: a new one", always=True)
    if resumed:
        refuse_other_settings(RunFolder(request.out), config)
    else:
        RunFolder.check(request.out, request.overwrite)
        RunFolder(request.out).spare(
            [request.particles, *map(Path, (config.subset, config.exclude, *config.passthrough.split(",")))]
        )
    particles = open_particles(request.particles, config)
    # a .cs file may hold what poses.star cannot
    refuse_unwritable(particles.table)
    if not resumed:
        RunFolder(request.out).spare(list(particles.stack_paths))
    plan = make_plan(particles, config)
    announce(plan, config, reporter)
    refuse_small_disk(plan, config, request.out)
    if resumed:
        with RunFolder(request.out).locked():
            return resume(plan, config, RunFolder(request.out), request, reporter)
    # every image is read, and a bad one refused, before the folder is made
    images = working_images(plan, config, request.out, reporter)
    run = RunFolder.create(request.out, request.overwrite)
    with run.locked():
        run.write_config({"particles": str(request.particles.resolve()), **dataclasses.asdict(config)})
        journal = Journal(run, reporter, fingerprint(particles), config.checkpoint_s)
        with watched(journal, reporter, request, plan):
            record_survey(plan, reporter)
            return carry_out(plan, config, journal, reporter, images)


def resume(plan: Plan, config: RunConfig, run: RunFolder, request: Request, reporter: Reporter) -> Verdict:
    """Go on with a run that stopped, from its last checkpoint."""
    run.reopen()
    journal = Journal(run, reporter, fingerprint(plan.particles), config.checkpoint_s)
    found = journal.reload()
    reporter.say(f"going on with {run.path}: {journal.where()}" if found else f"{run.path} has no checkpoint yet: from the start")
    with watched(journal, reporter, request, plan):
        if not found:
            record_survey(plan, reporter)
        return carry_out(plan, config, journal, reporter, None)


def refuse_other_settings(run: RunFolder, config: RunConfig) -> None:
    """A run that goes on keeps its settings."""
    try:
        old = yaml.safe_load(run.config.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{run.config}: cannot be read; without its settings the run cannot be resumed") from error
    for name, value in _flat(dataclasses.asdict(config)).items():
        before = _flat(old).get(name, value)
        if name not in MAY_CHANGE and before != value:
            raise InputError(
                f"{option(name)} {value}: the run in {run.path} was begun with {before}; --resume keeps its settings"
            )


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        inner = list(value) if isinstance(value, tuple) else value
        found |= _flat(inner, f"{prefix}{name}.") if isinstance(inner, dict) else {prefix + name: inner}
    return found


def fingerprint(particles: Particles) -> dict[str, Any]:
    """What tells one set of particles from another, wherever its files are."""
    names = hashlib.sha256("\n".join(particles.image_names).encode()).hexdigest()[:16]
    return {"particles": len(particles), "box": particles.box, "pixel size": particles.pixel_size_angstrom, "image names": names}


@contextmanager
def watched(journal: Journal, reporter: Reporter, request: Request, plan: Plan) -> Iterator[None]:
    """Records go to the run's folder; however the work ends, its last safe point and its state are written down."""
    run = journal.run
    reporter.records, reporter.status = run.metrics, run.status
    record_begin(reporter, request, plan)
    try:
        with reporter.beating():
            yield
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt)
        run.stop.unlink(missing_ok=True)
        # a line that was printed for people, or the name of what nobody foresaw
        said = str(error) if isinstance(error, InputError | Diverged | OSError) else type(error).__name__
        reporter.write_status("stopped" if stopped else "failed", "" if stopped else said)
        journal.flush()
        if stopped:
            reporter.say(f"stopped {journal.where()}; the same command with --resume goes on from there", always=True)
        raise
    for left in (run.current_map, run.stop):
        left.unlink(missing_ok=True)
    reporter.write_status("finished")


def record_begin(reporter: Reporter, request: Request, plan: Plan) -> None:
    """The command, versions and machine, so that a run can be repeated."""
    packages = ("ace-em", "torch", "numpy", "lightning-fabric", "torch-ctf", "healpy")
    reporter.record(
        "begin",
        command=request.command,
        folder=str(Path.cwd()),
        date=datetime.now().astimezone().isoformat(timespec="seconds"),
        versions={"python": platform.python_version()} | {name: version(name) for name in packages},
        platform=platform.platform(),
        device=plan.device,
        threads=plan.threads,
        expected_s=None if plan.expected_s is None else round(plan.expected_s),
        memory_gib=round(plan.memory_bytes / 2**30, 2),
    )


def working_images(plan: Plan, config: RunConfig, out: Path, reporter: Reporter) -> Images:
    """The images at the working box; eq. 7 turns them, and needs their optics."""
    return read_images(plan, plan.working_box, config, out, reporter, config.ace.symmetric_loss == "generalised")


def carry_out(plan: Plan, config: RunConfig, journal: Journal, reporter: Reporter, images: Images | None) -> Verdict:
    """The stages; what the journal says is finished is not done again. ``images`` are those of the working box, if read."""
    verdict = journal.result(Verdict, "end")
    if verdict is not None:
        reporter.say(f"nothing to do, the run is finished: {verdict.message}", always=True)
        return verdict
    half_set = chosen_half_sets(plan.particles, config.seed)
    given = plan.particles.half_sets()
    if given is not None and not np.array_equal(given, half_set):
        counts = f"{(given == 1).sum()} and {(given == 2).sum()}"
        reporter.say(f"rlnRandomSubset has {counts} particles, too uneven for half-maps: halves are drawn at random")
    job = Job(plan, config, torch.from_numpy(half_set), journal.run, reporter, journal)
    outcome = (autoencoder_alone if config.stages == "ace" else all_stages)(job, images)
    write_results(plan, outcome, config, journal.run, reporter)
    journal.finish("end", outcome.verdict)
    return outcome.verdict


def all_stages(job: Job, images: Images | None) -> Outcome:
    """The autoencoder and exploring until a start is good, then search and refinement in half-sets."""
    plan, config, journal, reporter = job.plan, job.config, job.journal, job.reporter
    start, searched = journal.result(Start, "kept"), journal.result(HalfSetState, "search")
    if start is None or searched is None:
        images = images or working_images(plan, config, job.run.path, reporter)
        start = start or best_start(job, images)
        reporter.past("start")
        # the search brings the transfers up to date, not what they were made of
        searched = search(start, images.without_optics(), job)
    images = None
    reporter.past("search")
    last, sets = refine(searched, job)
    defocus = None
    if config.refine.defocus:
        reporter.say("fitting the defocus of every particle")
        pixel_size = plan.box_angstrom / plan.boxes[-1]
        last, fit = refine_defocus_rounds(sets, last, plan.particles.ctf, pixel_size, config.refine)
        defocus_fitted(fit, plan, last, reporter)
        defocus = fit.offset_angstrom
    reporter.past("refinement")
    evidence, features_fsc = judge_poses(sets, last, job), last.halves.features_fsc(sets.mask)
    del sets
    verdict = judge(plan, config, start.held_out, searched, last, features_fsc)
    reporter.past("confidence")
    predictor = predictor_of(last, start.networks, job)
    reporter.past("lesson")
    return Outcome(last, job.half_set.numpy(), verdict, evidence, features_fsc, defocus, predictor)


def predictor_of(last: HalfSetState, networks: dict[str, torch.Tensor], job: Job) -> Predictor | None:
    """Stage 4, which no map or pose depends on: it may fail."""
    if job.config.predict.steps == 0:
        return None
    try:
        return teach(last, networks, job)
    except Diverged as error:
        job.reporter.say(f"no encoder for new particles: {error}", always=True)
        return None


def autoencoder_alone(job: Job, images: Images | None) -> Outcome:
    """Stage 1 as published: its map and the encoder's poses are the result."""
    images = images or working_images(job.plan, job.config, job.run.path, job.reporter)
    last, networks = amortised(job.plan, images, job.half_set, job.config, job.reporter, job.journal, job.show)
    job.reporter.past("start")
    expected = expected_share(image_power(images), images.noise_variance, images.box / 2, len(images))
    verdict = judge_amortised(last, expected, job.config)
    sets = half_sets_of(images, job)
    evidence, features_fsc = judge_poses(sets, last, job), last.halves.features_fsc(sets.mask)
    # encoder and map were trained together: there is nothing to teach
    predictor = untaught(last, networks, job) if job.config.predict.steps else None
    return Outcome(last, job.half_set.numpy(), verdict, evidence, features_fsc, None, predictor)
