"""Two half-sets searched and refined without knowledge of each other; their maps meet only for the FSC.

Both start from the explored map cut at a low frequency, the shared band, and forget the poses that made it: the first
round searches every pose anew. What the halves share lies below that band (and its share of the starting shifts, which
every round searches again); beyond it each half-map is made from its own images alone, so that agreement there is evidence.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial

import roma
import torch
from torch import Tensor

from ace_em.config import RefineConfig, SearchConfig
from ace_em.data.working_set import CPU, Images, WorkingSet, blocks, image_power
from ace_em.maths.fourier import centred_fft, centred_ifft, radius_grid, resize
from ace_em.maths.point_group import nearest_copy
from ace_em.maths.rotations import angular_distance_deg, squared_frobenius
from ace_em.maths.slices import VolumeFT
from ace_em.metrics.fsc import resolution_shell
from ace_em.physics.ctf import CTFParameters
from ace_em.physics.pose import Pose
from ace_em.refinement.abinitio import explained_share
from ace_em.refinement.backprojection import Halves, accumulate, reconstruct_halves
from ace_em.refinement.blank import BlankTest
from ace_em.refinement.ctf_refinement import DefocusFit, Optics, refine_defocus, with_defocus_
from ace_em.refinement.noise_scale import Calibration, recalibrated_, residuals
from ace_em.refinement.pose_refinement import LocalResult, reference_on, refine_poses
from ace_em.refinement.search import PoseGrid, SearchSpace, find_or_follow_poses, find_poses
from ace_em.refinement.symmetry import symmetrise

ALIGNMENT_IMAGES = 400
GROWTH = 1.35
"""A band may always grow by this factor from one round to the next."""
REACH = 0.5
"""And to this over the poses' median move in radians: shell r sees poses about 1/r away."""

PoseUpdate = Callable[[VolumeFT, WorkingSet, Pose, Tensor, int], LocalResult]
"""New poses of a block of images: the reference, the images, their poses, their rows in the whole set, and how many images of
the half-set came before them."""


@dataclass(frozen=True)
class HalfSets:
    """The images (N, n) of one working box, the half 1 or 2 of each (N,), a soft ball for maps, the point group (g, 3, 3).

    Images are brought to ``device`` block by block; poses and maps are on the CPU. ``blank`` tells images that show no
    particle, within each half by itself.
    """

    images: Images
    half_set: Tensor
    mask: Tensor
    group: Tensor
    device: torch.device = CPU
    blank: BlankTest = BlankTest()

    @property
    def rows(self) -> tuple[Tensor, Tensor]:
        return torch.nonzero(self.half_set == 1)[:, 0], torch.nonzero(self.half_set == 2)[:, 0]


@dataclass(frozen=True)
class HalfSetState:
    """State after a round at a working box.

    Attributes
    ----------
    pose : (N,).
    halves : the half-maps, the map of both, their FSC.
    band : last shell that the poses were judged by.
    moved_deg : (N,) change of orientation, up to the point group; those of the first images only, when no others are watched.
    shown : (N,) bool, which images show a particle. The others are in no map, and nothing else here counts them.
    explained : share of the power above the noise, inside the band, that each half's reference and poses accounted for.
    calibration : noise and brightness; the images have been brought up to it.
    applied : by what the images were multiplied since they were read, in order. Their product is the calibration, but the
        same steps give the same bits.
    """

    pose: Pose
    halves: Halves
    band: float
    moved_deg: Tensor
    shown: Tensor
    explained: float
    calibration: Calibration
    applied: tuple[Calibration, ...] = ()

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
    """Volume (n, n, n) without what lies beyond ``shell``, a soft edge of two shells."""
    radius = radius_grid(volume.shape[-1], 3)
    keep = ((shell + 1 - radius) / 2).clamp(0, 1)
    return centred_ifft(centred_fft(volume, 3) * keep, 3).real


def change_box(volume: Tensor, box: int) -> Tensor:
    """Resample keeping the transform's values (not the grey values): working sets share the full box's scale."""
    return centred_ifft(resize(centred_fft(volume, 3), box, 3), 3).real


