"""Two half-sets searched and refined independently; their maps meet only for the FSC and a common frame.

Both start from the ab initio map low-passed at the shared band, and forget the poses that made it: the first round searches
every pose anew. What the halves share lies below that band (and in the starting shifts, which every round searches again);
beyond it each half-map is made from its own images alone, so that agreement there is evidence.
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
from ace_em.metrics.alignment import apply_frame
from ace_em.metrics.fsc import resolution_shell
from ace_em.physics.image_content import Content, ContentTest
from ace_em.physics.noise import NoiseModel
from ace_em.physics.pose import Pose
from ace_em.refinement.backprojection import Accumulator, Halves, accumulate, reconstruct_halves, unfiltered_map
from ace_em.refinement.ctf_refinement import refine_defocus
from ace_em.refinement.explained import explained_share
from ace_em.refinement.map_alignment import align_maps
from ace_em.refinement.noise_scale import residuals, shell_power, updated_intensity_scale, updated_noise
from ace_em.refinement.pose_refinement import LocalResult, reference_on, refine_poses
from ace_em.refinement.search import PoseGrid, SearchSpace, find_or_follow_poses, find_poses
from ace_em.refinement.symmetry import symmetrise

GROWTH = 1.35
"""A band may always grow by this factor from one round to the next."""
REACH = 0.5
"""And to this over the poses' median move in radians: shell r sees poses about 1/r away."""

PoseUpdate = Callable[[VolumeFT, ParticleStack, Pose, Tensor, int], LocalResult]
"""New poses of a block of images: the reference, the images, their poses, their rows in the whole set, and how many images of
the half-set came before them."""


@dataclass(frozen=True)
class HalfSets:
    """The particles of a run in two halves, at one working box.

    Attributes
    ----------
    stack : all N images as they were read: noise of the survey, intensity scale 1, defocus of the file.
    half_set : (N,) 1 or 2.
    mask : (box, box, box) soft ball for maps.
    group : (g, 3, 3) point group.
    device : where images are brought block by block; poses and maps are on the CPU.
    test : tells images that show no particle, within each half by itself.
    content_band : last shell that it looks at: beyond it, small differences of the noise between images outweigh the signal.
    """

    stack: ParticleStack
    half_set: Tensor
    mask: Tensor
    group: Tensor
    device: torch.device = CPU
    test: ContentTest = ContentTest()
    content_band: float = math.inf

    @property
    def rows(self) -> tuple[Tensor, Tensor]:
        return torch.nonzero(self.half_set == 1)[:, 0], torch.nonzero(self.half_set == 2)[:, 0]

    def stack_of(self, state: "HalfSetState") -> ParticleStack:
        """The images with the noise, intensity scale and defocus that a state has found."""
        stack = self.stack.with_noise(state.noise).with_intensity_scale(state.intensity_scale)
        return stack.with_ctf(stack.ctf.defocused(state.defocus_offset_angstrom))


@dataclass(frozen=True)
class HalfSetState:
    """State after a round at a working box.

    Attributes
    ----------
    pose : (N,).
    halves : the half-maps, the map of both, their FSC.
    band : last shell that the poses were fitted to.
    moved_deg : (N,) change of orientation, up to the point group; of the first images only where no others are watched.
    content : what the N images show. Those that show no particle are in no map, and nothing else here counts them.
    explained : share of the power above the noise, inside the band, that each half's reference and poses accounted for.
    noise : noise power of each group of images.
    intensity_scale : (N,), 1 on average.
    defocus_offset_angstrom : (N,) fitted, to add to the file's U and V.
    """

    pose: Pose
    halves: Halves
    band: float
    moved_deg: Tensor
    content: Content
    explained: float
    noise: NoiseModel
    intensity_scale: Tensor
    defocus_offset_angstrom: Tensor

    @property
    def shown(self) -> Tensor:
        """(N,) bool, which images show a particle."""
        return self.content.shows_particle

    @property
    def fsc143_shell(self) -> float:
        return resolution_shell(self.halves.fsc, 0.143)

    @property
    def particles_moved_deg(self) -> Tensor:
        """Change of orientation of the images that show a particle."""
        return self.moved_deg[self.shown[: len(self.moved_deg)]]

    def stable_share(self, degrees: float) -> float:
        return (self.particles_moved_deg < degrees).float().mean().item()


def low_pass(volume: Tensor, shell: float) -> Tensor:
    """Volume (n, n, n) low-passed at ``shell``, with a soft edge of two shells."""
    radius = radius_grid(volume.shape[-1], 3)
    keep = ((shell + 1 - radius) / 2).clamp(0, 1)
    return centred_ifft(centred_fft(volume, 3) * keep, 3).real


def change_box(volume: Tensor, box: int) -> Tensor:
    """Resample keeping the transform's values (not the grey values): stacks of all working boxes share the full box's scale."""
    return centred_ifft(resize(centred_fft(volume, 3), box, 3), 3).real


