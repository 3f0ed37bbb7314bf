"""Whether a run has converged, why not, and what to try."""

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
"""An encoder's poses are a few degrees off: with them the right map explains about this share of what it would."""

FEW_VIEWS = 0.5
"""Share of the views that as many random poses would cover, below which the user is told."""


@dataclass(frozen=True)
class Verdict:
    """``converged``, and a plain sentence for the terminal and the report."""

    converged: bool
    message: str


def explains(held_out: HeldOut, config: SearchConfig) -> bool:
    """Whether a start's map explains images that it has not seen as well as the noise allows."""
    return held_out.explained >= held_out.expected - config.tolerance and held_out.against_null >= config.least_z


def shells_beyond(shared: float, n_shells: int) -> range:
    """Shells from somewhat beyond the shared band to about twice that."""
    return range(math.ceil(shared) + 3, min(2 * math.ceil(shared) + 4, n_shells))


def agreement_beyond(fsc: Tensor, shared: float) -> float:
    """Mean FSC of the shells beyond the shared band; 1 where the box ends before."""
    shells = shells_beyond(shared, len(fsc))
    return fsc[list(shells)].mean().item() if shells else 1.0


def agreement_by_chance(shared: float, n_shells: int, ball_share: float, n_copies: int) -> float:
    """Mean FSC beyond the shared band that half-maps of noise do not reach: five standard deviations.

    Half of a shell of radius r has ``2 pi r^2`` coefficients. Those of a map that is 0 outside of a ball are independent as far
    as that fills the box, and a point group makes ``n_copies`` of them alike: the fewer there are, the more noise agrees.
    """
    shells = shells_beyond(shared, n_shells)
    variance = [1 / (2 * (2 * math.pi * r**2 * ball_share / n_copies)) for r in shells]
    return 5 * math.sqrt(sum(variance)) / len(shells) if shells else 0.0


def judge(
    plan: Plan, config: RunConfig, held_out: HeldOut, searched: HalfSetState, last: HalfSetState, features_fsc: Tensor
) -> Verdict:
    """The verdict on a run.

    Parameters
    ----------
    held_out : how well the chosen start's map explains images held out.
    searched : after the last search of all images, whose poses may still jump.
    last : the end of the refinement.
    features_fsc : (n // 2 + 1,) FSC of its half-maps without their radial means.
    """
    search, stable = config.search, searched.stable_share(config.search.stable_deg)
    shared = search.shared_band * plan.box_angstrom / plan.diameter_angstrom
    start = plan.box_angstrom / shared
    wrong = []
    short = f"explains {held_out.explained:.0%} of the signal in images held out, where noise allows {held_out.expected:.0%}"
    if held_out.against_null < search.least_z:
        wrong.append("the map explains images held out no better than its radial mean and random phases")
    elif held_out.explained < held_out.expected - search.shortfall:
        wrong.append(f"the map only {short}")
    if stable < search.settled_share:
        wrong.append(f"only {stable:.0%} of the poses are stable")
    ball_share = plan.mask(plan.boxes[-1]).mean().item()
    by_chance = agreement_by_chance(shared, len(features_fsc), ball_share, len(plan.group))
    if agreement_beyond(last.halves.fsc, shared) < 0.143:
        wrong.append(f"the half-maps hardly agree beyond {start:.0f} A, the resolution that they started from")
    elif agreement_beyond(features_fsc, shared) < max(0.143, by_chance):
        wrong.append(
            f"beyond {start:.0f} A, the resolution that they started from, the half-maps agree in their radial mean only, which "
            f"any arrangement of poses gives (FSC without it {agreement_beyond(features_fsc, shared):.2f})"
        )
    if wrong:
        return Verdict(False, f"not converged: {'; '.join(wrong)}. Do not trust this map. {advice(plan, config)}")
    resolution = in_angstrom(plan.box_angstrom, last.fsc143_shell, len(last.halves.fsc))
    message = f"converged: {stable:.0%} of the poses stable; half-maps agree to {resolution} (FSC 0.143)"
    if not explains(held_out, search):
        message += f". But the map {short}: some views may be in a wrong place. Compare with another --seed"
    return Verdict(True, message)


def judge_autoencoder(last: HalfSetState, expected: float, config: RunConfig) -> Verdict:
    """The verdict on stage 1 alone.

    Parameters
    ----------
    last : the decoder's map, the encoder's poses, and how far these moved at the end of the training.
    expected : share of the signal that the right map and poses would explain.
    """
    search, stable = config.search, last.stable_share(config.search.stable_deg)
    explained = f"explains {last.explained:.0%} of the signal at the encoder's poses, where noise allows {expected:.0%}"
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
    # that so many views at random would reach
    at_random = 1 - math.exp(-len(last.pose) / N_VIEWS)
    if reached < FEW_VIEWS * at_random:
        caution += f". The views cover only {reached:.0%} of the sphere: preferred orientation, or a collapsed encoder"
    return Verdict(True, f"converged: {stable:.0%} of the poses stable; the map {explained}. {caution}")


def advice(plan: Plan, config: RunConfig) -> str:
    """What to try, in one sentence."""
    tries = [
        f"another --seed or more --starts (now {config.starts})",
        f"a longer training (--ace.steps, now {config.ace.steps})",
        f"--diameter, if {plan.diameter_angstrom:.0f} A is wrong",
    ]
    if len(plan.particles) < 2000:
        tries.append("more particles")
    if len(plan.group) == 1:
        tries.append("--symmetry, if the particle has any")
    return f"Try: {', '.join(tries)}; look at the images in the report for junk and for the contrast."
