"""Histograms over the particles of poses.star: defocus, in-plane shift, and how sure each pose is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ace_em.data.particles import pixel_size_of, star_poses
from ace_em.errors import InputError
from ace_em.io.star import ParticleTable, numeric_column
from ace_em.report.figures import CHART, COLOURS, GREY, new_figure, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CONFIDENCE = "rlnMaxValueProbDistribution"
_FEW = 2000


@dataclass(frozen=True)
class ParticleNumbers:
    """Of N particles; None for what poses.star has not.

    Attributes
    ----------
    defocus_um : (N,) mean of both defoci, in micrometres, underfocus positive.
    shift_angstrom : (N, 2) shift of the particle from the image's centre, (x, y).
    confidence : (N,) the largest probability of a pose, 0 to 1.
    """

    defocus_um: np.ndarray | None
    shift_angstrom: np.ndarray | None
    confidence: np.ndarray | None

    @staticmethod
    def of(table: ParticleTable) -> "ParticleNumbers":
        """What a table says of its particles."""
        defocus = shift = confidence = None
        if all(table.has_column(f"rlnDefocus{axis}") for axis in "UV"):
            defocus = (numeric_column(table, "rlnDefocusU") + numeric_column(table, "rlnDefocusV")) / 2e4
        pixel_size = pixel_size_of(table)
        poses = star_poses(table, pixel_size)
        if poses is not None:
            shift = poses.shift_px.flip(-1).numpy() * pixel_size
        if table.has_column(CONFIDENCE):
            confidence = numeric_column(table, CONFIDENCE)
        return ParticleNumbers(defocus, shift, confidence)


def histogram_figure(numbers: ParticleNumbers) -> bytes:
    """A panel for each quantity that there is; the shift has two, its two components and its length."""
    import matplotlib

    panels: list[Callable[[Axes], None]] = []
    defocus, shift, confidence = numbers.defocus_um, numbers.shift_angstrom, numbers.confidence
    if defocus is not None:
        panels.append(lambda axes: _histogram(axes, defocus, "defocus (µm)", COLOURS[0]))
    if confidence is not None:
        panels.append(lambda axes: _histogram(axes, confidence, "largest pose probability", COLOURS[2], (0.0, 1.0)))
    if shift is not None:
        length = np.hypot(*shift.T)
        panels.append(lambda axes: _histogram(axes, length, "in-plane shift (Å)", COLOURS[1]))
        panels.append(lambda axes: _scatter(axes, shift))
    if not panels:
        raise InputError("poses.star has neither defocus nor poses")
    n_rows = (len(panels) + 1) // 2
    with matplotlib.rc_context(CHART):
        figure = new_figure((5.6, 2.7 * n_rows))
        grid = figure.add_gridspec(n_rows, 2)
        for n, draw in enumerate(panels):
            alone = n == len(panels) - 1 and n % 2 == 0
            draw(figure.add_subplot(grid[n // 2, :] if alone else grid[n // 2, n % 2]))
        return png(figure)


def _histogram(axes: "Axes", values: np.ndarray, name: str, colour: str, limits: tuple[float, float] | None = None) -> None:
    axes.hist(values, bins=min(40, max(5, int(len(values) ** 0.5))), range=limits, color=colour)
    axes.axvline(float(np.median(values)), color="black", linewidth=1.2, linestyle="--")
    axes.set(xlabel=name, ylabel="particles", xlim=limits)


def _scatter(axes: "Axes", shift: np.ndarray) -> None:
    """Where in its image each particle lies; of many, those at even steps."""
    some = shift[:: max(1, len(shift) // _FEW)]
    reach = 1.05 * max(float(np.percentile(np.abs(shift), 99.5)), 1e-3)
    axes.plot(*some.T, ".", color=COLOURS[1], alpha=0.35, markersize=3, markeredgewidth=0)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set(xlabel="shift in x (Å)", ylabel="in y (Å)", xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
