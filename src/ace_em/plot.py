"""Figures for notebooks: maps, FSC curves, views. Each returns a matplotlib figure."""

from collections.abc import Mapping
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ace_em.metrics.coverage import view_directions
from ace_em.metrics.fsc import resolution_shell
from ace_em.physics.pose import Pose

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    class NotebookFigure(Figure):
        """A figure that notebooks display with any matplotlib backend."""

        def _repr_png_(self) -> bytes:
            png = BytesIO()
            self.savefig(png, format="png", dpi=90)
            return png.getvalue()

    return NotebookFigure(figsize=(width, height), layout="constrained")


def slices(volume: Tensor, title: str = "") -> "Figure":
    """Central slices of a map (n, n, n), z, y, x order, perpendicular to z, y and x."""
    figure = _figure(7.5, 2.7)
    values, middle = volume.detach().cpu().numpy(), volume.shape[-1] // 2
    low, high = np.percentile(values, (0.5, 99.9))
    for axis, name in enumerate("zyx"):
        axes = figure.add_subplot(1, 3, axis + 1)
        axes.imshow(np.take(values, middle, axis), cmap="gray", origin="lower", vmin=low, vmax=high)
        axes.set_title(f"perpendicular to {name}", fontsize=10)
        axes.set_axis_off()
    figure.suptitle(title)
    return figure


def images(images: Tensor | np.ndarray, columns: int = 6) -> "Figure":
    """Images (b, n, n), each with its own grey scale."""
    rows = -(-len(images) // columns)
    figure = _figure(1.4 * columns, 1.4 * rows)
    for i, image in enumerate(torch.as_tensor(images).detach().cpu().numpy()):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.imshow(image, cmap="gray", origin="lower")
        axes.set_axis_off()
    return figure


def fsc(curves: Tensor | Mapping[str, Tensor], box_angstrom: float, threshold: float = 0.143) -> "Figure":
    """FSC curves (n // 2 + 1,), one or several by name, against resolution.

    Parameters
    ----------
    box_angstrom : edge of the maps.
    threshold : where resolutions are read off: 0.143 for half-maps, 0.5 for a map against the truth.
    """
    figure = _figure(5.5, 3.4)
    axes = figure.add_subplot()
    for name, curve in ({"FSC": curves} if isinstance(curves, Tensor) else curves).items():
        frequency = np.arange(len(curve)) / box_angstrom
        read_off = f"{threshold:g} at {box_angstrom / resolution_shell(curve, threshold):.1f} A"
        if (curve[2:] >= threshold).all():
            read_off += " or better"
        axes.plot(frequency[1:], curve[1:].cpu().numpy(), label=f"{name} ({read_off})")
    axes.axhline(threshold, color="grey", linewidth=1, linestyle=":")
    axes.set(xlabel="spatial frequency (1/A)", ylabel="FSC", ylim=(-0.1, 1.02))
    axes.legend()
    return figure


def views(pose: Pose | Tensor) -> "Figure":
    """Viewing directions of poses (N,), or rotations (N, 3, 3), on the sphere: a Mollweide projection."""
    rotation = pose.rotation if isinstance(pose, Pose) else pose
    x, y, z = view_directions(rotation.detach().cpu()).T
    figure = _figure(5.5, 3.0)
    axes = figure.add_subplot(projection="mollweide")
    longitude, latitude = torch.atan2(y, x), torch.asin(z.clamp(-1, 1))
    bins = np.linspace(-np.pi, np.pi, 37), np.arcsin(np.linspace(-1, 1, 19))
    counts, _, _ = np.histogram2d(longitude.numpy(), latitude.numpy(), bins=bins)
    mesh = axes.pcolormesh(*bins, counts.T / counts.mean(), cmap="viridis")
    figure.colorbar(mesh, ax=axes, shrink=0.8, label="views, 1 = uniform")
    axes.grid(alpha=0.3)
    return figure


def losses(history: Mapping[str, list[float]]) -> "Figure":
    """Training losses by name, one value per update."""
    figure = _figure(5.5, 3.2)
    axes = figure.add_subplot()
    for name, values in history.items():
        axes.plot(np.arange(len(values)) + 1, values, label=name)
    axes.set(xlabel="update", ylabel="loss")
    axes.legend()
    return figure
