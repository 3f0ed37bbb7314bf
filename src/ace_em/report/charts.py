"""Charts of a run, each as the bytes of a PNG: FSC, losses of stage 1.

Dark on white; the page turns them round for a dark screen. No line is told apart by colour alone.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ace_em.report.figures import CHART, COLOURS, GREY, LINES, new_figure, png
from ace_em.report.run_files import Curve, Record, Shared, by_start, column

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# resolutions in Angstrom that look well on an axis
_NICE = (200, 100, 50, 40, 30, 25, 20, 15, 12, 10, 9, 8, 7, 6, 5, 4.5, 4, 3.5, 3, 2.5, 2, 1.5, 1)


def fsc_figure(
    curve: Curve, crossings: dict[float, float], corrected: dict[float, float], truth: np.ndarray | None, shared: Shared | None
) -> bytes:
    """Half-map FSC with its thresholds, and beside it the curves inside the mask where there are any, all from shell 1 on.

    Parameters
    ----------
    curve : the half-map FSC.
    crossings, corrected : threshold to the resolution in Angstrom at which the unmasked and the corrected curve fall below it
        (NaN: it does not).
    truth : (n,) FSC against the truth, shell by shell from shell 0, or None.
    shared : what the half-maps had in common when they set out, or None when unknown.
    """
    import matplotlib

    frequency = curve.frequency_per_angstrom
    with matplotlib.rc_context(CHART):
        figure = new_figure((5.6, 5.3 if curve.corrected is not None else 4.1))
        axes = figure.subplots()
        drawn = _draw_curves(axes, curve)
        if truth is not None:
            style: dict[str, Any] = {"color": "black", "linestyle": (0, (6, 2)), "linewidth": 1.5}
            axes.plot(np.arange(1, len(truth)) * frequency[1], truth[1:], label="against the truth", **style)
        _thresholds(axes, crossings, corrected, float(frequency[-1]))
        _resolution_ticks(axes, float(frequency[-1]))
        lowest = min(float(np.nanmin(fsc[1:])) for fsc in (*drawn, truth) if fsc is not None)
        axes.set(xlabel="resolution (Å)", ylabel="Fourier shell correlation", ylim=(max(min(-0.05, lowest - 0.02), -0.3), 1.05))
        if shared is not None:
            _mark_shared(axes, shared)
        figure.legend(loc="outside lower center", ncols=2)
        return png(figure)


def _draw_curves(axes: "Axes", curve: Curve) -> list[np.ndarray]:
    """The half-map curves there are, and their values; masked and corrected often coincide, so one lies broad under the other."""
    styles: dict[str, tuple[np.ndarray | None, dict[str, Any]]] = {
        "masked": (curve.masked, {"color": "#E69F00", "alpha": 0.7, "linewidth": 6}),
        "masked, phases randomised": (curve.randomised, {"color": "#CC79A7", "linestyle": ":"}),
        "masked, corrected": (curve.corrected, {"color": "#D55E00", "linestyle": "--"}),
        "ball, without radial mean": (curve.features, {"color": "#009E73", "linestyle": (0, (4, 1.5, 1, 1.5)), "linewidth": 1.5}),
        "half-maps" if curve.masked is None else "ball": (curve.fsc, {"color": COLOURS[0]}),
    }
    there = {name: (fsc, style) for name, (fsc, style) in styles.items() if fsc is not None}
    for name, (fsc, style) in there.items():
        axes.plot(curve.frequency_per_angstrom[1:], fsc[1:], label=name, **style)
    return [fsc for fsc, _ in there.values()]


def _thresholds(axes: "Axes", crossings: dict[float, float], corrected: dict[float, float], last: float) -> None:
    """A line at each threshold, and a mark where the unmasked curve, and the corrected one, fall below it."""
    for threshold in crossings:
        axes.axhline(threshold, color=GREY, linewidth=1, linestyle=":")
        axes.text(0.01 * last, threshold + 0.01, f"{threshold:g}", color="#555555", fontsize=10, ha="left", va="bottom")
    # the corrected curve lies right of the other: their labels stand on either side
    for found, colour, marker, left in ((crossings, COLOURS[0], "o", True), (corrected, "#D55E00", "s", False)):
        for threshold, angstrom in found.items():
            if not math.isfinite(angstrom):
                continue
            axes.plot(1 / angstrom, threshold, marker, color=colour, zorder=4)
            left_of = (left and 1 / angstrom > 0.3 * last) or 1 / angstrom > 0.85 * last
            place: dict[str, Any] = {"xytext": (-7 if left_of else 7, -13 if left_of else 7), "textcoords": "offset points"}
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.85}
            side = "right" if left_of else "left"
            axes.annotate(f"{angstrom:.3g} Å", (1 / angstrom, threshold), color=colour, zorder=5, ha=side, bbox=box, **place)


def _mark_shared(axes: "Axes", shared: Shared) -> None:
    """Shade the frequencies that the half-maps had in common when they set out, and lighter those that these reach into."""
    last = axes.get_xlim()[1]
    cut, reach = (min(1 / angstrom, last) for angstrom in (shared.cut_angstrom, shared.reach_angstrom))
    for start, end, alpha in ((0.0, cut, 0.45), (cut, reach, 0.2)):
        axes.axvspan(start, end, color="#bbbbbb", alpha=alpha, linewidth=0, zorder=0)
    axes.axvline(cut, color=GREY, linewidth=1)
    text = f"shared: coarser than {shared.cut_angstrom:.3g} Å"
    text, side = (f"{text} →", "right") if cut > 0.6 * last else (f"← {text}", "left")
    note: dict[str, Any] = {"color": "#555555", "fontsize": 10, "ha": side, "va": "bottom"}
    axes.text(cut, 1.005, text, transform=axes.get_xaxis_transform(), **note)


def _resolution_ticks(axes: "Axes", last: float) -> None:
    """Ticks of an axis linear in frequency (0 ... last, 1/Angstrom), labelled in Angstrom."""
    chosen: list[float] = []
    for angstrom in _NICE:
        if 1 / angstrom - (1 / chosen[-1] if chosen else 0) >= 0.09 * last and 1 / angstrom <= last:
            chosen.append(angstrom)
    axes.set_xticks([1 / angstrom for angstrom in chosen], [f"{angstrom:g}" for angstrom in chosen])
    axes.set_xlim(0, last)


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


def watch_figure(records: Sequence[Record]) -> bytes:
    """How far the encoder's poses turned between looks, and the share of them that hardly did, over the steps of stage 1."""
    import matplotlib

    with matplotlib.rc_context(CHART):
        figure = new_figure((5.6, 4.6))
        panels = figure.subplots(2, 1, sharex=True)
        steps = column(records, "step")
        panels[0].plot(steps, column(records, "moved_median_deg"), color=COLOURS[0], marker="o")
        panels[1].plot(steps, 100 * column(records, "stable"), color=COLOURS[0], marker="o")
        panels[0].set_ylabel("median turn (°)")
        panels[1].set(ylabel="stable poses (%)", xlabel="step", ylim=(0, 103))
        return png(figure)
