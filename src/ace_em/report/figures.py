"""The style of the report's figures, and its pictures: grey or viridis values, light on black on every screen.

Every figure is the bytes of a PNG. matplotlib is imported where it is used, and without pyplot: no window, no state
shared between calls.
"""

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ace_em.report.run_files import Map
from ace_em.report.triplets import Extremes, Triplet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# of Okabe and Ito
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINES = ("-", "--", "-.", ":")
GREY = "#777777"
# matplotlib types its settings by a list of every name
_COMMON: Any = {"font.size": 12, "axes.titlesize": 12, "figure.constrained_layout.use": True, "lines.linewidth": 2}
CHART: Any = _COMMON | {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "axes.axisbelow": True,
    "legend.frameon": False,
}
PICTURE: Any = _COMMON | {"figure.facecolor": "#141414", "text.color": "#dddddd", "axes.titlecolor": "#dddddd"}
PICTURE |= {"xtick.color": "#dddddd", "ytick.color": "#dddddd", "axes.labelcolor": "#dddddd", "axes.edgecolor": "#888888"}


def new_figure(size_inch: tuple[float, float]) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=size_inch, dpi=160)


def png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    # without the program's name and address, equal figures are equal bytes on every version
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _show(axes: "Axes", image: np.ndarray, low: float | None = None, high: float | None = None) -> None:
    """Grey picture, y upwards, so that x, y and the direction to the viewer are right-handed."""
    low = float(np.percentile(image, 0.5)) if low is None else low
    high = float(np.percentile(image, 99.8)) if high is None else high
    axes.imshow(image, cmap="gray", origin="lower", vmin=low, vmax=max(high, low + 1e-12), interpolation="bicubic")
    axes.set_axis_off()


def nice_length(extent: float) -> float:
    """The largest of 1, 2, 5 times a power of ten within a third of ``extent``."""
    power = 10 ** math.floor(math.log10(extent / 3))
    return max(step * power for step in (1, 2, 5) if step * power <= extent / 3)


def _scale_bar(axes: "Axes", box: int, pixel_size_angstrom: float) -> None:
    length = nice_length(box * pixel_size_angstrom)
    start, y = 0.05 * box, 0.06 * box
    axes.plot([start, start + length / pixel_size_angstrom], [y, y], color="white", linewidth=3, solid_capstyle="butt")
    axes.text(start, y + 0.03 * box, f"{length:g} Å", color="white", fontsize=11, va="bottom")


def map_figure(volume: Map, sharp: Map | None, made: str = "sharpened") -> bytes:
    """Central slices across x, y and z of the map and of its sharpened version; projections, of the latter where there is one.

    ``made`` says in a word what was done to the sharpened map.
    """
    import matplotlib

    best = (volume if sharp is None else sharp).volume
    rows = {"slice across": _slices(volume.volume)}
    if sharp is not None:
        rows[f"{made}, at"] = _slices(best)
    rows["projection along"] = [best.sum(axis) for axis in (2, 1, 0)]
    with matplotlib.rc_context(PICTURE):
        figure = new_figure((5.6, 2.05 * len(rows)))
        panels = figure.subplots(len(rows), 3)
        for line, (words, images) in zip(panels, rows.items(), strict=True):
            low, high = np.percentile(np.stack(images), [0.5, 99.8])
            # sharpening digs troughs, beside which the empty outside of the mask would be grey
            low = 0.0 if words.startswith(made) else float(low)
            for axes, image, letter in zip(line, images, "xyz", strict=True):
                _show(axes, image, low, float(high))
                axes.set_title(f"{words} {letter}")
        _scale_bar(panels[0, 0], volume.volume.shape[0], volume.pixel_size_angstrom)
        return png(figure)


