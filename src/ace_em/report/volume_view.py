"""The maps as the 3-D view on the page takes them: small, quantised, with the scale of its slider."""

import base64
import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch

from ace_em.errors import InputError
from ace_em.maths.fourier import fourier_resize
from ace_em.report.run_files import Map, RunFiles, read_map

# voxels an edge: a surface of them is found in some 10 ms, and four maps add a megabyte to a page
EDGE = 56
_ROOM = 1.2
# what lies lower is no part of a surface, and would cost the steps of the quantisation their fineness
_FLOOR_SD = -2.0
_LEAST_LEVEL_SD = 1.0
LABELS = {
    "current": "map so far",
    "volume": "map",
    "volume_sharp": "map, sharpened and masked",
    "half1": "half-map 1",
    "half2": "half-map 2",
}


@dataclass(frozen=True)
class Region:
    """A cube about the centre of every map, in shares of the box."""

    share: float

    def cut(self, volume: np.ndarray) -> np.ndarray:
        """(n, n, n) voxels, at most ``EDGE`` an edge, that sample the cube in ``volume``.

        The whole box is resampled before it is cut, so that the cut leaves no ripples; to twice as fine at most, which
        makes a coarse map's surface smooth and adds nothing to it.
        """
        old = volume.shape[0]
        box = min(round(EDGE / self.share), 2 * old)
        box += box % 2
        fine = fourier_resize(torch.from_numpy(volume), box, 3).numpy() if box != old else volume
        edge = min(math.ceil(self.share * box), box, EDGE)
        start = box // 2 - edge // 2
        inside = slice(start, start + edge)
        return np.ascontiguousarray(fine[inside, inside, inside])


def default_level(scores: np.ndarray) -> float:
    """Level for a map in standard deviations: the threshold that parts its values best in two (Otsu), at least 2.

    A map of two or three strong spots would vanish at 2; it gets 0.6 of its peak.
    """
    counts, edges = np.histogram(scores, 400)
    below, centres = np.cumsum(counts), (edges[1:] + edges[:-1]) / 2
    moment, n = np.cumsum(counts * centres), counts.sum()
    between = (moment[-1] * below / n - moment) ** 2 / np.maximum(below * (n - below), 1)
    # every threshold in a gap between the two parts them alike: the middle one
    parting = float(centres[between >= between.max() * (1 - 1e-6)].mean())
    return min(max(parting, 2.0), 0.6 * float(scores.max()))


def pack(name: str, held: Map, region: Region) -> dict[str, object]:
    """What the page's script needs of one map: 8-bit values, x fastest, and what they mean in standard deviations."""
    volume = held.volume
    mean, sd = float(volume.mean()), max(float(volume.std()), 1e-12)
    scores = (region.cut(volume) - mean) / sd
    top = max(float(scores.max()), _LEAST_LEVEL_SD + 0.5)
    step = (top - _FLOOR_SD) / 255
    values = np.clip((scores - _FLOOR_SD) / step, 0, 255).round().astype(np.uint8)
    return {
        "name": name,
        "label": f"{LABELS[name]} ({name}.mrc)",
        "n": scores.shape[0],
        "edge_angstrom": round(float(region.share * volume.shape[0] * held.pixel_size_angstrom), 1),
        "floor_sd": _FLOOR_SD,
        "step_sd": round(step, 6),
        "level_sd": round(max(default_level(scores), _LEAST_LEVEL_SD), 1),
        "least_sd": _LEAST_LEVEL_SD,
        "most_sd": round(0.95 * top, 1),
        "values": base64.b64encode(values.tobytes()).decode("ascii"),
    }


def _region(volume: np.ndarray) -> Region:
    """The cube that holds what the map shows at its first level, with some room around it."""
    scores = (volume - volume.mean()) / max(float(volume.std()), 1e-12)
    reach = np.abs(np.argwhere(scores > default_level(scores)) - volume.shape[0] // 2).max(1)
    # specks of noise far out must not shrink the particle
    return Region(min(1.0, (2 * _ROOM * float(np.percentile(reach, 99)) + 4) / volume.shape[0]) if reach.size else 1.0)


def view_maps(run: RunFiles) -> list[dict[str, object]]:
    """The maps of the run, packed; of an unfinished run, the map so far."""
    found: dict[str, Map] = {}
    for name, held in (("volume", run.map), ("volume_sharp", run.sharp), ("current", run.so_far)):
        if held is not None:
            found[name] = held
    if not found:
        raise InputError(run.problem("volume.mrc") or "volume.mrc is not there")
    if run.map is not None:
        # a half-map that cannot be read costs its own view only
        with suppress(InputError, OSError):
            found |= {name: read_map(run.path / f"{name}.mrc") for name in ("half1", "half2") if run.readable(f"{name}.mrc")}
    # of a masked map no noise is seen
    region = _region((run.sharp or next(iter(found.values()))).volume)
    packed = [pack(name, found[name], region) for name in LABELS if name in found and np.ptp(found[name].volume) > 0]
    if not packed:
        raise InputError("the map is constant: it has no surface")
    return packed


def viewer_card(maps: Sequence[dict[str, object]] | None) -> str:
    """The card of the 3-D view, which viewer.js wires up; it holds its ``maps``, or is given them later."""
    # JSON that ends no script element, whatever it holds
    held = "" if maps is None else json.dumps(list(maps)).replace("<", "\\u003c")
    fineness = f"{EDGE} voxels an edge or fewer"
    return (
        "<section class='card viewer'><h2>The map in 3-D</h2><figure>"
        "<div class='scene' role='img' tabindex='0' aria-label='Surface of the map'></div>"
        "<div class='controls'><label>Map <select></select></label>"
        "<label>Level <input type='range' step='0.1'><output></output></label><button type='button'>Reset view</button></div>"
        "<noscript><p class='absent'>The 3-D view needs JavaScript. The slices show the same map.</p></noscript>"
        "<figcaption>Drag to turn, wheel or pinch to zoom. The level is in standard deviations (sd) of the whole map above its "
        f"mean. For this view the map was resampled to {fineness} by its Fourier transform and cut to a cube around the "
        "particle: the files hold all detail. The level shown first is a guess.</figcaption></figure>"
        + (f"<script type='application/json'>{held}</script>" if held else "")
        + "</section>"
    )
