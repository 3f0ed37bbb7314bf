"""Convergence of a run: verdict, reasons and advice."""

import math
from dataclasses import dataclass

from torch import Tensor

from ace_em.config import RunConfig, SearchConfig
from ace_em.metrics.coverage import N_VIEWS, coverage
from ace_em.refinement.half_sets import HalfSetState
from ace_em.refinement.held_out import HeldOut
from ace_em.run.log import in_angstrom
from ace_em.run.plan import Plan

ENCODER_SHARE = 0.7
"""The correct map at the encoder's poses, which are off by a few degrees, explains about this share of the expected signal."""

FEW_VIEWS = 0.5
"""Warning threshold: view coverage relative to that of as many random poses."""


@dataclass(frozen=True)
class Verdict:
    """Whether the run converged, and a sentence for the terminal and the report."""

    converged: bool
    message: str


def explains(held_out: HeldOut, config: SearchConfig) -> bool:
    """Whether the map of a start explains held-out images as well as the noise allows."""
    return held_out.explained >= held_out.expected - config.tolerance and held_out.against_null >= config.least_z


def shells_beyond(shared: float, n_shells: int) -> range:
    """Shells from just beyond the shared band to about twice that band."""
    return range(math.ceil(shared) + 3, min(2 * math.ceil(shared) + 4, n_shells))


def agreement_beyond(fsc: Tensor, shared: float) -> float:
    """Mean FSC of the shells beyond the shared band; 1 if the box has no such shells."""
    shells = shells_beyond(shared, len(fsc))
    return fsc[list(shells)].mean().item() if shells else 1.0


def agreement_by_chance(shared: float, n_shells: int, ball_share: float, n_copies: int) -> float:
    """Five standard deviations of the mean FSC beyond the shared band between half-maps of noise.

    Half a shell of radius r has ``2 pi r^2`` coefficients. In a map that is 0 outside a ball, the share of independent
    coefficients is ``ball_share``, the volume of the ball relative to the box. A point group of order ``n_copies`` reduces it
    further by that factor.
    """
    shells = shells_beyond(shared, n_shells)
    variance = [1 / (2 * (2 * math.pi * r**2 * ball_share / n_copies)) for r in shells]
    return 5 * math.sqrt(sum(variance)) / len(shells) if shells else 0.0


def judge(
    plan: Plan, config: RunConfig, held_out: HeldOut, searched: HalfSetState, last: HalfSetState, features_fsc: Tensor
) -> Verdict:
    """Verdict on a run of all stages.

    Parameters
    ----------
    held_out : how well the map of the chosen start explains held-out images.
    searched : state after the last search of all images, for the stability of the poses.
    last : state after the refinement.
    features_fsc : (n // 2 + 1,) FSC of its half-maps after subtraction of their radial means.
    """
    search, stable = config.search, searched.stable_share(config.search.stable_deg)
    shared = search.shared_band * plan.box_angstrom / plan.diameter_angstrom
    start = plan.box_angstrom / shared
    wrong = []
    short = f"explains {held_out.explained:.0%} of the signal in held-out images (expected {held_out.expected:.0%})"
    if held_out.against_null < search.least_z:
        wrong.append("the map explains held-out images no better than a map with random phases")
    elif held_out.explained < held_out.expected - search.shortfall:
        wrong.append(f"the map only {short}")
    if stable < search.settled_share:
        wrong.append(f"only {stable:.0%} of the poses are stable")
    ball_share = plan.mask(plan.boxes[-1]).mean().item()
    by_chance = agreement_by_chance(shared, len(features_fsc), ball_share, len(plan.group))
    if agreement_beyond(last.halves.fsc, shared) < 0.143:
        wrong.append(f"the half-maps do not agree beyond {start:.0f} A, the resolution of their common starting map")
    elif agreement_beyond(features_fsc, shared) < max(0.143, by_chance):
        wrong.append(
            f"beyond {start:.0f} A, the resolution of their common starting map, the half-maps agree only in their radial mean, "
            f"as they would for any poses (FSC without radial mean {agreement_beyond(features_fsc, shared):.2f})"
        )
    if wrong:
        return Verdict(False, f"not converged: {'; '.join(wrong)}. Do not trust this map. {advice(plan, config)}")
    resolution = in_angstrom(plan.box_angstrom, last.fsc143_shell, len(last.halves.fsc))
    message = f"converged: {stable:.0%} of the poses stable; half-maps agree to {resolution} (FSC 0.143)"
    if not explains(held_out, search):
        message += f". But the map {short}: some poses may be wrong. Compare with another --seed"
    return Verdict(True, message)


def judge_autoencoder(last: HalfSetState, expected: float, config: RunConfig) -> Verdict:
    """Verdict on stage 1 alone.

    Parameters
    ----------
    last : the decoder's map, the encoder's poses and their change at the end of the training.
    expected : share of the signal that the correct map and poses would explain.
    """
    search, stable = config.search, last.stable_share(config.search.stable_deg)
    explained = f"explains {last.explained:.0%} of the signal at the encoder's poses (expected {expected:.0%})"
    wrong = []
    if last.explained < ENCODER_SHARE * expected:
        wrong.append(f"the map only {explained}")
    if stable < search.settled_share:
        wrong.append(f"only {stable:.0%} of the poses are stable")
    if wrong:
        tries = f"more --ace.steps (now {config.ace.steps}), another --seed, or --stages all"
        return Verdict(False, f"not converged: {'; '.join(wrong)}. Do not trust this map. Try: {tries}")
    caution = "The poses of both half-maps come from one network: their FSC is no evidence for the poses"
    reached = coverage(last.pose.rotation)
    # coverage of as many random views
    at_random = 1 - math.exp(-len(last.pose) / N_VIEWS)
    if reached < FEW_VIEWS * at_random:
        caution += f". The views cover only {reached:.0%} of the sphere: preferred orientation, or a collapsed encoder"
    return Verdict(True, f"converged: {stable:.0%} of the poses stable; the map {explained}. {caution}")


def advice(plan: Plan, config: RunConfig) -> str:
    """Advice after a run that did not converge."""
    tries = [
        f"another --seed or more --starts (now {config.starts})",
        f"a longer training (--ace.steps, now {config.ace.steps})",
        f"--diameter, if {plan.diameter_angstrom:.0f} A is wrong",
    ]
    if len(plan.particles) < 2000:
        tries.append("more particles")
    if len(plan.group) == 1:
        tries.append("--symmetry, if the particle has any")
    return f"Try: {', '.join(tries)}; check the report for junk images and wrong contrast."
