"""``ace-em reconstruct``: all stages from particles to RUN/, from the start or from a checkpoint."""

import dataclasses
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import yaml

from ace_em.config import RunConfig, flat
from ace_em.data.particle_stack import ParticleStack
from ace_em.errors import Diverged, InputError, option
from ace_em.inference.predictor import Predictor
from ace_em.io.star import refuse_unwritable
from ace_em.refinement.explained import expected_share
from ace_em.refinement.half_sets import HalfSetState, refine_defocus_rounds, unfiltered_halves
from ace_em.run import log
from ace_em.run.autoencoder_only import autoencoder_only
from ace_em.run.checkpoint import Checkpoint
from ace_em.run.context import RunContext
from ace_em.run.convergence import Verdict, judge, judge_autoencoder
from ace_em.run.encoder import new_predictor, train_encoder
from ace_em.run.folder import RunFolder
from ace_em.run.half_sets import half_sets_of, judge_poses, refine, search
from ace_em.run.inputs import (
    chosen_half_sets,
    fingerprint,
    open_particles,
    read_images,
    refuse_small_disk,
    with_absolute_paths,
)
from ace_em.run.plan import Plan, announce, make_plan, record_survey
from ace_em.run.reporter import Mode, RecordFile, Reporter, StatusFile
from ace_em.run.results import Outcome, say_end, write_results
from ace_em.run.starts import Start, best_start
from ace_em.run.validate import check

MAY_CHANGE = {"device", "threads", "memory", "scratch", "checkpoint_s", "project", "passthrough"}
"""Settings that may change on --resume, because they do not affect the result."""


@dataclasses.dataclass(frozen=True)
class Request:
    """Arguments of a run apart from its settings.

    Attributes
    ----------
    particles, out : particle file, and folder of the run.
    overwrite, resume : replace or resume an earlier run in the folder.
    mode : of the messages.
    command : command line as typed, for the report.
    write_report : called with the folder at the end of the run; None writes no report.
    """

    particles: Path
    out: Path
    overwrite: bool = False
    resume: bool = False
    mode: Mode = "text"
    command: str = ""
    write_report: Callable[[Path], object] | None = None


def reconstruct(request: Request, config: RunConfig) -> Verdict:
    """Run or resume a reconstruction; returns the verdict.

    Raises
    ------
    InputError
        if the input or an option is wrong; nothing is written then.
    """
    check(config)
    config = with_absolute_paths(config)
    reporter = Reporter(mode=request.mode)
    run = RunFolder(request.out)
    resumed = request.resume and run.metrics.exists()
    if request.resume and not resumed:
        reporter.say(f"{request.out}: no run there to resume; starting a new one", always=True)
    if resumed:
        refuse_other_settings(run, config)
    else:
        RunFolder.check(request.out, request.overwrite)
        run.refuse_if_overwriting(
            [request.particles, *map(Path, (config.subset, config.exclude, *config.passthrough.split(",")))]
        )
    particles = open_particles(request.particles, config)
    # names in a .cs file may not be writable to poses.star
    refuse_unwritable(particles.table)
    if not resumed:
        run.refuse_if_overwriting(list(particles.stack_paths))
    plan = make_plan(particles, config)
    announce(plan, config, reporter)
    refuse_small_disk(plan, config, request.out)
    if resumed:
        with run.locked():
            return resume(plan, config, run, request, reporter)
    # read all images before the folder is made: a bad one raises InputError
    stack = read_images(plan, plan.working_box, config, request.out, reporter)
    run = RunFolder.create(request.out, request.overwrite)
    with run.locked():
        run.write_config({"particles": str(request.particles.resolve()), **dataclasses.asdict(config)})
        checkpoint = Checkpoint(run, reporter, fingerprint(particles), config.checkpoint_s)
        with recorded(checkpoint, reporter, request, plan):
            record_survey(plan, reporter)
            return run_stages(plan, config, checkpoint, reporter, stack, request)


def resume(plan: Plan, config: RunConfig, run: RunFolder, request: Request, reporter: Reporter) -> Verdict:
    """Resume a run from its last checkpoint."""
    run.reopen()
    checkpoint = Checkpoint(run, reporter, fingerprint(plan.particles), config.checkpoint_s)
    found = checkpoint.reload()
    start = checkpoint.where() if found else "no checkpoint yet, starting from the beginning"
    reporter.say(f"resuming {run.path}: {start}")
    with recorded(checkpoint, reporter, request, plan):
        if not found:
            record_survey(plan, reporter)
        return run_stages(plan, config, checkpoint, reporter, None, request)


