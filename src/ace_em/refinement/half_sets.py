"""Independent search and refinement of two half-sets; the half-maps are compared only for the FSC and for a common frame.

Both halves start from the ab initio map, low-passed at the shared band. The ab initio poses are discarded: the first round
searches all poses from scratch. The halves share only the map below that band, and the starting shifts, which every round
searches again. Beyond the band each half-map comes from its own images alone, so the FSC there is a valid resolution estimate.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial

import torch
from torch import Tensor

from ace_em.config import RefineConfig, SearchConfig
from ace_em.data.particle_stack import CPU, ParticleStack
from ace_em.maths.fourier import centred_fft, centred_ifft, radius_grid, resize
from ace_em.maths.point_group import nearest_copy
from ace_em.maths.rotations import angular_distance_deg
from ace_em.maths.slices import VolumeFT
from ace_em.metrics.fsc import resolution_shell
from ace_em.physics.image_content import Content, ContentTest
from ace_em.physics.noise import NoiseModel
from ace_em.physics.pose import Pose
from ace_em.refinement.backprojection import Accumulator, Halves, accumulate, reconstruct_halves, unfiltered_map
from ace_em.refinement.ctf_refinement import refine_defocus
from ace_em.refinement.explained import explained_share
from ace_em.refinement.map_alignment import align_maps
from ace_em.refinement.noise_scale import residuals, shell_power, updated_intensity_scale, updated_noise
from ace_em.refinement.pose_refinement import LocalResult, reference_on, refine_among_copies, with_other_poses
from ace_em.refinement.posterior import Posterior
from ace_em.refinement.search import PoseGrid, SearchSpace, find_or_follow_poses, find_poses
from ace_em.refinement.shift_prior import ShiftPrior
from ace_em.refinement.symmetry import symmetrise

GROWTH = 1.35
"""Factor by which the band may always grow from one round to the next."""
LEAST_SHIFT_SD = 0.02
"""Least standard deviation of the prior of the shifts, in diameters."""
REACH = 0.5
"""The band may also grow to this over the median pose change in radians: at shell r, refinement converges within about 1/r."""
SETTLED_COPIES = 0.01
"""The choice among pseudo-symmetric copies has settled once a smaller share of the images changes copy in a round."""

PoseUpdate = Callable[[VolumeFT, ParticleStack, Pose, Tensor, int], LocalResult]
"""Function that finds new poses for a block of images. Its arguments are the reference, the images, their poses, their rows in
the whole set, and the number of images of the half-set in earlier blocks."""


@dataclass(frozen=True)
class HalfSets:
    """The particles of a run in two halves, at one working box.

    Attributes
    ----------
    stack : all N images as read, with the noise of the survey, intensity scale 1 and the defocus of the input file.
    half_set : (N,) 1 or 2.
    mask : (box, box, box) soft ball for the maps.
    group : (g, 3, 3) point group.
    device : device to which images are moved in blocks. Poses and maps stay on the CPU.
    test : test for images that show no particle, applied to each half separately.
    content_band : last shell that the test looks at. Beyond it, small differences in noise between images outweigh the signal.
    flatten_solvent : whether the references are masked to the particle (:mod:`ace_em.refinement.solvent`).
    copies : (c, 3, 3) pseudo-symmetry of the map, which is nearly the same after these rotations. The local refinement chooses
        among the copies of each pose; the map stays C1, as does ``group``.
    """

    stack: ParticleStack
    half_set: Tensor
    mask: Tensor
    group: Tensor
    device: torch.device = CPU
    test: ContentTest = ContentTest()
    content_band: float = math.inf
    flatten_solvent: bool = False
    copies: Tensor = torch.eye(3)[None]

    @property
    def rows(self) -> tuple[Tensor, Tensor]:
        return torch.nonzero(self.half_set == 1)[:, 0], torch.nonzero(self.half_set == 2)[:, 0]

    @property
    def relaxed(self) -> bool:
        """Whether images choose among pseudo-symmetric copies of their poses."""
        return len(self.copies) > 1

    def stack_of(self, state: "HalfSetState") -> ParticleStack:
        """The images with the noise, intensity scales and defocus of a state."""
        stack = self.stack.with_noise(state.noise).with_intensity_scale(state.intensity_scale)
        return stack.with_ctf(stack.ctf.defocused(state.defocus_offset_angstrom))


@dataclass(frozen=True)
class HalfSetState:
    """State after a round at a working box.

    Attributes
    ----------
    posterior : poses of the N images, and their probabilities.
    halves : half-maps, combined map and FSC.
    band : last shell used to fit the poses.
    moved_deg : (n,) change of orientation in the last round, modulo the point group or the pseudo-symmetry. It holds the first n
        images only if a caller tracks just those; otherwise n is N.
    changed_copy : (N,) bool, whether the last round took another pseudo-symmetric copy of the pose.
    content : what each of the N images shows. Images without the particle enter no map and no statistic of this state.
    explained : fraction of the signal power (power above the noise, inside the band) explained by the references and poses.
    noise : noise power of each group of images.
    intensity_scale : (N,) intensity scales with a mean of 1.
    defocus_offset_angstrom : (N,) fitted offsets to add to the U and V of the input file.
    """

    posterior: Posterior
    halves: Halves
    band: float
    moved_deg: Tensor
    content: Content
    explained: float
    noise: NoiseModel
    intensity_scale: Tensor
    defocus_offset_angstrom: Tensor
    changed_copy: Tensor

    @property
    def pose(self) -> Pose:
        """(N,) the most probable poses."""
        return self.posterior.best

    @property
    def poses_per_image(self) -> float:
        """Mean number of poses that hold the posterior of an image that shows a particle."""
        return self.posterior.n_poses[self.shown].float().mean().item()

    @property
    def shown(self) -> Tensor:
        """(N,) bool, which images show a particle."""
        return self.content.shows_particle

    @property
    def fsc143_shell(self) -> float:
        return resolution_shell(self.halves.fsc, 0.143)

    @property
    def reference_shell(self) -> float:
        """Resolution of the references, inside their mask."""
        return resolution_shell(self.halves.fsc_of_references, 0.143)

    @property
    def particles_moved_deg(self) -> Tensor:
        """Change of orientation of the images that show a particle."""
        return self.moved_deg[self.shown[: len(self.moved_deg)]]

    @property
    def changed_share(self) -> float:
        """Share of the images that show a particle whose pose is now another copy."""
        return self.changed_copy[self.shown].float().mean().item()

    def stable_share(self, degrees: float) -> float:
        return (self.particles_moved_deg < degrees).float().mean().item()


def low_pass(volume: Tensor, shell: float) -> Tensor:
    """Volume (n, n, n) low-passed at ``shell``, with a soft edge of two shells."""
    radius = radius_grid(volume.shape[-1], 3)
    keep = ((shell + 1 - radius) / 2).clamp(0, 1)
    return centred_ifft(centred_fft(volume, 3) * keep, 3).real


def change_box(volume: Tensor, box: int) -> Tensor:
    """Resample a volume by cropping or padding its Fourier transform.

    The Fourier coefficients keep their values, the voxel values do not: image stacks at all working boxes have the coefficients
    of the full box.
    """
    return centred_ifft(resize(centred_fft(volume, 3), box, 3), 3).real


def first_state(stack: ParticleStack, pose: Pose, halves: Halves, band: float) -> HalfSetState:
    """State from given poses and maps, with the noise and intensity scales of the stack.

    The stability of the poses is unknown, so all images count as moved by 180 degrees and as showing a particle.
    """
    n = len(stack)
    moved, content = torch.full((n,), 180.0), Content.of_particles(n, pose.shift_px)
    unchanged = torch.zeros(n, dtype=torch.bool)
    certain = Posterior.certain(pose)
    return HalfSetState(certain, halves, band, moved, content, 0.0, stack.noise, stack.intensity_scale, torch.zeros(n), unchanged)


def shared_start(stack: ParticleStack, volume: Tensor, pose: Pose, shell: float) -> HalfSetState:
    """Starting state, in which both halves have the same map, low-passed at ``shell``."""
    common = low_pass(volume, shell)
    fsc = (torch.arange(volume.shape[-1] // 2 + 1) <= shell).float()
    return first_state(stack, pose, Halves(common, common, common, fsc, common, common, fsc), shell)


def next_round(sets: HalfSets, state: HalfSetState, band: float, update: PoseUpdate | None) -> HalfSetState:
    """One round: new poses of each half against its own map, then noise and intensity scales from the residuals, then new maps.

    With ``update`` None only the maps are made anew.
    """
    if update is not None:
        state = _with_new_poses(sets, state, band, update)
    one, two = inserted_halves(sets, state)
    return replace(state, halves=reconstruct_halves(one, two, sets.mask, sets.flatten_solvent))


def inserted_halves(sets: HalfSets, state: HalfSetState) -> tuple[Accumulator, Accumulator]:
    """Back-project the images of each half that show a particle, and impose the point group."""
    stack = sets.stack_of(state)
    rows = [half[state.shown[half]] for half in sets.rows]
    one, two = (symmetrise(accumulate(stack, state.posterior, half, device=sets.device), sets.group) for half in rows)
    return one, two


def unfiltered_halves(sets: HalfSets, state: HalfSetState) -> tuple[Tensor, Tensor]:
    """Half-maps (box, box, box) without a prior, for post-processing in other programs."""
    one, two = inserted_halves(sets, state)
    return unfiltered_map(one), unfiltered_map(two)


def _with_new_poses(sets: HalfSets, state: HalfSetState, band: float, update: PoseUpdate) -> HalfSetState:
    stack, rows = sets.stack_of(state), sets.rows
    inner = stack.band(band)
    power = inner.power()
    found, statistics, content = [], [], []
    for volume, half in zip((state.halves.half1, state.halves.half2), rows, strict=True):
        reference, parts = reference_on(sets.device, volume), list[LocalResult]()
        for block in stack.blocks(half):
            done = sum(len(p.residual) for p in parts)
            parts.append(update(reference, inner.subset(block).in_memory(), state.pose[block], block, done))
        result = LocalResult.cat(parts)
        found.append(result)
        shells = shell_power(reference, inner.band(min(band, sets.content_band)).subset(half), result.pose)
        content.append(sets.test.content(shells, result.of_grid))
        shown_in_half = content[-1].shows_particle
        statistics.append(residuals(reference, stack, result.poses[shown_in_half], half[shown_in_half]))
    # the frames of the half-maps drift apart, which would lower the FSC; measure the drift from the maps and remove it. Each map
    # of a pseudo-symmetric particle may settle in another copy
    drift = align_maps(state.halves.half2, state.halves.half1, state.halves.fsc_of_references, state.reference_shell, sets.copies)
    order = torch.cat(rows).argsort()
    same_frame = torch.cat([f.pose.rotation for f in found])[order]
    unturned = nearest_copy(same_frame, state.pose.rotation, sets.copies)
    posterior = Posterior.cat([found[0].poses, found[1].poses.in_frame(drift)])[order]
    pose, of_all = posterior.best, Content.cat(content)[order]
    equivalent = sets.copies if sets.relaxed else sets.group
    moved = angular_distance_deg(state.pose.rotation, nearest_copy(pose.rotation, state.pose.rotation, equivalent))
    residual, shown = torch.cat([f.residual for f in found])[order], of_all.shows_particle
    return replace(
        state,
        posterior=posterior,
        band=band,
        moved_deg=moved,
        changed_copy=angular_distance_deg(unturned, same_frame) > 1,
        content=of_all,
        explained=explained_share(power[shown], residual[shown], inner.noise_power()[shown]),
        noise=updated_noise(stack, statistics),
        intensity_scale=updated_intensity_scale(stack, statistics),
    )


@dataclass(frozen=True)
class SearchUpdate:
    """Pose update by a search on a grid.

    Images that are ``settled``, (N,) bool, are only refined locally. ``settled`` is None in the first round, which ignores all
    earlier poses. With ``recentred`` the shift grids of the others are centred on the prior's centre, not on their last shifts.
    """

    grid: PoseGrid
    config: SearchConfig
    settled: Tensor | None
    recentred: bool
    on_block: Callable[[int], None]

    def __call__(self, reference: VolumeFT, stack: ParticleStack, pose: Pose, rows: Tensor, done: int) -> LocalResult:
        def on_block(done_here: int) -> None:
            self.on_block(done + done_here)

        if self.settled is None:
            return find_poses(reference, stack, pose, self.grid, self.config, False, on_block)
        recentred = self.recentred
        return find_or_follow_poses(reference, stack, pose, self.settled[rows], self.grid, self.config, on_block, recentred)


def settled_rows(history: list[HalfSetState], config: SearchConfig) -> Tensor | None:
    """Images with one probable pose, which was stable in the last two rounds, (N,) bool; None before the first search."""
    if len(history) == 1:
        return None
    last = [state.moved_deg < config.stable_deg for state in history[-2:]]
    return last[0] & last[1] & (history[-1].posterior.n_poses == 1)


def shift_prior(state: HalfSetState, space: SearchSpace) -> ShiftPrior:
    """Prior from the shifts of the images with stable poses; from those of all images before the first search."""
    stable = state.shown & (state.moved_deg < space.config.stable_deg)
    known = stable if stable.any() else state.shown
    least = LEAST_SHIFT_SD * space.diameter_px
    return ShiftPrior.of(state.pose.shift_px[known], least, space.independent)


def search_half_sets(
    sets: HalfSets,
    history: list[HalfSetState],
    space: SearchSpace,
    generator: torch.Generator,
    on_block: Callable[[int, int], None] = lambda number, done: None,
) -> Iterator[HalfSetState]:
    """Search all images against the map of their own half until poses and maps are stable; yield the state of each round.

    Parameters
    ----------
    history : the shared starting state and the rounds already completed; new rounds are appended. The first round takes poses
        from the grid alone: of the ab initio poses only the shifts are used, as the centre of the shift grid.
    on_block : called with the round and the number of images of the current half searched so far.
    """
    config = space.config
    while not search_finished(history, config):
        number, last = len(history), history[-1]
        band = min(space.band(config.last_band), max(last.band, min(last.reference_shell + 2, last.band * GROWTH)))
        prior, settled = shift_prior(last, space), settled_rows(history, config)
        grid = replace(space.grid(band, generator), prior=prior)
        update = SearchUpdate(grid, config, settled, number % 2 == 1 and prior.weight > 0, partial(on_block, number))
        history.append(next_round(sets, last, band, update))
        yield history[-1]


def search_finished(history: list[HalfSetState], config: SearchConfig) -> bool:
    """Whether to stop the search.

    It stops once nearly all poses are stable and the FSC no longer improves, once the fraction of stable poses has not risen
    above that of the previous three rounds, or after the maximum number of rounds.
    """
    rounds = history[1:]
    if len(rounds) >= config.max_rounds:
        return True
    if len(rounds) < 2:
        return False
    stable = [r.stable_share(config.stable_deg) for r in rounds]
    if stable[-1] >= config.stable_share and rounds[-1].reference_shell < rounds[-2].reference_shell + 0.5:
        return True
    return len(rounds) >= 4 and stable[-1] < max(stable[-4:-1]) + 0.01


def refine_half_sets(sets: HalfSets, history: list[HalfSetState], config: RefineConfig) -> Iterator[HalfSetState]:
    """Refine poses locally, each half against its own map, as the band grows with the FSC; yield the state of each round.

    With a pseudo-symmetry the copies of each pose are tried as well (:func:`refine_among_copies`), until few images change copy.

    Parameters
    ----------
    history : the state at the start of this working box and the rounds already completed; new rounds are appended. The first
        round keeps the poses and makes the maps and the FSC at this box.
    """
    nyquist, first_band = sets.stack.box / 2, history[0].band
    if len(history) == 1:
        history.append(next_round(sets, history[0], first_band, None))
        yield history[-1]

    def update(reference: VolumeFT, stack: ParticleStack, pose: Pose, rows: Tensor, done: int) -> LocalResult:
        best = refine_among_copies(reference, stack, pose, sets.copies, config.local_steps)
        before = history[-1].posterior[rows]
        return with_other_poses(reference, stack, best, before, config.local_steps, sets.test.independent, sets.group)

    while len(history) < config.max_rounds + 2:
        state = history[-1]
        # slightly beyond the FSC limit, as long as the pose errors are within the convergence radius of that band
        median_deg = state.particles_moved_deg.median()
        moved = torch.deg2rad(median_deg).item()
        reach = max(state.band * GROWTH, REACH / max(moved, 1e-6))
        band = min(max(first_band, state.reference_shell + 2), nyquist, reach)
        settled = not sets.relaxed or copies_settled(history)
        if state.band >= band - 1 and median_deg < config.stable_deg and settled:
            return
        history.append(next_round(sets, state, band, update))
        yield history[-1]


def copies_settled(history: list[HalfSetState]) -> bool:
    """Whether the choice among copies has settled: few images change copy, or no fewer than a round before.

    Images whose copies are nearly equal may change for ever. The first two states of a box have no choice of its own.
    """
    changed = [state.changed_share for state in history[2:]]
    return bool(changed) and (changed[-1] < SETTLED_COPIES or (len(changed) > 1 and changed[-1] >= changed[-2]))


def without_old_maps(history: list[HalfSetState]) -> list[HalfSetState]:
    """The rounds; all but the last lose their poses and maps, which are no longer needed."""
    old = [replace(h, posterior=h.posterior[:0], halves=h.halves.without_maps()) for h in history[:-1]]
    return [*old, *history[-1:]]


def refine_defocus_rounds(sets: HalfSets, state: HalfSetState, config: RefineConfig) -> tuple[HalfSetState, int]:
    """Two passes of per-particle defocus refinement, each half against its own map, with new maps after each pass.

    Returns the state and the number of images with the best fit at a limit of the range, whose defocus is left unchanged.
    """
    at_limit = 0
    for _ in range(2):
        inner, offset, at_limit = sets.stack_of(state).band(state.band), state.defocus_offset_angstrom.clone(), 0
        for half, volume in zip(sets.rows, (state.halves.half1, state.halves.half2), strict=True):
            reference = reference_on(sets.device, volume)
            for block in inner.blocks(half):
                limits, earlier = (config.defocus_range, config.defocus_sd), state.defocus_offset_angstrom[block]
                fit = refine_defocus(reference, inner.subset(block), state.pose[block], *limits, earlier)
                offset[block], at_limit = earlier + fit.offset_angstrom, at_limit + fit.at_limit
        state = next_round(sets, replace(state, defocus_offset_angstrom=offset), state.band, None)
    return state, at_limit


def at_box(state: HalfSetState, old_box: int, box: int) -> HalfSetState:
    """The state of one working box, rescaled to another."""
    maps = {f.name: change_box(getattr(state.halves, f.name), box) for f in fields(Halves) if not f.name.startswith("fsc")}
    return replace(state, posterior=state.posterior.rescaled(box / old_box), halves=replace(state.halves, **maps))
