"""Maps for the 3-D view of the page: resampled, quantised to 8 bits, with the range of the level slider."""

import base64
import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ace_em.errors import InputError
from ace_em.maths.fourier import fourier_resize
from ace_em.report.load import HALF1, HALF2, MAP, MAP_SO_FAR, SHARP, Map, RunFiles, read_map

EDGE = 56
"""Voxels per edge. An iso-surface then takes about 10 ms, and four maps add a megabyte to the page."""
FLOOR_SD, LEAST_LEVEL_SD = -2.0, 1.0
"""Lowest quantised value and lowest slider level, in standard deviations of the map."""
LABELS = {
    MAP_SO_FAR: "current map",
    MAP: "map",
    SHARP: "map, sharpened and masked",
    HALF1: "half-map 1",
    HALF2: "half-map 2",
}


@dataclass(frozen=True)
class Region:
    """A cube around the centre of the map; ``share`` is its edge relative to the box."""

    share: float

    def cut(self, volume: np.ndarray) -> np.ndarray:
        """Resample the cube in ``volume`` (N, N, N) to (n, n, n) with n <= ``EDGE``.

        The whole box is resampled in Fourier space before it is cut, at most to half its pixel size.
        """
        old = volume.shape[0]
        box = min(round(EDGE / self.share), 2 * old)
        box += box % 2
        fine = fourier_resize(torch.from_numpy(volume), box, 3).numpy() if box != old else volume
        edge = min(math.ceil(self.share * box), box, EDGE)
        inside = slice(box // 2 - edge // 2, box // 2 - edge // 2 + edge)
        return np.ascontiguousarray(fine[inside, inside, inside])


def default_level(scores: np.ndarray) -> float:
    """Initial slider level of a map in standard deviations: Otsu's threshold, at least 2, at most 0.6 of the maximum."""
    counts, edges = np.histogram(scores, 400)
    below, centres = np.cumsum(counts), (edges[1:] + edges[:-1]) / 2
    moment, n = np.cumsum(counts * centres), counts.sum()
    between = (moment[-1] * below / n - moment) ** 2 / np.maximum(below * (n - below), 1)
    # thresholds in a gap of the histogram are equivalent: take the middle
    otsu = float(centres[between >= between.max() * (1 - 1e-6)].mean())
    return min(max(otsu, 2.0), 0.6 * float(scores.max()))


def _scores(volume: np.ndarray) -> np.ndarray:
    """The map in standard deviations above its mean."""
    return np.asarray((volume - volume.mean()) / max(float(volume.std()), 1e-12))


def pack(file: str, volume: Map, region: Region) -> dict[str, object]:
    """A map for the script of the page: 8-bit values (base64, x fastest) and their scale in standard deviations."""
    scores = region.cut(_scores(volume.volume))
    top = max(float(scores.max()), LEAST_LEVEL_SD + 0.5)
    step = (top - FLOOR_SD) / 255
    values = np.clip((scores - FLOOR_SD) / step, 0, 255).round().astype(np.uint8)
    return {
        "name": Path(file).stem,
        "label": f"{LABELS[file]} ({file})",
        "n": scores.shape[0],
        "edge_angstrom": round(float(region.share * volume.volume.shape[0] * volume.pixel_size_angstrom), 1),
        "floor_sd": FLOOR_SD,
        "step_sd": round(step, 6),
        "level_sd": round(max(default_level(scores), LEAST_LEVEL_SD), 1),
        "least_sd": LEAST_LEVEL_SD,
        "most_sd": round(0.95 * top, 1),
        "values": base64.b64encode(values.tobytes()).decode("ascii"),
    }


def _region(volume: np.ndarray) -> Region:
    """The cube around 99 % of the voxels above the initial level, with a margin."""
    scores = _scores(volume)
    reach = np.abs(np.argwhere(scores > default_level(scores)) - volume.shape[0] // 2).max(1)
    return Region(min(1.0, (2.4 * float(np.percentile(reach, 99)) + 4) / volume.shape[0]) if reach.size else 1.0)


def view_maps(run: RunFiles) -> list[dict[str, object]]:
    """The packed maps of the run; the current map of an unfinished run. Empty if there is no map."""
    found = {file: map_ for file, map_ in ((MAP, run.map), (SHARP, run.sharp), (MAP_SO_FAR, run.so_far)) if map_ is not None}
    if not found:
        return []
    for file in (HALF1, HALF2) if run.map is not None else ():
        # an unreadable half-map does not hide the other maps
        with suppress(InputError, OSError):
            if run.readable(file):
                found[file] = read_map(run.path / file)
    # prefer the sharpened map: it is masked, so noise does not enlarge the cube
    region = _region((run.sharp or next(iter(found.values()))).volume)
    return [pack(file, found[file], region) for file in LABELS if file in found and np.ptp(found[file].volume) > 0]