def refuse_other_settings(run: RunFolder, config: RunConfig) -> None:
    """Raise InputError if a setting differs from that of the run to be resumed."""
    try:
        old = yaml.safe_load(run.config.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{run.config}: cannot be read; the run cannot be resumed without its settings") from error
    for name, value in flat(config).items():
        value, before = list(value) if isinstance(value, tuple) else value, old
        for part in name.split("."):
            before = before.get(part, value) if isinstance(before, dict) else value
        if name not in MAY_CHANGE and before != value:
            raise InputError(
                f"{option(name)} {value}: the run in {run.path} was started with {before}, which --resume cannot change"
            )


@contextmanager
def recorded(checkpoint: Checkpoint, reporter: Reporter, request: Request, plan: Plan) -> Iterator[None]:
    """Send records to the run folder; on any exit write the last saved state and the status."""
    run = checkpoint.run
    reporter.records, reporter.status = RecordFile(run.metrics), StatusFile(run.status)
    record_begin(reporter, request, plan)
    try:
        with reporter.heartbeat():
            yield
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt)
        run.stop.unlink(missing_ok=True)
        # our own message, or the type of an unexpected error
        message = str(error) if isinstance(error, InputError | Diverged | OSError) else type(error).__name__
        reporter.write_status("stopped" if stopped else "failed", "" if stopped else message)
        checkpoint.flush()
        if stopped:
            reporter.say(f"stopped {checkpoint.where()}; the same command with --resume continues from there", always=True)
        raise
    for leftover in (run.current_map, run.stop):
        leftover.unlink(missing_ok=True)
    reporter.write_status("finished")


def record_begin(reporter: Reporter, request: Request, plan: Plan) -> None:
    """Record command, versions and machine, so that the run can be reproduced."""
    packages = ("ace-em", "torch", "numpy", "lightning-fabric", "torch-ctf")
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


def run_stages(
    plan: Plan, config: RunConfig, checkpoint: Checkpoint, reporter: Reporter, stack: ParticleStack | None, request: Request
) -> Verdict:
    """Run the stages that the checkpoint does not contain. ``stack`` is at the working box; None if not yet read."""
    verdict = checkpoint.load_done(Verdict, "end")
    if verdict is not None:
        reporter.say(f"the run is already finished: {verdict.message}", always=True)
        return verdict
    half_set = chosen_half_sets(plan.particles, config.seed)
    given = plan.particles.half_sets()
    if given is not None and not np.array_equal(given, half_set):
        counts = f"{(given == 1).sum()} and {(given == 2).sum()}"
        reporter.say(f"rlnRandomSubset has {counts} particles, too uneven for half-maps: using random halves")
    context = RunContext(plan, config, torch.from_numpy(half_set), checkpoint.run, reporter, checkpoint)
    outcome = (autoencoder_stages if config.stages == "ace" else all_stages)(context, stack)
    write_results(plan, outcome, config, checkpoint.run, reporter)
    if request.write_report is not None:
        request.write_report(checkpoint.run.path)
    say_end(outcome.verdict, checkpoint.run, reporter)
    checkpoint.save_done("end", outcome.verdict)
    return outcome.verdict


def all_stages(context: RunContext, stack: ParticleStack | None) -> Outcome:
    """Random starts until one is good, then search and refinement in half-sets, confidence, and the encoder."""
    plan, config, checkpoint, reporter = context.plan, context.config, context.checkpoint, context.reporter
    start, searched = checkpoint.load_done(Start, "kept"), checkpoint.load_done(HalfSetState, "search")
    if start is None or searched is None:
        stack = stack or read_images(plan, plan.working_box, config, context.run.path, reporter)
        start = start or best_start(context, stack)
        reporter.past("start")
        searched = search(start, stack, context)
    stack = None
    reporter.past("search")
    last, sets = refine(searched, context)
    if config.refine.defocus:
        reporter.say("fitting the defocus of every particle")
        last, at_limit = refine_defocus_rounds(sets, last, config.refine)
        log.defocus_fitted(last, at_limit, plan, reporter)
    reporter.past("refinement")
    unfiltered = unfiltered_halves(sets, last)
    evidence, features_fsc = judge_poses(sets, last, context), last.halves.features_fsc(sets.mask)
    del sets
    verdict = judge(plan, config, start.held_out, searched, last, features_fsc)
    reporter.past("confidence")
    predictor = encoder_for_new_particles(last, start.networks, context)
    reporter.past("encoder")
    return Outcome(last, context.half_set.numpy(), unfiltered, verdict, evidence, predictor)


def encoder_for_new_particles(last: HalfSetState, networks: dict[str, torch.Tensor], context: RunContext) -> Predictor | None:
    """Stage 4; None if it is off or diverged. No map or pose depends on it."""
    if context.config.predict.steps == 0:
        return None
    try:
        return train_encoder(last, networks, context)
    except Diverged as error:
        context.reporter.say(f"no encoder for ace-em predict: {error}", always=True)
        return None


def autoencoder_stages(context: RunContext, stack: ParticleStack | None) -> Outcome:
    """Stage 1 alone, as published: the result is the decoder's map and the encoder's poses."""
    plan, config = context.plan, context.config
    stack = stack or read_images(plan, plan.working_box, config, context.run.path, context.reporter)
    last, networks = autoencoder_only(stack, context)
    context.reporter.past("start")
    expected = expected_share(stack.power(), stack.noise_power(), len(stack.half_plane), stack.box / 2, len(stack))
    verdict = judge_autoencoder(last, expected, config)
    sets = half_sets_of(stack, context)
    evidence = judge_poses(sets, last, context)
    # the encoder was trained together with the map, so there is no stage 4
    predictor = new_predictor(last, networks, context) if config.predict.steps else None
    unfiltered = unfiltered_halves(sets, last)
    return Outcome(last, context.half_set.numpy(), unfiltered, verdict, evidence, predictor)
