"""Messages and records of training steps and rounds: a line for the user and a record for metrics.jsonl."""

import torch
from torch import Tensor

from ace_em.config import RunConfig
from ace_em.refinement.abinitio import Round
from ace_em.refinement.half_sets import HalfSetState
from ace_em.refinement.held_out import HeldOut
from ace_em.run.plan import Plan
from ace_em.run.reporter import Reporter
from ace_em.training.loop import Progress

NO_LOSS = torch.zeros(())
"""Loss of a task that was not trained in an update."""


def ace_step(progress: Progress, start: int, plan: Plan, config: RunConfig, reporter: Reporter) -> str:
    """Record a training step; returns the status text of the progress bar."""
    image, pose = (progress.losses.get(name, NO_LOSS).item() for name in ("image", "pose"))
    band = plan.box_angstrom / min(progress.band, plan.working_box / 2)
    reporter.record(
        "ace",
        start=start,
        step=progress.step,
        steps=config.ace.steps,
        image_loss=round(image, 5),
        pip_loss=round(pose, 5),
        band_angstrom=round(band, 2),
    )
    return f"band {band:.0f} A  image loss {image:.3f}  pose loss {pose:.3f}"


def encoder_step(progress: Progress, steps: int, reporter: Reporter) -> str:
    """Record a step of the encoder training on the map; returns the status text of the progress bar."""
    pose = progress.losses["pose"].item()
    reporter.record("encoder", step=progress.step, steps=steps, pip_loss=round(pose, 5))
    return f"pose loss {pose:.3f}"


def poses_watched(step: int, moved_deg: Tensor, config: RunConfig, reporter: Reporter) -> None:
    """Report the change of the encoder's poses since the last check."""
    stable = (moved_deg < config.search.stable_deg).float().mean().item()
    moved = moved_deg.median().item()
    reporter.say(f"step {step} of {config.ace.steps}: {stable:.0%} of poses stable, median move {moved:.1f} deg")
    reporter.record("watch", step=step, stable=round(stable, 4), moved_median_deg=round(moved, 3))


def ab_initio_round(state: Round, start: int, plan: Plan, reporter: Reporter) -> None:
    """Report a round of the ab initio search."""
    band, resolution = plan.box_angstrom / state.band, plan.box_angstrom / state.fsc143_shell
    moved = state.moved_deg.median().item()
    images = without_particle(state.shown + state.in_second) + in_second_map(state.in_second)
    reporter.say(
        f"ab initio search, round {state.number}: band {band:.1f} A, {state.stable:.0%} of poses stable, "
        f"{state.explained:.1%} of the signal explained{images}"
    )
    reporter.record(
        "ab_initio",
        start=start,
        box=plan.working_box,
        round=state.number,
        band_angstrom=round(band, 2),
        stable=round(state.stable, 4),
        moved_median_deg=round(moved, 3),
        explained=round(state.explained, 4),
        fsc143_angstrom=round(resolution, 2),
        shown=round(state.shown, 4),
        in_second=round(state.in_second, 4),
    )


def in_second_map(share: float) -> str:
    """The end of a sentence: how many images are in a second map of the ab initio search."""
    return f"; {share:.0%} in a second map" if share > 0 else ""


def without_particle(shown: float) -> str:
    """End of a message: share of images without a particle, if at least 0.5 %."""
    return f"; {1 - shown:.0%} of the images show no particle" if shown < 0.995 else ""


def start_judged(start: int, held_out: HeldOut, n: int, reporter: Reporter) -> None:
    """Report how well the map of a start explains held-out images."""
    share, z = held_out.explained, held_out.against_null
    of_noise = f"(expected {held_out.expected:.0%}) " if held_out.expected > 0 else ""
    signal = f"explains {share:.1%} of the signal {of_noise}in" if share < 1.5 else "fits"
    reporter.say(f"start {start}: the map {signal} {n} held-out images; against a map of random phases z = {z:.0f}")
    reporter.record(
        "start",
        start=start,
        held_out=n,
        explained=round(share, 4),
        expected=round(held_out.expected, 4),
        against_null_z=round(z, 2),
    )


def half_set_round(
    stage: str, state: HalfSetState, number: int, box: int, plan: Plan, config: RunConfig, reporter: Reporter
) -> None:
    """Report a round of search or refinement; ``stage`` is 'search' or 'refine'."""
    resolution, moved = plan.box_angstrom / state.fsc143_shell, state.particles_moved_deg.median().item()
    stable, shown = state.stable_share(config.search.stable_deg), state.shown.float().mean().item()
    name = "search of all images" if stage == "search" else f"refinement at {box} px"
    # the first round at a box only reconstructs maps at the existing poses
    poses_unchanged = stage == "refine" and number == 1
    poses = "poses unchanged" if poses_unchanged else f"{stable:.0%} of poses stable, median move {moved:.2f} deg"
    relaxed = stage == "refine" and len(plan.copies) > 1 and not poses_unchanged
    if relaxed:
        poses += f", {state.changed_copy.sum()} images changed copy under {config.relax_symmetry.upper()}"
    if state.poses_per_image > 1.005:
        poses += f", {state.poses_per_image:.2f} poses per image"
    at = in_angstrom(plan.box_angstrom, state.fsc143_shell, len(state.halves.fsc))
    reporter.say(f"{name}, round {number}: half-map FSC 0.143 at {at}, {poses}{without_particle(shown)}")
    reporter.record(
        stage,
        box=box,
        round=number,
        band_angstrom=round(plan.box_angstrom / state.band, 2),
        stable=None if poses_unchanged else round(stable, 4),
        moved_median_deg=None if poses_unchanged else round(moved, 4),
        explained=None if poses_unchanged else round(state.explained, 4),
        fsc143_angstrom=round(resolution, 3),
        intensity_scale_sd=round(state.intensity_scale.std().item(), 4),
        shown=round(shown, 4),
        poses_per_image=round(state.poses_per_image, 3),
        **({"changed_copy": round(state.changed_share, 4)} if relaxed else {}),
    )


def defocus_fitted(state: HalfSetState, at_limit: int, plan: Plan, reporter: Reporter) -> None:
    """Report the change of the defocus and the resulting half-map FSC."""
    sd, resolution = state.defocus_offset_angstrom.std().item(), plan.box_angstrom / state.fsc143_shell
    reporter.say(
        f"defocus changed by {sd:.0f} A (standard deviation); {at_limit} particles at the limit of the range were not changed; "
        f"half-map FSC 0.143 at {in_angstrom(plan.box_angstrom, state.fsc143_shell, len(state.halves.fsc))}"
    )
    reporter.record("defocus", sd_angstrom=round(sd, 1), at_limit=at_limit, fsc143_angstrom=round(resolution, 3))


def in_angstrom(box_angstrom: float, shell: float, n_shells: int) -> str:
    """A resolution as text: ``8.63 A``, or ``8.50 A or better`` if the curve does not fall below the threshold."""
    return f"{box_angstrom / shell:.2f} A" + (" or better" if shell >= n_shells - 1 else "")
