"""Images and histograms of the report as PNG bytes: maps, views, particles. Line charts are in charts.py.

Images and sphere plots are light on black in both colour schemes (PICTURE). Charts are dark on white (CHART) and are inverted by
the page in the dark scheme. matplotlib is imported in the functions, without pyplot, which has global state.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ace_em.errors import InputError
from ace_em.maths.rotations import healpix_centres, healpix_pixel
from ace_em.metrics.coverage import view_counts
from ace_em.report.load import Map

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe-Ito colours, safe for colour-blind readers
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINES = ("-", "--", "-.", ":")
GREY, TEXT_GREY = "#777777", "#555555"
# Any: the stubs of matplotlib type rc settings as a literal of all names
_COMMON: Any = {"font.size": 12, "axes.titlesize": 12, "figure.constrained_layout.use": True, "lines.linewidth": 2}
CHART: Any = _COMMON | {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#dddddd"}
CHART |= {"axes.axisbelow": True, "legend.frameon": False}
PICTURE: Any = _COMMON | {"figure.facecolor": "#141414", "text.color": "#dddddd", "axes.titlecolor": "#dddddd"}
PICTURE |= {"xtick.color": "#dddddd", "ytick.color": "#dddddd", "axes.labelcolor": "#dddddd", "axes.edgecolor": "#888888"}
N_SIDE = 16
"""HEALPix resolution of the view distribution."""
SCATTERED = 2000
"""Approximate number of particles in the scatter plot of shifts."""


@dataclass(frozen=True)
class Drawn:
    """A figure of the page: PNG bytes, caption, and the rows of a table below it (the first is the header)."""

    png: bytes
    caption: str
    table: Sequence[Sequence[str]] = ()


def new_figure(size_inch: tuple[float, float]) -> "Figure":
    """An empty figure of (width, height) inches at 160 dpi."""
    from matplotlib.figure import Figure

    return Figure(figsize=size_inch, dpi=160)


def png(figure: "Figure") -> bytes:
    """The figure as PNG bytes, without the version of matplotlib, so that equal figures give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def nice_length(extent: float) -> float:
    """Largest 1, 2 or 5 times a power of ten that is at most a third of ``extent``."""
    power = 10 ** math.floor(math.log10(extent / 3))
    return max(step * power for step in (1, 2, 5) if step * power <= extent / 3)


def image_grid(
    images: Sequence[Sequence[np.ndarray]],
    titles: Sequence[Sequence[str]],
    edge_angstrom: float = math.nan,
    bar: tuple[int, int] | None = None,
    ranges: Sequence[tuple[float, float]] = (),
    notes: Sequence[Sequence[str]] = (),
) -> bytes:
    """Grey images in rows and columns, the y axis upwards.

    Parameters
    ----------
    images : rows of images (n, n).
    titles : rows of titles, above the first rows of images.
    edge_angstrom : edge of the image with the scale bar.
    bar : row and column of the image with the scale bar; None for no scale bar.
    ranges : grey values (black, white) of each row; by default every image has its own.
    notes : text in the corner of the images.
    """
    import matplotlib

    n_columns = len(images[0])
    with matplotlib.rc_context(PICTURE):
        figure = new_figure((5.6, (5.6 / n_columns - 0.02) * len(images) + 0.2 * len(titles)))
        panels = figure.subplots(len(images), n_columns, squeeze=False)
        for (i, j), axes in np.ndenumerate(panels):
            image = images[i][j]
            low, high = ranges[i] if ranges else np.percentile(image, [0.5, 99.8])
            axes.imshow(image, cmap="gray", origin="lower", vmin=low, vmax=max(high, low + 1e-12), interpolation="bicubic")
            axes.set_axis_off()
            if i < len(titles):
                axes.set_title(titles[i][j])
            if notes:
                axes.text(0.03, 0.97, notes[i][j], transform=axes.transAxes, va="top", color="white", fontsize=10)
        if bar is not None:
            _scale_bar(panels[bar], images[bar[0]][bar[1]].shape[0], edge_angstrom)
        return png(figure)


def _scale_bar(axes: "Axes", box: int, edge_angstrom: float) -> None:
    length = nice_length(edge_angstrom)
    start, y = 0.05 * box, 0.06 * box
    axes.plot([start, start + length / edge_angstrom * box], [y, y], color="white", linewidth=3, solid_capstyle="butt")
    axes.text(start, y + 0.03 * box, f"{length:g} Å", color="white", fontsize=11, va="bottom")


def map_figure(volume: Map, sharp: Map | None, made: str = "sharpened") -> bytes:
    """Central slices perpendicular to x, y and z of the map and, if given, of the sharpened map; projections of the latter.

    ``made`` describes the second map in the titles: 'sharpened' or 'masked'.
    """
    best = (volume if sharp is None else sharp).volume
    rows = {"slice across": _slices(volume.volume)}
    if sharp is not None:
        rows[f"{made}, at"] = _slices(best)
    rows["projection along"] = [best.sum(axis) for axis in (2, 1, 0)]
    ranges = [tuple(np.percentile(np.stack(images), [0.5, 99.8])) for images in rows.values()]
    if sharp is not None:
        # sharpened maps have negative values; with these as black the masked solvent (0) would be grey
        ranges[1] = (0.0, ranges[1][1])
    titles = [[f"{name} {axis}" for axis in "xyz"] for name in rows]
    return image_grid(list(rows.values()), titles, volume.volume.shape[0] * volume.pixel_size_angstrom, (0, 0), ranges)


