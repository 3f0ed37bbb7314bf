"""The end of a run: maps, FSC, poses, the last record and the report."""

import dataclasses
import math
import sys
from dataclasses import dataclass

import numpy as np
import torch

from ace_em.config import RunConfig
from ace_em.data.pose_columns import posed_table, with_confidence
from ace_em.inference.confidence import Evidence, Usual, arrangement_probability, pose_probability
from ace_em.inference.predictor import Predictor
from ace_em.maths.point_group import mirrored_axes
from ace_em.metrics.alignment import Frame, apply_frame, turn_volume
from ace_em.physics.pose import Pose
from ace_em.refinement.backprojection import Halves
from ace_em.refinement.half_sets import HalfSetState
from ace_em.refinement.mask import soft_mask
from ace_em.refinement.postprocess import PostProcessed, postprocess
from ace_em.run.convergence import Verdict
from ace_em.run.folder import RunFolder
from ace_em.run.plan import Plan
from ace_em.run.reporter import Reporter, clock

MASK_LOW_PASS_ANGSTROM = 15.0
MASK_DILATE_ANGSTROM = 6.0
MASK_EDGE_ANGSTROM = 12.0
USUAL_PARTICLES = 2000
"""So many tell which residual right poses leave."""


def mirrored(halves: Halves, pose: Pose, symmetry: str) -> tuple[Halves, Pose]:
    """The other hand: maps reflected along z, poses ``J R J``, and turned back onto the point group's axes."""
    turn = mirrored_axes(symmetry).float()
    frame = Frame(turn, mirrored=True, origin_px=torch.zeros(3))
    maps = {f.name: getattr(halves, f.name) for f in dataclasses.fields(halves) if f.name != "fsc"}
    # reflected voxel by voxel where no turn is due: nothing is interpolated
    if torch.equal(turn, torch.eye(3)):
        turned = {name: reflect(volume) for name, volume in maps.items()}
    else:
        turned = {name: turn_volume(volume, frame) for name, volume in maps.items()}
    return dataclasses.replace(halves, **turned), apply_frame(pose, frame)