def shared_start(volume: Tensor, pose: Pose, shell: float, calibration: Calibration) -> HalfSetState:
    """The state that both halves start from: one map, cut at ``shell``."""
    common = low_pass(volume, shell)
    fsc = (torch.arange(volume.shape[-1] // 2 + 1) <= shell).float()
    moved, shown = torch.full((len(pose),), 180.0), torch.ones(len(pose), dtype=torch.bool)
    return HalfSetState(pose, Halves(common, common, common, fsc, common, common), shell, moved, shown, 0.0, calibration)


def next_round(sets: HalfSets, state: HalfSetState, band: float, update: PoseUpdate | None) -> HalfSetState:
    """One round: new poses for each half from its own map, noise and brightness from what is left, new maps.

    Without an ``update`` the poses, and how far they moved last, stay.
    """
    if update is not None:
        state = _with_new_poses(sets, state, band, update)
    rows = [mine[state.shown[mine]] for mine in sets.rows]
    one, two = (symmetrise(accumulate(sets.images, state.pose, mine, device=sets.device), sets.group) for mine in rows)
    return replace(state, halves=reconstruct_halves(one, two, sets.mask))


def _with_new_poses(sets: HalfSets, state: HalfSetState, band: float, update: PoseUpdate) -> HalfSetState:
    inner, rows = sets.images.band(band), sets.rows
    references = [reference_on(sets.device, v) for v in (state.halves.half1, state.halves.half2)]
    found, left, shown, power = [], [], [], image_power(inner)
    for reference, mine in zip(references, rows, strict=True):
        parts: list[LocalResult] = []
        for some in blocks(sets.images, mine):
            images, done = sets.images.rows(some), sum(len(p.residual) for p in parts)
            parts.append(update(reference, images.band(band), state.pose[some], some, done))
        found.append(LocalResult.cat(parts))
        shown.append(sets.blank.shown(power[mine] - found[-1].residual, found[-1].of_grid))
        of_particles = torch.nonzero(shown[-1])[:, 0]
        for some in blocks(sets.images, of_particles):
            left.append((mine[some], residuals(reference, sets.images.rows(mine[some]), found[-1].pose[some])))
    refined = [found[0].pose, _into_frame_of(references[0], inner, rows[1], found[1].pose, shown[1])]
    order = torch.cat(rows).argsort()
    pose, of_all = Pose.cat(refined)[order], torch.cat(shown)[order]
    moved = angular_distance_deg(state.pose.rotation, nearest_copy(pose.rotation, state.pose.rotation, sets.group))
    residual = torch.cat([f.residual for f in found])[order]
    explained = explained_share(power[of_all], residual[of_all], inner.noise_variance)
    calibration, step = recalibrated_(sets.images, state.calibration, left)
    return HalfSetState(pose, state.halves, band, moved, of_all, explained, calibration, (*state.applied, step))


@dataclass(frozen=True)
class SearchUpdate:
    """Search on a grid; ``settled`` (N,) images are only followed, and None of the poses is looked at in a first round."""

    grid: PoseGrid
    config: SearchConfig
    settled: Tensor | None
    on_block: Callable[[int], None]

    def __call__(self, reference: VolumeFT, images: WorkingSet, pose: Pose, rows: Tensor, done: int) -> LocalResult:
        def on_block(of_these: int) -> None:
            self.on_block(done + of_these)

        if self.settled is None:
            return find_poses(reference, images, pose, self.grid, self.config, False, on_block)
        return find_or_follow_poses(reference, images, pose, self.settled[rows], self.grid, self.config, on_block)


def settled_rows(history: list[HalfSetState], config: SearchConfig) -> Tensor | None:
    """Images (N,) that two searches in a row have found where they were; None before the first search."""
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

    ``history`` holds the shared start, and the rounds already made; new ones are appended. The first round looks at nothing
    but the grid: the poses that made the shared map are forgotten, their shifts are where its shifts are centred.
    ``on_block`` is called with the round and the number of images of the present half that are done.
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
    round has the poses it came with: the maps of this box, and how far they agree.
    """
    nyquist, first_band = sets.images.box / 2, history[0].band
    if len(history) == 1:
        history.append(next_round(sets, history[0], first_band, None))
        yield history[-1]

    def update(reference: VolumeFT, images: WorkingSet, pose: Pose, rows: Tensor, done: int) -> LocalResult:
        return refine_poses(reference, images, pose, config.local_steps)

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


def without_past(history: list[HalfSetState]) -> list[HalfSetState]:
    """The rounds, all but the last without what nothing asks for any more."""
    old = [replace(h, pose=h.pose[:0], halves=h.halves.without_maps(), applied=()) for h in history[:-1]]
    return [*old, *history[-1:]]


def refine_defocus_rounds(
    sets: HalfSets, state: HalfSetState, parameters: CTFParameters, pixel_size_angstrom: float, config: RefineConfig
) -> tuple[HalfSetState, DefocusFit]:
    """Two passes over every particle's defocus, each half against its own map, and new maps after each.

    Parameters
    ----------
    parameters : the file's CTF parameters.
    pixel_size_angstrom : of this working box.
    """
    total, at_limit = torch.zeros(len(sets.images)), 0
    optics = Optics.of(sets.images, parameters, pixel_size_angstrom, state.calibration.scale)
    for _ in range(2):
        inner, offset, at_limit = sets.images.band(state.band), torch.zeros(len(total)), 0
        for mine, volume in zip(sets.rows, (state.halves.half1, state.halves.half2), strict=True):
            volume_ft = reference_on(sets.device, volume)
            for some in blocks(sets.images, mine):
                limits = config.defocus_range, config.defocus_sd
                fit = refine_defocus(volume_ft, inner.rows(some), optics.rows(some), state.pose[some], *limits, total[some])
                offset[some], at_limit = fit.offset_angstrom, at_limit + fit.at_limit
        optics, total = with_defocus_(sets.images, optics, offset), total + offset
        state = next_round(sets, state, state.band, None)
    return state, DefocusFit(total, at_limit)


def _into_frame_of(reference_ft: VolumeFT, images: Images, rows: Tensor, pose: Pose, shown: Tensor) -> Pose:
    """Turn and move the second half's frame as a whole onto the first's map, so that drift does not lower the FSC.

    Six numbers for the whole half-set, from how some of its images fit the other map: no image's pose learns from it.

    Parameters
    ----------
    rows : (N,) of the half-set in ``images``.
    shown : (N,) which of them show a particle.
    """
    of_particles = torch.nonzero(shown)[:, 0]
    some = of_particles[torch.linspace(0, len(of_particles) - 1, min(ALIGNMENT_IMAGES, len(of_particles))).long()]
    fitted = refine_poses(reference_ft, images.rows(rows[some]), pose[some], 2).pose
    error = squared_frobenius(fitted.rotation, pose.rotation[some])
    near = error <= 4 * error.median() + 1e-12
    turn = roma.special_procrustes((fitted.rotation[near] @ pose.rotation[some][near].mT).sum(0))
    rotation = turn @ pose.rotation
    design = rotation[some].mT[:, :2, :]
    difference = (fitted.shift_px - pose.shift_px[some]).flip(-1)
    equations, wanted = design[near].reshape(-1, 3), difference[near].reshape(-1)
    # the last digits of torch.linalg.lstsq change with the addresses of its work space; views along one axis leave a rank of 2
    origin = torch.linalg.solve(equations.mT @ equations + 1e-6 * len(equations) * torch.eye(3), equations.mT @ wanted)
    return Pose(rotation, pose.shift_px + (rotation.mT[:, :2, :] @ origin).flip(-1))


def at_box(state: HalfSetState, old_box: int, box: int) -> HalfSetState:
    """The state of one working box as the start at another, whose images are still as they were read."""
    maps = {f.name: change_box(getattr(state.halves, f.name), box) for f in fields(Halves) if f.name != "fsc"}
    calibration = state.calibration.at_box(box)
    return replace(
        state,
        pose=state.pose.rescaled(box / old_box),
        halves=replace(state.halves, **maps),
        calibration=calibration,
        applied=(calibration,),
    )
