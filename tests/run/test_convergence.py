"""The verdict on runs made by hand: every reason for not trusting a map, and what to try."""

import dataclasses
import math
import re
from typing import Any

import pytest
import roma
import torch
from torch import Tensor

from ace_em.config import RunConfig, SearchConfig
from ace_em.maths.masks import soft_ball
from ace_em.maths.point_group import point_group
from ace_em.physics.image_content import Content
from ace_em.physics.pose import Pose
from ace_em.refinement.backprojection import Halves
from ace_em.refinement.half_sets import HalfSetState
from ace_em.refinement.held_out import HeldOut
from ace_em.refinement.posterior import Posterior
from ace_em.run.convergence import Verdict, agreement_beyond, agreement_by_chance, explains, judge, judge_autoencoder
from ace_em.run.plan import Plan
from stacks import flat_noise
from volumes import symmetrise_volume

N_SHELLS = 33


class Images:
    """What a plan asks of the particles."""

    def __init__(self, n: int) -> None:
        self.n, self.box, self.pixel_size_angstrom = n, 64, 5.0

    def __len__(self) -> int:
        return self.n


def plan(n: int = 5000, group: str = "C1") -> Plan:
    """Images of 320 A, a particle of 160 A: the shared band of 4.5 cycles per diameter is shell 9."""
    images: Any = Images(n)
    look: Any = None
    return Plan(images, look, 160.0, 48, [64], "cpu", 1, point_group(group).float())


def state(resolution: float = 20, stable: float = 0.9, curve: Tensor | None = None) -> HalfSetState:
    fsc = torch.where(torch.arange(N_SHELLS) <= resolution, 0.9, 0.0) if curve is None else curve
    nothing, moved = torch.zeros(1), torch.where(torch.arange(100) < 100 * stable, 1.0, 90.0)
    halves = Halves(nothing, nothing, nothing, fsc, nothing, nothing, fsc)
    content = Content.of_particles(100, torch.ones(1))
    scale, offset = torch.ones(100), torch.zeros(100)
    pose = Pose(torch.eye(3).expand(len(moved), 3, 3), torch.zeros(len(moved), 2))
    return HalfSetState(Posterior.certain(pose), halves, 9.0, moved, content, 0.9, flat_noise(64), scale, offset, scale > 1)


# what the map explains of the signal held out, what noise allows at least, and z against random phases
GOOD = HeldOut(0.92, 0.95, 40.0)


def verdict(
    held_out: HeldOut = GOOD,
    searched: HalfSetState | None = None,
    last: HalfSetState | None = None,
    features_fsc: Tensor | None = None,
) -> Verdict:
    last = last or state()
    return judge(
        plan(), RunConfig(), held_out, searched or state(), last, last.halves.fsc if features_fsc is None else features_fsc
    )


def test_a_good_run_has_converged() -> None:
    found = verdict()
    assert found.converged
    # 320 A over the shell, a fraction beyond the last of 0.9, at which the curve falls below 0.143
    assert found.message == "converged: 90% of the poses stable; half-maps agree to 15.35 A (FSC 0.143)"


REASONS: dict[str, tuple[dict[str, Any], str]] = {
    "no better than chance": ({"held_out": HeldOut(0.95, 0.95, 4.9)}, "no better than a map with random phases"),
    "explains little": (
        {"held_out": HeldOut(0.74, 0.95, 40.0)},
        "only explains 74% of the signal in held-out images (expected 95%)",
    ),
    "poses jump": ({"searched": state(stable=0.69)}, "only 69% of the poses are stable"),
    "halves do not agree": (
        {"last": state(resolution=9)},
        "do not agree beyond 36 A, the resolution of their common starting map",
    ),
    "halves agree on a shell": (
        {"features_fsc": torch.where(torch.arange(N_SHELLS) <= 11, 0.9, 0.05)},
        "agree only in their radial mean, as they would for any poses (FSC without radial mean 0.05)",
    ),
}


@pytest.mark.parametrize("case", list(REASONS))
def test_each_reason_by_itself(case: str) -> None:
    given, words = REASONS[case]
    found = verdict(**given)
    assert not found.converged
    assert words in found.message and found.message.startswith("not converged: ")
    # no other reason is given
    assert not [other for name, (_, other) in REASONS.items() if name != case and other in found.message]
    assert "Do not trust this map" in found.message


def test_just_good_enough() -> None:
    config = SearchConfig()
    edge = HeldOut(0.9 - config.tolerance, 0.9, config.least_z)
    assert explains(edge, config) and verdict(edge, state(stable=0.71)).converged
    assert "But" not in verdict(edge).message
    assert not explains(dataclasses.replace(edge, explained=0.84), config)
    assert not explains(dataclasses.replace(edge, against_null=4.9), config)
    # in images of much noise the right map explains no more than this
    assert explains(HeldOut(0.3, 0.32, 10.0), config)


def test_a_map_that_falls_a_little_short_is_a_warning() -> None:
    found = verdict(HeldOut(0.76, 0.95, 40.0))
    assert found.converged
    assert found.message.startswith("converged: ") and "(expected 95%): some poses may be wrong" in found.message
    assert "another --seed" in found.message and "Do not trust" not in found.message


def test_poses_are_judged_after_the_search_and_maps_after_the_refinement() -> None:
    assert verdict(searched=state(resolution=9)).converged
    assert verdict(last=state(stable=0.0)).converged