def reflect(volume: torch.Tensor) -> torch.Tensor:
    """Volume (n, n, n) reflected along z about its centre; the plane of an even box that has no partner stays."""
    n = volume.shape[0]
    z = torch.arange(n)
    return volume[(2 * (n // 2) - z) % n]


def grey_scaled(halves: Halves, factor: float) -> Halves:
    """Maps in the grey values of the normalised images (noise of deviation 1), as RELION has them."""
    maps = {f.name: getattr(halves, f.name) * factor for f in dataclasses.fields(halves) if f.name != "fsc"}
    return dataclasses.replace(halves, **maps)


def mask_of(halves: Halves, plan: Plan, pixel_size: float) -> torch.Tensor:
    """A soft mask from the map of both halves."""
    box = halves.combined.shape[-1]
    shell = min(plan.box_angstrom / MASK_LOW_PASS_ANGSTROM, 0.8 * box / 2)
    dilate, edge = MASK_DILATE_ANGSTROM / pixel_size, max(MASK_EDGE_ANGSTROM / pixel_size, 3.0)
    return soft_mask(halves.combined, shell, dilate, edge, plan.mask(box))


@dataclass(frozen=True)
class Outcome:
    """The end of a run.

    Attributes
    ----------
    last : the end of the refinement.
    half_set : (N,) the half 1 or 2 of every particle.
    evidence : for and against their poses.
    features_fsc : of the half-maps without their radial means.
    defocus_offset_angstrom : (N,) if fitted.
    predictor : what new particles can be told by, if it was kept.
    """

    last: HalfSetState
    half_set: np.ndarray
    verdict: Verdict
    evidence: Evidence
    features_fsc: torch.Tensor
    defocus_offset_angstrom: torch.Tensor | None
    predictor: Predictor | None


def write_results(plan: Plan, outcome: Outcome, config: RunConfig, run: RunFolder, reporter: Reporter) -> None:
    """Everything that RUN/ holds at the end."""
    from ace_em.report.page import write_report

    last, verdict, box = outcome.last, outcome.verdict, plan.boxes[-1]
    pixel_size = plan.box_angstrom / box
    halves, pose = grey_scaled(last.halves, (box / plan.particles.box) ** 3), last.pose.rescaled(plan.particles.box / box)
    if config.flip_hand:
        halves, pose = mirrored(halves, pose, config.symmetry)
    ball = plan.mask(box)
    final = postprocess(
        halves.unfiltered1 * ball,
        halves.unfiltered2 * ball,
        mask_of(halves, plan, pixel_size),
        pixel_size,
        torch.Generator().manual_seed(config.seed),
        config.b_factor,
    )
    run.write_maps(
        {
            "volume": halves.combined,
            "half1": halves.unfiltered1,
            "half2": halves.unfiltered2,
            "volume_sharp": final.volume,
            "mask": final.mask,
        },
        pixel_size,
    )
    curves = {"fsc": halves.fsc, "fsc_features": outcome.features_fsc, "fsc_masked": final.curves.masked}
    curves |= {"fsc_randomised": final.curves.randomised, "fsc_corrected": final.curves.corrected}
    run.write_fsc(curves, plan.box_angstrom)
    defocus = outcome.defocus_offset_angstrom
    table = posed_table(plan.particles, pose, outcome.half_set, None if defocus is None else defocus.numpy())
    probability, own = said_probability(outcome, config, reporter), last.pose.rescaled(plan.particles.box / box)
    spread_deg = None
    if outcome.predictor is not None:
        spread_deg = kept_predictor(outcome.predictor, outcome, own, plan, run, reporter)
    table = with_confidence(table, probability.numpy(), outcome.evidence.gap.numpy(), spread_deg)
    run.write_poses(table, (probability >= config.predict.confident).numpy() if verdict.converged else None)
    say_resolution(plan, last, final, verdict, reporter)
    write_report(run.path)
    reporter.say(verdict.message, always=True)
    reporter.say("the hand is not known from projections; --flip-hand gives the other")
    took = f"{clock(reporter.elapsed_s)}{peak_memory()}"
    reporter.say(f"{run.volume}, {run.poses}, {run.path / 'report.html'} written after {took}")


def peak_memory() -> str:
    """The most memory that this process has had, in words; nothing where the system does not tell."""
    try:
        import resource
    except ImportError:  # not on Windows
        return ""
    # Linux counts kilobytes, macOS bytes
    unit = 1 if sys.platform == "darwin" else 1024
    return f"; {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.1f} GiB of memory at the peak"


def said_probability(outcome: Outcome, config: RunConfig, reporter: Reporter) -> torch.Tensor:
    """Probability (N,) of each pose; 0 for those of a run that has not converged, and the user is told."""
    found, shown, least = outcome.evidence, outcome.last.shown, config.predict.confident
    probability = pose_probability(found.against, found.excess, Usual.of(found.excess[shown]))
    arrangement = arrangement_probability(found.explained, found.expected, config.search)
    if arrangement < 1:
        reporter.say(
            f"the map of each half explains {found.explained:.0%} of the signal in the other, where noise allows "
            f"{found.expected:.0%}: every pose's probability is lowered to {arrangement:.0%} of what it was"
        )
    probability = arrangement * probability
    share = (probability >= least).float().mean().item()
    shares = {"explained": round(found.explained, 4), "expected": round(found.expected, 4)}
    reporter.record("confidence", share=round(share, 4) if outcome.verdict.converged else 0.0, at_least=least, **shares)
    if outcome.verdict.converged:
        reporter.say(f"{share:.0%} of the poses are at least {100 * least:.4g}% probable: confident.star")
        return probability
    reporter.say("the run did not converge: the probability of every pose is written as 0, and no confident.star")
    return torch.zeros_like(probability)


def kept_predictor(
    predictor: Predictor, outcome: Outcome, pose: Pose, plan: Plan, run: RunFolder, reporter: Reporter
) -> np.ndarray:
    """Save what tells new particles; angles (N,) in degrees between the poses and what the encoder says of their images.

    ``pose`` (N,) is that of the run's frame before its hand was flipped, in pixels of the images.
    """
    rows = torch.nonzero(outcome.last.shown)[:, 0].numpy()
    some = rows[:: math.ceil(len(rows) / USUAL_PARTICLES)]
    predictor = dataclasses.replace(predictor, converged=outcome.verdict.converged)
    predictor.with_usual(plan.particles, pose, some).save(run.encoder)
    with reporter.task("comparing poses with the encoder's", len(plan.particles)) as task:
        return predictor.spread_deg(plan.particles, pose, task.update).numpy()


def say_resolution(plan: Plan, last: HalfSetState, final: PostProcessed, verdict: Verdict, reporter: Reporter) -> None:
    """The last record, and what the mask adds."""
    masked = plan.box_angstrom / final.resolution_shell
    reporter.say(f"inside a mask made from the map, phase-randomised: FSC 0.143 at {masked:.2f} A. {final.b_factor_note}")
    reporter.record(
        "end",
        converged=verdict.converged,
        resolution_angstrom=round(plan.box_angstrom / last.fsc143_shell, 3),
        masked_resolution_angstrom=round(masked, 3),
        b_factor=round(final.b_factor, 1),
        b_factor_note=final.b_factor_note,
        message=verdict.message,
    )