def first_state(stack: ParticleStack, pose: Pose, halves: Halves, band: float) -> HalfSetState:
    """A state of poses and maps from elsewhere: nothing known of how stable they are, noise and scale as the stack has them."""
    n = len(stack)
    moved, content = torch.full((n,), 180.0), Content.of_particles(n, pose.shift_px)
    return HalfSetState(pose, halves, band, moved, content, 0.0, stack.noise, stack.intensity_scale, torch.zeros(n))


def shared_start(stack: ParticleStack, volume: Tensor, pose: Pose, shell: float) -> HalfSetState:
    """The state that both halves start from: one map, low-passed at ``shell``."""
    common = low_pass(volume, shell)
    fsc = (torch.arange(volume.shape[-1] // 2 + 1) <= shell).float()
    return first_state(stack, pose, Halves(common, common, common, fsc, common, common), shell)


def next_round(sets: HalfSets, state: HalfSetState, band: float, update: PoseUpdate | None) -> HalfSetState:
    """One round: new poses for each half from its own map, then noise and intensity scale from the residuals, then new maps.

    Without an ``update`` the poses, and how far they moved last, stay.
    """
    if update is not None:
        state = _with_new_poses(sets, state, band, update)
    one, two = inserted_halves(sets, state)
    return replace(state, halves=reconstruct_halves(one, two, sets.mask))


def inserted_halves(sets: HalfSets, state: HalfSetState) -> tuple[Accumulator, Accumulator]:
    """The images of each half that show a particle, inserted at their poses, the point group imposed."""
    stack = sets.stack_of(state)
    rows = [mine[state.shown[mine]] for mine in sets.rows]
    one, two = (symmetrise(accumulate(stack, state.pose, mine, device=sets.device), sets.group) for mine in rows)
    return one, two


def unfiltered_halves(sets: HalfSets, state: HalfSetState) -> tuple[Tensor, Tensor]:
    """The half-maps (box, box, box) without any prior, for post-processing in another program."""
    one, two = inserted_halves(sets, state)
    return unfiltered_map(one), unfiltered_map(two)


def _with_new_poses(sets: HalfSets, state: HalfSetState, band: float, update: PoseUpdate) -> HalfSetState:
    stack, rows = sets.stack_of(state), sets.rows
    inner = stack.band(band)
    power = inner.power()
    found, left, content = [], [], []
    for volume, mine in zip((state.halves.half1, state.halves.half2), rows, strict=True):
        reference, parts = reference_on(sets.device, volume), list[LocalResult]()
        for some in stack.blocks(mine):
            done = sum(len(p.residual) for p in parts)
            parts.append(update(reference, inner.subset(some).in_memory(), state.pose[some], some, done))
        found.append(LocalResult.cat(parts))
        shells = shell_power(reference, inner.band(min(band, sets.content_band)).subset(mine), found[-1].pose)
        content.append(sets.test.content(shells, found[-1].of_grid))
        shown = content[-1].shows_particle
        left.append(residuals(reference, stack, found[-1].pose[shown], mine[shown]))
    # the halves' frames drift apart, which would lower the FSC; the maps alone say by how much
    drift = align_maps(state.halves.half2, state.halves.half1, state.halves.fsc, state.fsc143_shell)
    order = torch.cat(rows).argsort()
    pose, of_all = Pose.cat([found[0].pose, apply_frame(found[1].pose, drift)])[order], Content.cat(content)[order]
    moved = angular_distance_deg(state.pose.rotation, nearest_copy(pose.rotation, state.pose.rotation, sets.group))
    residual, shown = torch.cat([f.residual for f in found])[order], of_all.shows_particle
    return replace(
        state,
        pose=pose,
        band=band,
        moved_deg=moved,
        content=of_all,
        explained=explained_share(power[shown], residual[shown], inner.noise_power()[shown]),
        noise=updated_noise(stack, left),
        intensity_scale=updated_intensity_scale(stack, left),
    )


@dataclass(frozen=True)
class SearchUpdate:
    """Search on a grid. ``settled`` (N,) images are only followed; None: a first round, in which no earlier pose counts."""

    grid: PoseGrid
    config: SearchConfig
    settled: Tensor | None
    on_block: Callable[[int], None]

    def __call__(self, reference: VolumeFT, stack: ParticleStack, pose: Pose, rows: Tensor, done: int) -> LocalResult:
        def on_block(of_these: int) -> None:
            self.on_block(done + of_these)

        if self.settled is None:
            return find_poses(reference, stack, pose, self.grid, self.config, False, on_block)
        return find_or_follow_poses(reference, stack, pose, self.settled[rows], self.grid, self.config, on_block)


def settled_rows(history: list[HalfSetState], config: SearchConfig) -> Tensor | None:
    """Images (N,) whose pose two searches in a row have confirmed; None before the first search."""
    if len(history) == 1:
        return None
    last = [state.moved_deg < config.stable_deg for state in history[-2:]]
    return last[0] & last[1]


def search_half_sets(
    sets: HalfSets,
    history: list[HalfSetState],
    space: SearchSpace,
    generator: torch.Generator,
    on_block: Callable[[int, int], None] = lambda number, done: None,
) -> Iterator[HalfSetState]:
    """Search every image against its own half's map until poses and maps no longer change; yield the state of each round.

    ``history`` holds the shared start, and the rounds already made; new ones are appended. The first round uses the grid alone:
    the poses that made the shared map are forgotten, and their shifts are where its shifts are centred. ``on_block`` is called
    with the round and the number of images of the present half that are done.
    """
    config = space.config
    while not search_finished(history, config):
        number, last = len(history), history[-1]
        band = min(space.band(config.last_band), max(last.band, min(last.fsc143_shell + 2, last.band * GROWTH)))
        update = SearchUpdate(space.grid(band, generator), config, settled_rows(history, config), partial(on_block, number))
        history.append(next_round(sets, last, band, update))
        yield history[-1]


def search_finished(history: list[HalfSetState], config: SearchConfig) -> bool:
    """Nearly all poses stable and the half-maps no better for it, or no more stable than in the three rounds before."""
    rounds = history[1:]
    if len(rounds) >= config.max_rounds:
        return True
    if len(rounds) < 2:
        return False
    stable = [r.stable_share(config.stable_deg) for r in rounds]
    if stable[-1] >= config.stable_share and rounds[-1].fsc143_shell < rounds[-2].fsc143_shell + 0.5:
        return True
    return len(rounds) >= 4 and stable[-1] < max(stable[-4:-1]) + 0.01


def refine_half_sets(sets: HalfSets, history: list[HalfSetState], config: RefineConfig) -> Iterator[HalfSetState]:
    """Local steps, each half on its own map, as the band grows with the FSC; yield the state of each round at this box.

    ``history`` holds the state that the box is entered with, and the rounds already made; new ones are appended. The first
    round keeps the poses: it makes the maps of this box, and their FSC.
    """
    nyquist, first_band = sets.stack.box / 2, history[0].band
    if len(history) == 1:
        history.append(next_round(sets, history[0], first_band, None))
        yield history[-1]

    def update(reference: VolumeFT, stack: ParticleStack, pose: Pose, rows: Tensor, done: int) -> LocalResult:
        return refine_poses(reference, stack, pose, config.local_steps)

    while len(history) < config.max_rounds + 2:
        state = history[-1]
        # a little beyond what the halves agree on, as far as the poses' last move lets a slice be found from its neighbour
        median_deg = state.particles_moved_deg.median()
        moved = torch.deg2rad(median_deg).item()
        reach = max(state.band * GROWTH, REACH / max(moved, 1e-6))
        band = min(max(first_band, state.fsc143_shell + 2), nyquist, reach)
        if state.band >= band - 1 and median_deg < config.stable_deg:
            return
        history.append(next_round(sets, state, band, update))
        yield history[-1]


def without_old_maps(history: list[HalfSetState]) -> list[HalfSetState]:
    """The rounds, all but the last without poses and maps, which are no longer needed."""
    old = [replace(h, pose=h.pose[:0], halves=h.halves.without_maps()) for h in history[:-1]]
    return [*old, *history[-1:]]


def refine_defocus_rounds(sets: HalfSets, state: HalfSetState, config: RefineConfig) -> tuple[HalfSetState, int]:
    """Two passes over every particle's defocus, each half against its own map, and new maps after each.

    Returns the state, and the number of images whose defocus was best at the end of the range and was left alone.
    """
    at_limit = 0
    for _ in range(2):
        inner, offset, at_limit = sets.stack_of(state).band(state.band), state.defocus_offset_angstrom.clone(), 0
        for mine, volume in zip(sets.rows, (state.halves.half1, state.halves.half2), strict=True):
            reference = reference_on(sets.device, volume)
            for some in inner.blocks(mine):
                limits, earlier = (config.defocus_range, config.defocus_sd), state.defocus_offset_angstrom[some]
                fit = refine_defocus(reference, inner.subset(some), state.pose[some], *limits, earlier)
                offset[some], at_limit = earlier + fit.offset_angstrom, at_limit + fit.at_limit
        state = next_round(sets, replace(state, defocus_offset_angstrom=offset), state.band, None)
    return state, at_limit


def at_box(state: HalfSetState, old_box: int, box: int) -> HalfSetState:
    """The state of one working box as the start at another."""
    maps = {f.name: change_box(getattr(state.halves, f.name), box) for f in fields(Halves) if f.name != "fsc"}
    return replace(state, pose=state.pose.rescaled(box / old_box), halves=replace(state.halves, **maps))
