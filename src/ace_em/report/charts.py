"""Line charts of the report as PNG bytes: FSC, losses and poses of stage 1, rounds of stages 2 and 3.

Lines differ in dashes or markers as well as in colour.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ace_em.report.figures import CHART, COLOURS, GREY, LINES, TEXT_GREY, new_figure, png
from ace_em.report.load import Curve, Record, by_start, column, number
from ace_em.report.summary import Shared, at_limit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TICKS_ANGSTROM = (200, 100, 50, 40, 30, 25, 20, 15, 12, 10, 9, 8, 7, 6, 5, 4.5, 4, 3.5, 3, 2.5, 2, 1.5, 1)
"""Tick labels of the resolution axis of an FSC."""
_ORANGE = COLOURS[1]
# with fewer rounds a column would be too narrow for its title
_LEAST_ROUNDS = 4


def fsc_figure(
    curve: Curve, crossings: dict[float, float], corrected: dict[float, float], truth: np.ndarray | None, shared: Shared | None
) -> bytes:
    """The FSC curves of fsc.csv from shell 1 on, with thresholds.

    Parameters
    ----------
    curve : half-map FSC.
    crossings, corrected : resolution in Angstrom at which the unmasked and the corrected curve fall below each threshold; NaN if
        they do not.
    truth : (n,) FSC against the true map from shell 0, or None.
    shared : band of the common starting map of the half-sets, or None if unknown.
    """
    import matplotlib

    frequency, last = curve.frequency_per_angstrom, float(curve.frequency_per_angstrom[-1])
    step = last / (len(frequency) - 1)
    # the masked and corrected curves often coincide: the masked one is drawn as a broad line below
    curves: dict[str, tuple[np.ndarray | None, dict[str, Any]]] = {
        "masked": (curve.masked, {"color": COLOURS[4], "alpha": 0.7, "linewidth": 6}),
        "masked, phases randomised": (curve.randomised, {"color": COLOURS[3], "linestyle": ":"}),
        "masked, corrected": (curve.corrected, {"color": _ORANGE, "linestyle": "--"}),
        "no radial mean": (curve.features, {"color": COLOURS[2], "linestyle": (0, (4, 1.5, 1, 1.5)), "linewidth": 1.5}),
        "half-maps" if curve.masked is None else "spherical mask": (curve.fsc, {"color": COLOURS[0]}),
        "against the truth": (truth, {"color": "black", "linestyle": (0, (6, 2)), "linewidth": 1.5}),
    }
    with matplotlib.rc_context(CHART):
        figure = new_figure((5.6, 5.3 if curve.corrected is not None else 4.1))
        axes, lowest = figure.subplots(), 0.0
        for name, (fsc, style) in curves.items():
            if fsc is not None:
                x = np.arange(len(fsc)) * step if len(fsc) != len(frequency) else frequency
                axes.plot(x[1:], fsc[1:], label=name, **style)
                lowest = min(lowest, float(np.nanmin(fsc[1:])))
        for threshold in crossings:
            axes.axhline(threshold, color=GREY, linewidth=1, linestyle=":")
            axes.text(0.01 * last, threshold + 0.01, f"{threshold:g}", color=TEXT_GREY, fontsize=10, ha="left", va="bottom")
        # the corrected curve is to the right of the unmasked one: labels on opposite sides
        _mark_crossings(axes, crossings, COLOURS[0], "o", 0.3 * last)
        _mark_crossings(axes, corrected, _ORANGE, "s", 0.85 * last)
        _resolution_ticks(axes, last)
        axes.set(xlabel="resolution (Å)", ylabel="Fourier shell correlation", ylim=(max(min(-0.05, lowest - 0.02), -0.3), 1.05))
        if shared is not None:
            _mark_shared(axes, shared)
        figure.legend(loc="outside lower center", ncols=2)
        return png(figure)


def _mark_crossings(axes: "Axes", crossings: dict[float, float], colour: str, marker: str, left_from: float) -> None:
    """Mark and label the crossings; labels of crossings above frequency ``left_from`` are placed to the left."""
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.85}
    for threshold, angstrom in crossings.items():
        if math.isfinite(angstrom):
            axes.plot(1 / angstrom, threshold, marker, color=colour, zorder=4)
            left = 1 / angstrom > left_from
            place: dict[str, Any] = {"xytext": (-7, -13) if left else (7, 7), "textcoords": "offset points"}
            place |= {"ha": "right" if left else "left", "bbox": box, "zorder": 5}
            axes.annotate(f"{angstrom:.3g} Å", (1 / angstrom, threshold), color=colour, **place)


def _mark_shared(axes: "Axes", shared: Shared) -> None:
    """Shade the band of the shared map, and in light grey the range over which it still correlates the half-maps."""
    last = axes.get_xlim()[1]
    cut, reach = (min(1 / angstrom, last) for angstrom in (shared.cut_angstrom, shared.reach_angstrom))
    for start, end, alpha in ((0.0, cut, 0.45), (cut, reach, 0.2)):
        axes.axvspan(start, end, color="#bbbbbb", alpha=alpha, linewidth=0, zorder=0)
    axes.axvline(cut, color=GREY, linewidth=1)
    text = f"shared: coarser than {shared.cut_angstrom:.3g} Å"
    text, side = (f"{text} →", "right") if cut > 0.6 * last else (f"← {text}", "left")
    note: dict[str, Any] = {"color": TEXT_GREY, "fontsize": 10, "ha": side, "va": "bottom"}
    axes.text(cut, 1.005, text, transform=axes.get_xaxis_transform(), **note)


def _resolution_ticks(axes: "Axes", last: float) -> None:
    """Label a frequency axis (0 to ``last``, 1/Angstrom) with resolutions in Angstrom."""
    chosen: list[float] = []
    for angstrom in TICKS_ANGSTROM:
        if 1 / angstrom - (1 / chosen[-1] if chosen else 0) >= 0.09 * last and 1 / angstrom <= last:
            chosen.append(angstrom)
    axes.set_xticks([1 / angstrom for angstrom in chosen], [f"{angstrom:g}" for angstrom in chosen])
    axes.set_xlim(0, last)


def loss_figure(records: Sequence[Record]) -> bytes:
    """Image loss and PIP loss over the steps of stage 1, one line per start; ``records`` of stage 'ace'."""
    return _over_steps(records, {"image_loss": "image loss", "pip_loss": "PIP loss"})


def watch_figure(records: Sequence[Record]) -> bytes:
    """Change of the encoder's poses and share of stable poses over the steps of stage 1; ``records`` of stage 'watch'."""
    return _over_steps(records, {"moved_median_deg": "median change (°)", "stable": "stable poses (%)"})


