"""Results of a run: maps, FSC, poses and the last record."""

import dataclasses
import math
import sys
from dataclasses import dataclass

import numpy as np
import torch

from ace_em.config import RunConfig
from ace_em.data.pose_columns import posed_table, with_confidence, with_content
from ace_em.inference.confidence import Evidence, ResidualBaseline, arrangement_probability, pose_probability
from ace_em.inference.predictor import Predictor
from ace_em.maths.point_group import mirrored_axes
from ace_em.metrics.alignment import Frame, apply_frame, turn_volume
from ace_em.metrics.fsc import resolution_shell
from ace_em.physics.image_content import Content
from ace_em.physics.pose import Pose
from ace_em.refinement.half_sets import HalfSetState
from ace_em.refinement.mask import soft_mask
from ace_em.refinement.postprocess import PostProcessed, postprocess
from ace_em.run.convergence import Verdict
from ace_em.run.eta import clock
from ace_em.run.folder import RunFolder
from ace_em.run.log import in_angstrom
from ace_em.run.plan import Plan
from ace_em.run.reporter import Reporter

MASK_LOW_PASS_ANGSTROM = 15.0
MASK_DILATE_ANGSTROM = 6.0
MASK_EDGE_ANGSTROM = 12.0
SAID_FROM = 0.005
"""Share of images without the particle from which on it is reported."""
BASELINE_PARTICLES = 2000
"""Particles whose residuals define the baseline of correct poses."""


@dataclass(frozen=True)
class Maps:
    """Maps of a run, (n, n, n) each, and the poses (N,) in their frame.

    Attributes
    ----------
    combined : of all images.
    half1, half2 : half-maps without a prior.
    damped1, damped2 : half-maps with a weak prior, used for the FSC and the sharpened map. Without a prior, directions with few
        views are mostly noise, which a mask spreads over the whole shell.
    """

    combined: torch.Tensor
    half1: torch.Tensor
    half2: torch.Tensor
    damped1: torch.Tensor
    damped2: torch.Tensor
    pose: Pose

    def scaled(self, factor: float) -> "Maps":
        """Maps with grey values multiplied by ``factor``."""
        return dataclasses.replace(self, **{name: getattr(self, name) * factor for name in MAPS})

    def mirrored(self, symmetry: str) -> "Maps":
        """The other hand: maps reflected along z, poses ``J R J``, both rotated back to the axes of the point group."""
        turn = mirrored_axes(symmetry).float()
        frame = Frame(turn, mirrored=True, origin_px=torch.zeros(3))
        maps = {name: getattr(self, name) for name in MAPS}
        # without a rotation the voxels are reflected, with no interpolation
        if torch.equal(turn, torch.eye(3)):
            turned = {name: reflect(volume) for name, volume in maps.items()}
        else:
            turned = {name: turn_volume(volume, frame) for name, volume in maps.items()}
        return Maps(**turned, pose=apply_frame(self.pose, frame))


MAPS = ("combined", "half1", "half2", "damped1", "damped2")