def _slices(density: np.ndarray) -> list[np.ndarray]:
    """Planes (n, n) through the centre of (n, n, n) ``density``, perpendicular to x, y and z."""
    return [density.take(density.shape[0] // 2, axis) for axis in (2, 1, 0)]


def smoothed_views(rotation: Tensor, spread_deg: float) -> np.ndarray:
    """Density of viewing directions on HEALPix pixels (12 N_SIDE^2,) for (N, 3, 3) ``rotation``; 1 for uniform views.

    Views are smoothed with a von Mises-Fisher kernel of width ``spread_deg``.
    """
    counts = view_counts(rotation, N_SIDE)
    centres = healpix_centres(N_SIDE).numpy().astype(np.float32)
    kernel = np.exp((centres @ centres[counts > 0].T - 1) / math.radians(spread_deg) ** 2)
    return np.asarray(kernel @ counts[counts > 0] / kernel.sum(0).mean() / counts.sum() * len(counts))


def view_figure(rotation: Tensor, spread_deg: float) -> bytes:
    """Viewing directions of (N, 3, 3) ``rotation`` on the sphere, Mollweide projection."""
    import matplotlib

    density = smoothed_views(rotation, spread_deg)
    longitude, latitude = np.linspace(-180, 180, 361), np.linspace(-90, 90, 181)
    middles = np.meshgrid((longitude[1:] + longitude[:-1]) / 2, (latitude[1:] + latitude[:-1]) / 2)
    lon, lat = (torch.from_numpy(np.radians(m)) for m in middles)
    direction = torch.stack([lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()], dim=-1)
    values = density[healpix_pixel(direction, N_SIDE).numpy()]
    with matplotlib.rc_context(PICTURE):
        figure = new_figure((5.6, 3.9))
        axes = figure.add_subplot(projection="mollweide")
        # scale to at least 2, so that noise of uniform views does not fill it
        high = max(2.0, float(density.max()))
        edges = np.radians(longitude), np.radians(latitude)
        mesh = axes.pcolormesh(*edges, values, cmap="viridis", vmin=0, vmax=high, rasterized=True)
        for ticks, set_ticks in (((-120, -60, 0, 60, 120), axes.set_xticks), ((-60, -30, 0, 30, 60), axes.set_yticks)):
            set_ticks(np.radians(ticks), [f"{tick}°" for tick in ticks], fontsize=10)
        axes.grid(color="white", alpha=0.25, linewidth=0.6)
        bar = figure.colorbar(mesh, ax=axes, orientation="horizontal", shrink=0.7, pad=0.06)
        bar.set_label("views, 1 = uniform")
        return png(figure)


def histogram_figure(defocus_um: np.ndarray | None, confidence: np.ndarray | None, shift_angstrom: np.ndarray | None) -> bytes:
    """Histograms over N particles; None omits a panel.

    Parameters
    ----------
    defocus_um : (N,) mean defocus in micrometres.
    confidence : (N,) largest probability of a pose, 0 to 1.
    shift_angstrom : (N, 2) in-plane shift (x, y); drawn as a histogram of its length and as a scatter plot.
    """
    import matplotlib

    columns = {"defocus (µm)": defocus_um, "largest pose probability": confidence}
    columns["in-plane shift (Å)"] = None if shift_angstrom is None else np.hypot(*shift_angstrom.T)
    found = [(name, values) for name, values in columns.items() if values is not None]
    n_panels = len(found) + (shift_angstrom is not None)
    if not n_panels:
        raise InputError("poses.star has neither defocus nor poses")
    n_rows, colours = (n_panels + 1) // 2, dict(zip(columns, (COLOURS[0], COLOURS[2], COLOURS[1]), strict=True))
    with matplotlib.rc_context(CHART):
        figure = new_figure((5.6, 2.7 * n_rows))
        panels = figure.subplots(n_rows, 2, squeeze=False).flatten()
        for axes, (name, values) in zip(panels, found, strict=False):
            limits = (0.0, 1.0) if values is confidence else None
            axes.hist(values, bins=min(40, max(5, int(len(values) ** 0.5))), range=limits, color=colours[name])
            axes.axvline(float(np.median(values)), color="black", linewidth=1.2, linestyle="--")
            axes.set(xlabel=name, ylabel="particles", xlim=limits)
        if shift_angstrom is not None:
            _scatter(panels[n_panels - 1], shift_angstrom)
        for axes in panels[n_panels:]:
            axes.remove()
        return png(figure)


def _scatter(axes: "Axes", shift: np.ndarray) -> None:
    some = shift[:: max(1, len(shift) // SCATTERED)]
    reach = 1.05 * max(float(np.percentile(np.abs(shift), 99.5)), 1e-3)
    axes.plot(*some.T, ".", color=COLOURS[1], alpha=0.35, markersize=3, markeredgewidth=0)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set(xlabel="shift in x (Å)", ylabel="in y (Å)", xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