def _over_steps(records: Sequence[Record], rows: dict[str, str]) -> bytes:
    """One panel per key of ``rows`` (key to label) over the steps; 'stable' in per cent."""
    import matplotlib

    with matplotlib.rc_context(CHART):
        figure = new_figure((5.6, 4.6))
        panels, groups = figure.subplots(len(rows), 1, sharex=True), by_start(records)
        for start, of_start in groups.items():
            for axes, key in zip(panels, rows, strict=True):
                style = _style(start) | {"marker": "o" if len(of_start) < 30 else None}
                axes.plot(column(of_start, "step"), (100 if key == "stable" else 1) * column(of_start, key), **style)
        for axes, (key, label) in zip(panels, rows.items(), strict=True):
            axes.set(ylabel=label, ylim=(0, 103) if key == "stable" else None)
        panels[-1].set_xlabel("step")
        if len(groups) > 1:
            panels[0].legend([f"start {start}" for start in groups])
        return png(figure)


def _style(start: str) -> dict[str, Any]:
    """Colour and dashes of a start; black for rounds on all images ('')."""
    if not start:
        return {"color": "black", "linestyle": "-", "marker": "o"}
    n = int(start) - 1 if start.isdecimal() else 0
    return {"color": COLOURS[n % len(COLOURS)], "linestyle": LINES[n % len(LINES)], "marker": "o"}


def round_figure(phases: Mapping[str, Sequence[Record]], held_out: Sequence[Record], box_angstrom: float) -> bytes:
    """The rounds of stages 2 and 3: a column per phase; rows for pose change, stable share, resolution, signal explained.

    Parameters
    ----------
    phases : records of the rounds of 'ab initio search', 'search' and 'refinement', as far as they have started.
    held_out : the record at the end of each start's ab initio search, with the share of the signal explained in held-out images.
    box_angstrom : edge of the images, NaN if unknown.
    """
    import matplotlib

    groups = [by_start(records) for records in phases.values()]
    n_rounds = [max(map(len, of_phase.values())) for of_phase in groups]
    n_rows = 4 if "ab initio search" in phases else 3
    widths = [max(n, _LEAST_ROUNDS) ** 0.5 for n in n_rounds]
    with matplotlib.rc_context(CHART | {"lines.markersize": 4, "axes.titlesize": 11}):
        figure = new_figure((5.6, 1.0 + 2.0 * n_rows))
        panels = figure.subplots(n_rows, len(phases), squeeze=False, sharex="col", sharey="row", width_ratios=widths)
        for column_of, name, of_phase, n in zip(panels.T, phases, groups, n_rounds, strict=True):
            column_of[0].set_title(name)
            column_of[0].set_xlim(0.5, n + 0.5)
            for start, rows in of_phase.items():
                _draw_rounds(column_of, rows, _style(start), box_angstrom)
            _mark_boxes(column_of[:3], next(iter(of_phase.values())))
        if n_rows == 4:
            _draw_explained(panels[3, 0], groups[0], held_out)
        _finish_rounds(figure, panels, {start for of_phase in groups for start in of_phase}, bool(held_out), box_angstrom)
        return png(figure)


