"""Figures of the paper from finished runs: surfaces, viewing directions, curves over time, errors, image triplets."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import roma
import torch
from matplotlib.ticker import MaxNLocator, NullFormatter
from torch import Tensor

from ace_em.maths.fourier import centred_ifft, fourier_resize, frequencies
from ace_em.maths.slices import sample, volume_to_ft
from ace_em.metrics.coverage import coverage, view_directions
from ace_em.report.figures import CHART, COLOURS, LINES, PICTURE, new_figure, png


@dataclass(frozen=True)
class Panel:
    """A panel that plots one score of the histories against ``x``, 'visits' or 'cpu_s'."""

    key: str
    label: str
    logarithmic: bool = False
    x: str = "visits"


FINE = 128
"""Edge of the grid for drawing surfaces, in voxels."""
SHARE = 0.05
"""Default fraction of the box inside a surface."""


def surface(volume: np.ndarray, turn: Tensor, share: float) -> np.ndarray:
    """Shaded image (FINE, FINE) of the isosurface around the densest ``share`` of the box, viewed along z after ``turn``.

    The map is slightly smoothed, because a transform that ends abruptly at Nyquist causes ringing.
    """
    fine = fourier_resize(_turned(torch.from_numpy(volume), turn), FINE, 3).numpy()
    level = np.quantile(fine, 1 - share)
    inside = fine > level
    front = FINE - 1 - np.argmax(inside[::-1], axis=0)
    hit = inside.any(axis=0)
    # interpolate the depth at which the level is crossed
    y, x = np.indices(front.shape)
    here, beyond = fine[front, y, x], fine[np.minimum(front + 1, FINE - 1), y, x]
    depth = front + (here - level) / np.maximum(here - beyond, 1e-9)
    gradient = [np.gradient(fine, axis=axis)[front, y, x] for axis in range(3)]
    normal = -np.stack(gradient) / np.maximum(np.linalg.norm(np.stack(gradient), axis=0), 1e-12)
    light = np.array([0.8, 0.35, 0.5]) / np.linalg.norm([0.8, 0.35, 0.5])
    shade = 0.25 + 0.75 * np.clip(np.tensordot(light, normal, 1), 0, 1)
    fog = 0.6 + 0.4 * (depth - depth[hit].min()) / max(np.ptp(depth[hit]), 1e-9) if hit.any() else 1.0
    return np.where(hit, shade * fog, np.nan)


def _turned(volume: Tensor, turn: Tensor) -> Tensor:
    n = volume.shape[-1]
    axis = frequencies(n)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    k = torch.stack([x, y, z], -1).view(-1, 3)
    radius = k.norm(dim=-1) / (n / 2)
    inside = radius < 1
    ft = torch.zeros(n**3, dtype=torch.complex64)
    ft[inside] = sample(volume_to_ft(volume.float()), k[inside], turn) * torch.exp(-2 * radius[inside].square())
    return centred_ifft(ft.view(n, n, n), 3).real


VIEWS = (torch.eye(3), roma.euler_to_rotmat("XYZ", torch.tensor([90.0, 0.0, 35.0]), degrees=True))


def surfaces(volumes: Sequence[tuple[str, np.ndarray, str]], shares: Sequence[float] = ()) -> bytes:
    """Surfaces of maps side by side, each from two directions, given as title, map and matplotlib colour map.

    Parameters
    ----------
    shares : fraction of the box inside each surface; :data:`SHARE` by default.
    """
    with matplotlib.rc_context(PICTURE | {"figure.facecolor": "white", "text.color": "black", "axes.titlecolor": "black"}):
        figure = new_figure((2.6 * len(volumes), 5.4))
        panels = figure.subplots(2, len(volumes), squeeze=False)
        shares = shares or [SHARE] * len(volumes)
        for column, (title, volume, colours), share in zip(panels.T, volumes, shares, strict=True):
            column[0].set_title(title)
            for axes, turn in zip(column, VIEWS, strict=True):
                axes.imshow(surface(volume, turn, share), origin="lower", cmap=colours, vmin=-0.25, vmax=1.05)
                axes.set_axis_off()
        return png(figure)


def curves(groups: dict[str, list[list[dict[str, float]]]], panels: Sequence[Panel], columns: int = 4) -> bytes:
    """Scores over a run, with one colour and dash per group (name to histories) and one line per seed."""
    with matplotlib.rc_context(CHART):
        columns = min(len(panels), columns)
        figure = new_figure((4.3 * columns, 0.6 + 3.7 * math.ceil(len(panels) / columns)))
        axes = figure.subplots(math.ceil(len(panels) / columns), columns, squeeze=False).flat
        for axis, panel in zip(axes, panels, strict=False):
            for n, (name, histories) in enumerate(groups.items()):
                style: dict[str, Any] = {"color": COLOURS[n % len(COLOURS)], "linestyle": LINES[n % len(LINES)]}
                for i, history in enumerate(histories):
                    at, values = [h[panel.x] for h in history], [h[panel.key] for h in history]
                    axis.plot(at, values, label=None if i else name, marker="D" if len(at) == 1 else None, **style)
            axis.set(ylabel=panel.label, xlabel={"visits": "image visits", "cpu_s": "CPU seconds"}[panel.x])
            if panel.logarithmic:
                axis.set_yscale("log")
            axis.xaxis.set_major_locator(MaxNLocator(5))
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
        return png(figure)


def view_maps(runs: Sequence[tuple[str, Tensor]]) -> bytes:
    """Viewing directions of poses (N, 3, 3) as points in a Mollweide projection."""
    with matplotlib.rc_context(CHART):
        figure = new_figure((5.2 * len(runs), 3.2))
        for n, (title, rotation) in enumerate(runs):
            axes = figure.add_subplot(1, len(runs), n + 1, projection="mollweide")
            d = view_directions(rotation)
            longitude, latitude = torch.atan2(d[:, 1], d[:, 0]), torch.asin(d[:, 2].clamp(-1, 1))
            axes.scatter(longitude, latitude, s=3, alpha=0.5, color=COLOURS[n % len(COLOURS)], linewidths=0)
            axes.set_title(f"{title}: coverage {coverage(rotation):.0%}")
            axes.set_xticklabels([])
            axes.set_yticklabels([])
        return png(figure)


def error_histograms(runs: Sequence[tuple[str, np.ndarray]]) -> bytes:
    """Distribution of the rotation error, one panel per run."""
    with matplotlib.rc_context(CHART):
        figure = new_figure((7.0, 2.4 * len(runs)))
        for n, (axes, (title, error)) in enumerate(zip(figure.subplots(len(runs), 1, sharex=True), runs, strict=True)):
            axes.hist(error, bins=np.linspace(0, 8, 81), color=COLOURS[n % len(COLOURS)], log=True)
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.set(ylabel="images", title=f"{title}: mean {error.mean():.3f}, median {np.median(error):.4f}")
        axes.set_xlabel("squared Frobenius norm of the rotation error")
        return png(figure)


def image_rows(rows: Sequence[tuple[str, Sequence[np.ndarray]]], titles: Sequence[str]) -> bytes:
    """Greyscale images in a grid with named rows."""
    with matplotlib.rc_context(PICTURE):
        figure = new_figure((2.3 * len(titles), 2.35 * len(rows)))
        panels = figure.subplots(len(rows), len(titles), squeeze=False)
        for line, (name, images) in zip(panels, rows, strict=True):
            for axes, image in zip(line, images, strict=True):
                axes.imshow(image, cmap="gray", origin="lower", vmin=np.percentile(image, 0.5), vmax=np.percentile(image, 99.5))
                axes.set(xticks=[], yticks=[])
            line[0].set_ylabel(name)
        for axes, title in zip(panels[0], titles, strict=True):
            axes.set_title(title)
        return png(figure)


def write(path: Path, picture: bytes) -> str:
    """Write the picture next to the table; return the Markdown that shows it."""
    path.write_bytes(picture)
    return f"![{path.stem}]({path.parent.name}/{path.name})"
