"""Stage 2, first part: the ab initio search, which turns the map and poses of stage 1 into a correct initial model.

Each round searches a new random subset of the particles. A small subset is cheap, and changing it helps the map escape local
optima in which only part of the poses are right. Some particles are held out of all subsets; how well the map explains them
ranks the starts.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ace_em.config import SearchConfig
from ace_em.data.particle_stack import CPU, ParticleStack
from ace_em.maths.rotations import angular_distance_deg
from ace_em.metrics.fsc import resolution_shell
from ace_em.physics.pose import Pose
from ace_em.refinement.backprojection import Halves, accumulate, reconstruct_halves
from ace_em.refinement.explained import expected_share, explained_share
from ace_em.refinement.pose_refinement import reference_on
from ace_em.refinement.search import SearchSpace
from ace_em.refinement.second_map import LEAST_IMAGES, PosedMap, search_maps

LEAST_GAIN = 0.01
"""Share of the signal: a map that explains no more than this in addition no longer gains."""
ROUNDS_OF_SECOND = 10
"""Rounds that a second map has at least; then the first must have gained in half of as many, or the search ends."""
LEAST_SHARE = 0.6
"""Share of a subset that is in the map, below which a subset is made no larger."""


@dataclass(frozen=True)
class Round:
    """State after a round.

    Attributes
    ----------
    number : from 1.
    pose : (N,) poses at the working box. Images outside the subset keep the pose of an earlier round.
    halves : maps from two halves of the subset. Their poses share a reference, so the halves are not independent: their FSC
        sets the prior but does not measure the resolution.
    band : last shell searched.
    moved_deg : (n,) change of orientation of each image of the subset.
    stable : fraction of the subset that moved by less than ``stable_deg``.
    explained : fraction of the subset's signal power (power above the noise, inside the band) explained by the map from before
        the round at the best poses. It is near 1 for a correct map. A partly wrong set of poses can be perfectly stable, so
        stability alone is not enough.
    expected : least fraction that a correct map from as many images would explain (:func:`expected_share`).
    shown : fraction of the subset that is in the map. The other images show no particle or fit the second map better; ``stable``
        and ``explained`` exclude them.
    in_second : fraction of the subset that is in the second map.
    second : the second map (:mod:`ace_em.refinement.second_map`), if there is one.
    """

    number: int
    pose: Pose
    halves: Halves
    band: float
    moved_deg: Tensor
    stable: float
    explained: float
    expected: float
    shown: float
    in_second: float = 0.0
    second: PosedMap | None = None

    @property
    def fsc143_shell(self) -> float:
        return resolution_shell(self.halves.fsc, 0.143)

    @property
    def maps(self) -> list[PosedMap]:
        """The map and, where there is one, the second."""
        first = PosedMap(self.halves.combined, self.pose)
        return [first] if self.second is None else [first, self.second]


@dataclass(frozen=True)
class AbInitioSetup:
    """What stays the same from round to round.

    Attributes
    ----------
    stack : images on the full half-plane of the working box, moved to ``device`` in blocks. Poses and maps stay on the CPU.
    mask : (box, box, box) soft spherical mask of the maps.
    space : the poses to search.
    """

    stack: ParticleStack
    mask: Tensor
    space: SearchSpace
    config: SearchConfig
    device: torch.device = CPU

    def halves(self, stack: ParticleStack, pose: Pose, used: Tensor) -> Halves:
        """Maps of two halves of the images that are ``used`` (N,) bool, and of both."""
        one, two = (accumulate(stack, pose, p, device=self.device) for p in torch.nonzero(used)[:, 0].tensor_split(2))
        return reconstruct_halves(one, two, self.mask)


def rounds_of_second(history: list[Round]) -> int:
    """Rounds since there is a second map."""
    return sum(r.in_second > 0 for r in history)


def subset_size(history: list[Round], config: SearchConfig) -> int:
    """Images of the next round: more where some of them are junk, so that the map is made of as many, up to a limit."""
    share = history[-1].shown if history else 1.0
    return round(config.ab_initio_images / max(share, LEAST_SHARE))


def band_per_diameter(number: int, config: SearchConfig) -> float:
    """Band of round ``number`` (from 1), in cycles per particle diameter. It grows linearly with the rounds."""
    fraction = min(1.0, (number - 1) / max(1, config.ab_initio_rounds))
    return config.first_band + (config.last_band - config.first_band) * fraction


def ab_initio(
    setup: AbInitioSetup,
    volume: Tensor,
    pose: Pose,
    rows_seen: Tensor,
    generator: torch.Generator,
    on_block: Callable[[int, int, int], None] = lambda number, total, done: None,
    history: list[Round] | None = None,
) -> Iterator[Round]:
    """Yield the state after each round, until the search has converged or the maximum number of rounds is reached.

    Parameters
    ----------
    volume : (box, box, box) initial reference.
    pose : (N,) poses from the encoder of stage 1. Their shifts centre the first search.
    rows_seen : particles from which the subsets are drawn. The others are held out.
    on_block : called with the round, the number of images to search and the number searched so far.
    history : rounds already completed; the search resumes from the last. New rounds are appended.
    """
    config, stack = setup.config, setup.stack
    history = [] if history is None else history
    maps = history[-1].maps if history else [PosedMap(volume, pose)]
    while not finished(history, config):
        number = len(history) + 1
        rows = rows_seen[torch.randperm(len(rows_seen), generator=generator)[: subset_size(history, config)]]
        band = setup.space.band(band_per_diameter(rounds_of_second(history) or number, config))
        subset, before = stack.subset(rows).in_memory(), [m.pose[rows] for m in maps]
        inner, grid = subset.band(band), setup.space.grid(band, generator)
        references = [reference_on(setup.device, m.volume) for m in maps]
        searched = search_maps(references, inner, before, grid, config, partial(on_block, number, len(rows)))
        power, noise = inner.power(), inner.noise_power()
        if len(maps) == 1 and stalled(history, config):
            maps, searched = maps * 2, searched.divided(searched.found[0].residual - noise)
        # the first map is that of most images
        if len(maps) == 2 and searched.rows_of(1).sum() > searched.rows_of(0).sum():
            maps, before, searched = maps[::-1], before[::-1], searched.swapped()
        used = [searched.rows_of(which) for which in range(len(maps))]
        halves = [setup.halves(subset, found.pose, mine) for found, mine in zip(searched.found, used, strict=True)]
        posed = [
            PosedMap(h.combined, updated_poses(m.pose, rows, found.pose))
            for h, m, found in zip(halves, maps, searched.found, strict=True)
        ]
        maps = posed if used[-1].sum() >= LEAST_IMAGES else posed[:1]
        moved, mine = angular_distance_deg(before[0].rotation, searched.found[0].pose.rotation), used[0]
        history.append(
            Round(
                number,
                maps[0].pose,
                halves[0],
                band,
                moved,
                stable=(moved[mine] < config.stable_deg).float().mean().item(),
                explained=explained_share(power[mine], searched.found[0].residual[mine], noise[mine]),
                expected=expected_share(power[mine], noise[mine], len(inner.half_plane), band, max(1, int(mine.sum()))),
                shown=mine.float().mean().item(),
                in_second=used[1].float().mean().item() if len(used) == 2 else 0.0,
                second=maps[1] if len(maps) == 2 else None,
            )
        )
        yield history[-1]


def of_first_map(setup: AbInitioSetup, last: Round, generator: torch.Generator) -> Tensor:
    """(N,) bool, the images that show a particle and fit the first of two maps better, at the first band.

    The next start is made from them alone, whatever the arrangement of their views was in this one.
    """
    config, found = setup.config, []
    band = setup.space.band(config.first_band)
    stack, grid = setup.stack.band(band), setup.space.grid(band, generator)
    references = [reference_on(setup.device, m.volume) for m in last.maps]
    for rows in stack.blocks():
        before = [m.pose[rows] for m in last.maps]
        found.append(search_maps(references, stack.subset(rows).in_memory(), before, grid, config).rows_of(0))
    return torch.cat(found)


def without_old_maps(history: list[Round]) -> list[Round]:
    """The rounds; all but the last lose their poses and maps, which are no longer needed."""
    old = history[:-1]
    return [
        *(replace(r, pose=r.pose[:0], halves=r.halves.without_maps(), moved_deg=r.moved_deg[:0], second=None) for r in old),
        *history[-1:],
    ]


def updated_poses(pose: Pose, rows: Tensor, new: Pose) -> Pose:
    """Poses (N,) with those of some ``rows`` exchanged."""
    rotation, shift = pose.rotation.clone(), pose.shift_px.clone()
    rotation[rows], shift[rows] = new.rotation, new.shift_px
    return Pose(rotation, shift)


def stalled(history: list[Round], config: SearchConfig) -> bool:
    """Whether the map explains less than the noise allows and has hardly gained in two rounds."""
    if len(history) < 3 or history[-1].explained >= history[-1].expected - config.tolerance:
        return False
    explained = [r.explained for r in history]
    return max(explained[-2:]) <= max(explained[:-2]) + LEAST_GAIN


def finished(history: list[Round], config: SearchConfig) -> bool:
    """Whether to stop: after the maximum number of rounds, or once ``explained`` is high enough and has levelled off.

    With a second map it also stops once the first explains too little and has levelled off: the next start will know which
    images to leave out.
    """
    if len(history) >= config.ab_initio_rounds:
        return True
    explained = [r.explained for r in history]
    if len(explained) >= 4 and explained[-1] >= config.ab_initio_explained and explained[-1] - explained[-4] <= LEAST_GAIN:
        return True
    rounds = rounds_of_second(history)
    return rounds >= ROUNDS_OF_SECOND and explained[-1] - explained[-ROUNDS_OF_SECOND // 2] <= LEAST_GAIN