def reflect(volume: torch.Tensor) -> torch.Tensor:
    """Volume (n, n, n) reflected along z about its centre; in an even box the plane z = 0 stays in place."""
    n = volume.shape[0]
    z = torch.arange(n)
    return volume[(2 * (n // 2) - z) % n]


def mask_of(volume: torch.Tensor, plan: Plan, pixel_size: float) -> torch.Tensor:
    """Soft mask from the combined map."""
    box = volume.shape[-1]
    shell = min(plan.box_angstrom / MASK_LOW_PASS_ANGSTROM, 0.8 * box / 2)
    dilate, edge = MASK_DILATE_ANGSTROM / pixel_size, max(MASK_EDGE_ANGSTROM / pixel_size, 3.0)
    return soft_mask(volume, shell, dilate, edge, plan.mask(box))


@dataclass(frozen=True)
class Outcome:
    """Outcome of the stages of a run.

    Attributes
    ----------
    last : state after the refinement.
    half_set : (N,) half-set, 1 or 2, of every particle.
    unfiltered : half-maps (box, box, box) of the last box without a prior.
    evidence : for and against the poses.
    predictor : of poses of new particles; None without stage 4.
    """

    last: HalfSetState
    half_set: np.ndarray
    unfiltered: tuple[torch.Tensor, torch.Tensor]
    verdict: Verdict
    evidence: Evidence
    predictor: Predictor | None


def write_results(plan: Plan, outcome: Outcome, config: RunConfig, run: RunFolder, reporter: Reporter) -> None:
    """Write all results to RUN/ except the report."""
    last, verdict, box = outcome.last, outcome.verdict, plan.boxes[-1]
    pixel_size = plan.box_angstrom / box
    pose = last.pose.rescaled(plan.particles.box / box)
    # grey values in units of the normalised images (noise of standard deviation 1), as in RELION
    halves = last.halves
    maps = Maps(halves.combined, *outcome.unfiltered, halves.weak1, halves.weak2, pose).scaled((box / plan.particles.box) ** 3)
    if config.flip_hand:
        maps = maps.mirrored(config.symmetry)
    ball = plan.mask(box)
    final = postprocess(
        maps.damped1 * ball,
        maps.damped2 * ball,
        mask_of(maps.combined, plan, pixel_size),
        pixel_size,
        torch.Generator().manual_seed(config.seed),
        config.b_factor,
    )
    run.write_maps(
        {
            "volume": maps.combined,
            "half1": maps.half1,
            "half2": maps.half2,
            "half1_damped": maps.damped1,
            "half2_damped": maps.damped2,
            "volume_sharp": final.volume,
            "mask": final.mask,
        },
        pixel_size,
    )
    curves = {"fsc": halves.fsc, "fsc_features": halves.features_fsc(ball), "fsc_masked": final.curves.masked}
    curves |= {"fsc_randomised": final.curves.randomised, "fsc_corrected": final.curves.corrected}
    run.write_fsc(curves, plan.box_angstrom)
    defocus = last.defocus_offset_angstrom.numpy() if config.refine.defocus else None
    table = posed_table(plan.particles, maps.pose, outcome.half_set, defocus)
    report_content(last.content, reporter)
    probability = written_probability(outcome, config, reporter)
    spread_deg = None
    if outcome.predictor is not None:
        spread_deg = save_predictor(outcome.predictor, outcome, pose, plan, run, reporter)
    table = with_confidence(table, probability.numpy(), outcome.evidence.gap.numpy(), spread_deg)
    table = with_content(table, last.content)
    run.write_poses(table, confident(outcome, probability, config).numpy() if verdict.converged else None)
    say_resolution(plan, halves.fsc, final, verdict, reporter)


def say_end(verdict: Verdict, run: RunFolder, reporter: Reporter) -> None:
    """Print the verdict and the files written."""
    reporter.say(verdict.message, always=True)
    reporter.say("the hand is not determined by projections; --flip-hand gives the other one")
    took = f"{clock(reporter.elapsed_s)}{peak_memory()}"
    reporter.say(f"{run.volume}, {run.poses}, {run.path / 'report.html'} written after {took}")


def peak_memory() -> str:
    """Peak memory of this process as text; empty where the system does not report it."""
    try:
        import resource
    except ImportError:  # not on Windows
        return ""
    # Linux counts kilobytes, macOS bytes
    unit = 1 if sys.platform == "darwin" else 1024
    return f"; {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.1f} GiB peak memory"


def report_content(content: Content, reporter: Reporter) -> None:
    """Report how many images show the particle, noise alone and something else."""
    particle, noise, other = (torch.bincount(content.kind, minlength=3) / len(content.kind)).tolist()
    reporter.record("content", particle=round(particle, 4), noise=round(noise, 4), other=round(other, 4))
    if noise + other > SAID_FROM:
        reporter.say(f"{noise + other:.0%} of the images show no particle: {noise:.0%} noise alone, {other:.0%} something else")


def confident(outcome: Outcome, probability: torch.Tensor, config: RunConfig) -> torch.Tensor:
    """(N,) bool, the images of confident.star: a pose of high ``probability`` (N,), and the particle in the image."""
    return (probability >= config.predict.confident) & outcome.last.shown


def written_probability(outcome: Outcome, config: RunConfig, reporter: Reporter) -> torch.Tensor:
    """Probability (N,) of each pose, all 0 if the run did not converge; also reports it."""
    found, shown, least = outcome.evidence, outcome.last.shown, config.predict.confident
    baseline = ResidualBaseline.of(found.residual_z[shown])
    probability = pose_probability(found.log_odds_against, found.residual_z, baseline)
    arrangement = arrangement_probability(found.explained, found.expected, config.search)
    if arrangement < 1:
        reporter.say(
            f"each half-map explains {found.explained:.0%} of the signal in the other half-set "
            f"(expected {found.expected:.0%}): all pose probabilities are multiplied by {arrangement:.2f}"
        )
    probability = arrangement * probability
    share = confident(outcome, probability, config).float().mean().item()
    shares = {"explained": round(found.explained, 4), "expected": round(found.expected, 4)}
    reporter.record("confidence", share=round(share, 4) if outcome.verdict.converged else 0.0, at_least=least, **shares)
    if outcome.verdict.converged:
        reporter.say(
            f"{share:.0%} of the images show the particle, at a pose {100 * least:.4g}% probable or more: confident.star"
        )
        return probability
    reporter.say("the run did not converge: all pose probabilities are written as 0 and there is no confident.star")
    return torch.zeros_like(probability)


def save_predictor(
    predictor: Predictor, outcome: Outcome, pose: Pose, plan: Plan, run: RunFolder, reporter: Reporter
) -> np.ndarray:
    """Write RUN/encoder.pt. Returns median angles (N,) in degrees between the poses and the encoder's hypotheses.

    ``pose`` (N,) is in the frame before ``flip_hand``, in pixels of the images.
    """
    rows = torch.nonzero(outcome.last.shown)[:, 0].numpy()
    some = rows[:: math.ceil(len(rows) / BASELINE_PARTICLES)]
    predictor = dataclasses.replace(predictor, converged=outcome.verdict.converged)
    predictor.with_baseline(plan.particles, pose, some).save(run.encoder)
    with reporter.task("comparing poses with the encoder", len(plan.particles)) as task:
        return predictor.spread_deg(plan.particles, pose, task.update, plan.search_device).numpy()


def say_resolution(plan: Plan, fsc: torch.Tensor, final: PostProcessed, verdict: Verdict, reporter: Reporter) -> None:
    """Report the resolution inside the mask and write the last record; ``fsc`` is that of the half-maps."""
    n_shells = len(fsc)
    masked = in_angstrom(plan.box_angstrom, final.resolution_shell, n_shells)
    reporter.say(f"masked, corrected by phase randomisation: FSC 0.143 at {masked}. {final.b_factor_note}")
    reporter.record(
        "end",
        converged=verdict.converged,
        resolution_angstrom=round(plan.box_angstrom / resolution_shell(fsc, 0.143), 3),
        masked_resolution_angstrom=round(plan.box_angstrom / final.resolution_shell, 3),
        b_factor=round(final.b_factor, 1),
        b_factor_note=final.b_factor_note,
        message=verdict.message,
    )
