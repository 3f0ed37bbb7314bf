"""Charts of a run, each as the bytes of a PNG: FSC, losses of stage 1, rounds of stages 2 and 3.

Dark on white; the page turns them round for a dark screen. No line is told apart by colour alone.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ace_em.report.figures import CHART, COLOURS, GREY, LINES, new_figure, png
from ace_em.report.run_files import Curve, Record, column

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# resolutions in Angstrom that look well on an axis
_NICE = (200, 100, 50, 40, 30, 25, 20, 15, 12, 10, 9, 8, 7, 6, 5, 4.5, 4, 3.5, 3, 2.5, 2, 1.5, 1)


def fsc_figure(curve: Curve, crossings: dict[float, float], truth: np.ndarray | None) -> bytes:
    """Half-map FSC with its thresholds.

    Parameters
    ----------
    curve : the half-map FSC.
    crossings : threshold to the resolution in Angstrom at which the curve falls below it (NaN: it does not).
    truth : (n,) FSC against the truth, shell by shell from shell 0, or None.
    """
    import matplotlib

    frequency = curve.frequency_per_angstrom
    with matplotlib.rc_context(CHART):
        figure = new_figure((5.6, 4.1))
        axes = figure.subplots()
        axes.plot(frequency, curve.fsc, color=COLOURS[0], label="half-maps")
        if truth is not None:
            axes.plot(np.arange(len(truth)) * frequency[1], truth, color=COLOURS[1], linestyle="--", label="against the truth")
        for threshold, angstrom in crossings.items():
            axes.axhline(threshold, color=GREY, linewidth=1, linestyle=":")
            axes.text(
                0.01 * frequency[-1], threshold + 0.01, f"{threshold:g}", color="#555555", fontsize=10, ha="left", va="bottom"
            )
            if math.isfinite(angstrom):
                axes.plot(1 / angstrom, threshold, "o", color=COLOURS[0])
                axes.annotate(f"{angstrom:.3g} Å", (1 / angstrom, threshold), xytext=(7, 6), textcoords="offset points")
        _resolution_ticks(axes, float(frequency[-1]))
        axes.set(xlabel="resolution (Å)", ylabel="Fourier shell correlation", ylim=(min(-0.05, float(curve.fsc.min())), 1.05))
        axes.legend(loc="center left")
        return png(figure)


def _resolution_ticks(axes: "Axes", last: float) -> None:
    """Ticks of an axis linear in frequency (0 ... last, 1/Angstrom), labelled in Angstrom."""
    chosen: list[float] = []
    for angstrom in _NICE:
        if 1 / angstrom - (1 / chosen[-1] if chosen else 0) >= 0.09 * last and 1 / angstrom <= last:
            chosen.append(angstrom)
    axes.set_xticks([1 / angstrom for angstrom in chosen], [f"{angstrom:g}" for angstrom in chosen])
    axes.set_xlim(0, last)


def by_start(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records of each random start, in the order logged."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(str(record.get("start", 1)), []).append(record)
    return groups


def loss_figure(records: Sequence[Record]) -> bytes:
    """Image loss and PIP loss of stage 1 over steps, one line a start."""
    import matplotlib

    with matplotlib.rc_context(CHART):
        figure = new_figure((5.6, 4.6))
        panels = figure.subplots(2, 1, sharex=True)
        groups = by_start(records)
        for n, (start, rows) in enumerate(groups.items()):
            style: dict[str, Any] = {"color": COLOURS[n % len(COLOURS)], "linestyle": LINES[n % len(LINES)]}
            style |= {"label": f"start {start}", "marker": "o" if len(rows) == 1 else None}
            for axes, key in zip(panels, ("image_loss", "pip_loss"), strict=True):
                axes.plot(column(rows, "step"), column(rows, key), **style)
        panels[0].set_ylabel("image loss")
        panels[1].set(ylabel="PIP loss", xlabel="step")
        if len(groups) > 1:
            panels[0].legend()
        return png(figure)


def round_figure(search: Sequence[Record], refine: Sequence[Record]) -> bytes:
    """Pose change, stable share and resolution over the rounds of the search and, after it, of the refinement."""
    import matplotlib

    groups = by_start(search)
    offset = max((len(rows) for rows in groups.values()), default=0)
    lines = [(f"search, start {start}", np.arange(len(rows)) + 1.0, rows) for start, rows in groups.items()]
    if refine:
        lines.append(("refinement", np.arange(len(refine)) + 1.0 + offset, list(refine)))
    with matplotlib.rc_context(CHART | {"lines.markersize": 4}):
        figure = new_figure((5.6, 7.6))
        panels = figure.subplots(3, 1, sharex=True)
        for n, (label, x, rows) in enumerate(lines):
            # the refinement looks the same however many starts there were
            colour = "black" if label == "refinement" else COLOURS[n % len(COLOURS)]
            style: dict[str, Any] = {"color": colour, "linestyle": LINES[n % len(LINES)] if colour != "black" else "-"}
            moved = column(rows, "moved_median_deg")
            panels[0].plot(x, np.where(moved > 0, moved, np.nan), marker="o", label=label, **style)
            panels[1].plot(x, 100 * column(rows, "stable"), marker="o", **style)
            panels[2].plot(x, column(rows, "fsc143_angstrom"), marker="o", **style)
            panels[2].plot(x, column(rows, "band_angstrom"), color=GREY, linewidth=1, label=None if n else "finest detail used")
        # a logarithmic axis without a value above 0 cannot be drawn
        _finish_rounds(panels, offset, refine, bool((column([*search, *refine], "moved_median_deg") > 0).any()))
        return png(figure)


def _finish_rounds(panels: Sequence["Axes"], offset: int, refine: Sequence[Record], moving: bool) -> None:
    """Axes' names, and a line where the refinement begins and wherever its box changes."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    boxes = [record.get("box") for record in refine]
    for n, box in enumerate(boxes):
        if n == 0 or box != boxes[n - 1]:
            for axes in panels:
                axes.axvline(offset + n + 0.5, color=GREY, linewidth=1, linestyle=":")
            if isinstance(box, int):
                panels[1].text(offset + n + 0.6, 3, f"{box} px", color="#555555", fontsize=10)
    if moving:
        panels[0].set_yscale("log")
        panels[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panels[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panels[0].yaxis.set_minor_locator(NullLocator())
    panels[0].set_ylabel("median turn (°)")
    panels[1].set(ylabel="stable poses (%)", ylim=(0, 103))
    panels[2].set(ylabel="resolution (Å)", xlabel="round")
    panels[2].xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].legend()
    panels[2].legend()