def _slices(density: np.ndarray) -> list[np.ndarray]:
    """Planes through the centre of (n, n, n) ``density``, across x, y and z."""
    return [density.take(density.shape[0] // 2, axis) for axis in (2, 1, 0)]


def smoothed_views(rotation: Tensor, spread_deg: float, n_side: int = 16) -> np.ndarray:
    """Density of viewing directions, the last columns of (N, 3, 3) ``rotation``, on HEALPix pixels (12 n_side^2,).

    1 is the density of uniform views; each view is spread over a Gaussian-like cap (von Mises and Fisher's).
    """
    import healpy

    views = rotation[..., :, 2].double().numpy()
    counts = np.bincount(healpy.vec2pix(n_side, *views.T), minlength=healpy.nside2npix(n_side))
    centres = np.stack(healpy.pix2vec(n_side, np.arange(len(counts))), axis=-1).astype(np.float32)
    reached = counts > 0
    kernel = np.exp((centres @ centres[reached].T - 1) / math.radians(spread_deg) ** 2)
    return np.asarray(kernel @ counts[reached] / kernel.sum(0).mean() / counts.sum() * len(counts))


def view_figure(rotation: Tensor, spread_deg: float) -> bytes:
    """Viewing directions on the sphere, Mollweide projection."""
    import healpy
    import matplotlib

    density = smoothed_views(rotation, spread_deg)
    longitude, latitude = np.linspace(-180, 180, 361), np.linspace(-90, 90, 181)
    mid_lon, mid_lat = np.meshgrid((longitude[1:] + longitude[:-1]) / 2, (latitude[1:] + latitude[:-1]) / 2)
    values = density[healpy.ang2pix(16, mid_lon, mid_lat, lonlat=True)]
    with matplotlib.rc_context(PICTURE):
        figure = new_figure((5.6, 3.9))
        axes = figure.add_subplot(projection="mollweide")
        # views that are nearly uniform must look so
        high = max(2.0, float(density.max()))
        edges = np.radians(longitude), np.radians(latitude)
        mesh = axes.pcolormesh(*edges, values, cmap="viridis", vmin=0, vmax=high, rasterized=True)
        axes.set_xticks(np.radians([-120, -60, 0, 60, 120]), ["-120°", "-60°", "0°", "60°", "120°"], fontsize=10)
        axes.set_yticks(np.radians([-60, -30, 0, 30, 60]), ["-60°", "-30°", "0°", "30°", "60°"], fontsize=10)
        axes.grid(color="white", alpha=0.25, linewidth=0.6)
        bar = figure.colorbar(mesh, ax=axes, orientation="horizontal", shrink=0.7, pad=0.06)
        bar.set_label("views, 1 = as many as when uniform")
        return png(figure)


def triplet_figure(triplets: Sequence[Triplet], pixel_size_angstrom: float) -> bytes:
    """One row a particle: input, predicted image, clean projection; every picture has its own grey scale."""
    import matplotlib

    with matplotlib.rc_context(PICTURE):
        figure = new_figure((5.6, 0.35 + 1.85 * len(triplets)))
        panels = figure.subplots(len(triplets), 3, squeeze=False)
        for line, triplet in zip(panels, triplets, strict=True):
            for axes, image in zip(line, (triplet.image, triplet.predicted, triplet.clean), strict=True):
                _show(axes, image)
            _note(line[0], f"#{triplet.row}")
            _note(line[1], f"r = {triplet.correlation:.2f}")
        for axes, title in zip(panels[0], ("input", "predicted", "clean projection"), strict=True):
            axes.set_title(title)
        _scale_bar(panels[0, 2], triplets[0].clean.shape[0], pixel_size_angstrom)
        return png(figure)


def extremes_figure(found: Extremes) -> bytes:
    """Input and predicted image of the best particles, on the left, and of the worst."""
    import matplotlib

    with matplotlib.rc_context(PICTURE):
        figure = new_figure((5.6, 0.35 + 1.42 * len(found.best)))
        panels = figure.subplots(len(found.best), 4, squeeze=False)
        for line, best, worst in zip(panels, found.best, found.worst, strict=True):
            for (left, right), triplet in ((line[:2], best), (line[2:], worst)):
                _show(left, triplet.image)
                _show(right, triplet.predicted)
                _note(left, f"#{triplet.row}")
                _note(right, f"r = {triplet.correlation:.2f}")
        for axes, title in zip(panels[0], ("best: input", "predicted", "worst: input", "predicted"), strict=True):
            axes.set_title(title)
        return png(figure)


def _note(axes: "Axes", text: str) -> None:
    axes.text(0.03, 0.97, text, transform=axes.transAxes, va="top", color="white", fontsize=10)