def test_all_reasons_are_given_at_once() -> None:
    message = verdict(HeldOut(0.1, 0.9, 1.0), state(stable=0.2), state(resolution=5)).message
    # a map that is no better than chance explains nothing, whatever the share says
    for words in ("no better than a map with random phases", "only 20% of the poses", "do not agree"):
        assert words in message
    assert "only explains" not in message


@pytest.mark.parametrize(
    ("n", "group", "said", "unsaid"),
    [(5000, "C1", ["--symmetry"], ["more particles"]), (1999, "C1", ["more particles"], []), (5000, "D2", [], ["--symmetry"])],
)
def test_advice_names_what_to_try(n: int, group: str, said: list[str], unsaid: list[str]) -> None:
    config = RunConfig(starts=7, ace=dataclasses.replace(RunConfig().ace, steps=123))
    message = judge(plan(n, group), config, HeldOut(0.1, 0.9, 1.0), state(), state(), state().halves.fsc).message
    for words in ("--seed", "--starts (now 7)", "--ace.steps, now 123", "--diameter, if 160 A is wrong", *said):
        assert words in message
    for words in unsaid:
        assert words not in message


def test_agreement_beyond_is_the_mean_of_shells_that_were_not_shared() -> None:
    """Shells 8 to 13 of a shared band of shell 5, and of 4.2."""
    curve = torch.zeros(N_SHELLS)
    curve[8:14] = torch.tensor([0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    curve[:8], curve[14:] = 1.0, 1.0
    assert agreement_beyond(curve, 5.0) == pytest.approx(0.35)
    assert agreement_beyond(curve, 4.2) == pytest.approx(0.35)
    # the box ends before: fewer shells, or none
    assert agreement_beyond(curve[:10], 5.0) == pytest.approx(0.55)
    assert agreement_beyond(curve[:8], 5.0) == 1


def test_agreement_of_shared_shells_alone_is_none() -> None:
    """All that the halves started from, and the mask's smear of it, is no evidence."""
    curve = torch.where(torch.arange(N_SHELLS) <= 9 + 2, 0.95, 0.02)
    assert not verdict(last=state(curve=curve)).converged
    assert verdict(last=state(curve=torch.where(torch.arange(N_SHELLS) <= 14, 0.95, 0.02))).converged


@pytest.mark.parametrize("group", ["C1", "D7", "O"])
def test_noise_with_a_point_group_agrees_by_chance_no_more_than_is_allowed(group: str) -> None:
    """Both halves noise, symmetrised alike: the larger the group, the fewer coefficients there are to disagree."""
    operators, ball, shared, n = point_group(group).float(), soft_ball(32, 12.0), 4.0, 32

    def half(seed: int) -> Tensor:
        noise = torch.randn(n, n, n, generator=torch.Generator().manual_seed(seed))
        return symmetrise_volume(noise * ball, operators) * ball

    nothing = torch.zeros(1)
    found = [
        agreement_beyond(Halves(*[nothing] * 4, half(2 * i), half(2 * i + 1), nothing).features_fsc(ball), shared)
        for i in range(12)
    ]
    allowed = agreement_by_chance(shared, n // 2 + 1, ball.mean().item(), len(operators))
    assert max(found) < allowed
    # it is no more than noise needs
    assert allowed < 12 * torch.tensor(found).std()


def test_a_point_group_of_noise_is_no_agreement() -> None:
    """0.25 of octahedral half-maps is what noise may reach; of half-maps without symmetry it is agreement."""
    curve = torch.where(torch.arange(N_SHELLS) <= 11, 0.9, 0.25)
    in_octahedral = judge(plan(group="O"), RunConfig(), GOOD, state(), state(), curve)
    assert not in_octahedral.converged and "only in their radial mean" in in_octahedral.message
    assert judge(plan(), RunConfig(), GOOD, state(), state(), curve).converged


def alone(explained: float, stable: float = 0.9, tilt_deg: float = 180.0) -> Verdict:
    """Views in a cone about z, or over the whole sphere."""
    rotation = roma.random_rotmat(5000, generator=torch.Generator().manual_seed(0))
    rotation = rotation[rotation[:, 2, 2] > math.cos(math.radians(tilt_deg)) - 1e-6]
    pose = Pose(rotation, torch.zeros(len(rotation), 2))
    last = dataclasses.replace(state(stable=stable), explained=explained, posterior=Posterior.certain(pose))
    return judge_autoencoder(last, 0.9, RunConfig())


def test_stage_1_alone_is_judged_by_what_its_map_explains_and_whether_it_has_settled() -> None:
    good = alone(0.7)
    assert "views" not in good.message
    assert good.converged and "explains 70% of the signal" in good.message and "(expected 90%)" in good.message
    # a network settles in a wrong arrangement as firmly as in the right one
    assert "no evidence" in good.message
    collapsed = alone(0.7, tilt_deg=40)
    assert collapsed.converged and re.search(
        r"views cover only 1\d% of the sphere: preferred orientation, or a collapsed encoder", collapsed.message
    )
    poor = alone(0.6)
    assert not poor.converged and "only explains 60%" in poor.message and "Try: more --ace.steps (now 600)" in poor.message
    restless = alone(0.7, stable=0.6)
    assert (
        not restless.converged and "only 60% of the poses are stable" in restless.message and "explains" not in restless.message
    )