def _draw_rounds(panels: Sequence["Axes"], rows: Sequence[Record], style: dict[str, Any], box_angstrom: float) -> None:
    """Draw the rounds of one start in the panels of a phase; in the third also the resolution used and Nyquist of the box."""
    x, moved, resolution = np.arange(len(rows)) + 1.0, column(rows, "moved_median_deg"), column(rows, "fsc143_angstrom")
    panels[0].plot(x, np.where(moved > 0, moved, np.nan), **style)
    panels[1].plot(x, 100 * column(rows, "stable"), **style)
    panels[2].plot(x, resolution, **style)
    limited = np.array([at_limit(row, box_angstrom) for row in rows])
    panels[2].plot(x[limited], resolution[limited], **style | {"linestyle": "", "markerfacecolor": "white"})
    panels[2].plot(x, column(rows, "band_angstrom"), color=GREY, linewidth=1)
    panels[2].plot(x, 2 * box_angstrom / column(rows, "box"), color=GREY, linewidth=1.2, linestyle=":")


def _mark_boxes(panels: Sequence["Axes"], rows: Sequence[Record]) -> None:
    """Label the working box at its first round, and draw a line where it changes."""
    boxes = [number(record, "box") for record in rows]
    for n, box in enumerate(boxes):
        if box > 0 and (n == 0 or box != boxes[n - 1]):
            note: dict[str, Any] = {"xytext": (4, 5), "textcoords": "offset points", "color": TEXT_GREY, "fontsize": 10}
            panels[1].annotate(f"{box:.0f} px", (n + 0.5, 0), **note)
            for axes in panels if n else ():
                axes.axvline(n + 0.5, color=GREY, linewidth=1, linestyle=":")


def _draw_explained(axes: "Axes", searches: dict[str, list[Record]], held_out: Sequence[Record]) -> None:
    """Draw the share of the signal explained in the images of the round (lines) and in held-out images (diamonds)."""
    for start, rows in searches.items():
        axes.plot(np.arange(len(rows)) + 1.0, 100 * column(rows, "explained"), **_style(start))
    for start, records in by_start(held_out).items():
        explained = 100 * column(records, "explained")[-1]
        mark: dict[str, Any] = {"color": _style(start)["color"], "markersize": 8, "markeredgecolor": "white"}
        axes.plot(len(searches.get(start, "1")), explained, "D", **mark)
    axes.axhline(100, color=GREY, linewidth=1, linestyle=":")
    axes.set_ylim(min(0.0, axes.get_ylim()[0]), max(106.0, axes.get_ylim()[1]))


def _finish_rounds(figure: "Figure", panels: np.ndarray, starts: set[str], held_out: bool, box_angstrom: float) -> None:
    """Axis labels, logarithmic axis of the pose change, and the legend in free cells of the last row or below."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    labels = ("median change (°)", "stable poses (%)", "resolution (Å)", "explained (%)")
    for axes, label in zip(panels[:, 0], labels, strict=False):
        axes.set_ylabel(label)
    moved = np.concatenate([np.asarray(line.get_ydata(), float) for axes in panels[0] for line in axes.lines])
    # a logarithmic axis needs a positive value
    if np.isfinite(moved).any():
        panels[0, 0].set_yscale("log")
        wide = np.nanmax(moved) > 100 * np.nanmin(moved)
        for axes in panels[0]:
            axes.yaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_locator(NullLocator())
    panels[1, 0].set_ylim(0, 103)
    for column_of in panels.T:
        column_of[0].xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))
    ab_initio = len(panels) == 4
    for n, axes in enumerate(panels[-1]):
        lowest = panels[2, n] if ab_initio and n else axes
        lowest.set_xlabel("round")
        lowest.tick_params(labelbottom=True)
    lines = [Line2D([], [], label=f"start {start}", **_style(start)) for start in sorted(starts - {""})]
    if "" in starts:
        lines.append(Line2D([], [], label="all images, in half-sets", **_style("")))
    if ab_initio and held_out:
        lines.append(Line2D([], [], label="held-out images", color=TEXT_GREY, marker="D", markersize=8, linestyle=""))
    lines.append(Line2D([], [], label="resolution used", color=GREY, linewidth=1))
    if math.isfinite(box_angstrom):
        lines.append(Line2D([], [], label="Nyquist of the box", color=GREY, linewidth=1.2, linestyle=":"))
    if ab_initio and panels.shape[1] > 1:
        for axes in panels[3, 1:]:
            axes.remove()
        free = figure.add_subplot(panels[0, 0].get_gridspec()[3, 1:])
        free.set_axis_off()
        free.legend(handles=lines, loc="center", fontsize=11)
    else:
        figure.legend(handles=lines, loc="outside lower center", ncols=2, fontsize=11)
