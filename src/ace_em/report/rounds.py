"""The rounds of stages 2 and 3 in one chart: a column for exploring, search and refinement each, a row for each quantity."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ace_em.report.figures import CHART, COLOURS, GREY, LINES, new_figure, png
from ace_em.report.run_files import Record, by_start, column
from ace_em.report.sentences import at_limit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.gridspec import GridSpec

_SOFT = "#555555"
# a column of fewer rounds would be too narrow for its name
_LEAST_ROUNDS = 4


@dataclass(frozen=True)
class Rounds:
    """What metrics.jsonl says of the rounds; any of it may be empty.

    Attributes
    ----------
    explore, search, refine : records of rounds, in the order logged; those with a ``start`` are of one random start.
    held_out : the record at the end of each start's exploring.
    box_angstrom : edge of the images, NaN when unknown.
    """

    explore: Sequence[Record]
    search: Sequence[Record]
    refine: Sequence[Record]
    held_out: Sequence[Record]
    box_angstrom: float

    @property
    def phases(self) -> dict[str, dict[str, list[Record]]]:
        """Name of each phase that has begun to its records by start ('' for those of no one start)."""
        phases = {"exploring": self.explore, "search": self.search, "refinement": self.refine}
        return {name: by_start(records) for name, records in phases.items() if records}


def round_figure(rounds: Rounds) -> bytes:
    """Pose change, stable share, resolution and, while exploring, the share of the signal explained, round by round."""
    import matplotlib

    phases = rounds.phases
    n_rounds = [max(len(rows) for rows in groups.values()) for groups in phases.values()]
    n_rows = 4 if rounds.explore else 3
    with matplotlib.rc_context(CHART | {"lines.markersize": 4, "axes.titlesize": 11}):
        figure = new_figure((5.6, 1.0 + 2.0 * n_rows))
        widths = [max(n, _LEAST_ROUNDS) ** 0.5 for n in n_rounds]
        grid = figure.add_gridspec(n_rows, len(phases), width_ratios=widths)
        panels = _panels(figure, grid, len(phases))
        for line, (name, groups), n in zip(panels, phases.items(), n_rounds, strict=True):
            line[0].set_title(name)
            line[0].set_xlim(0.5, n + 0.5)
            for start, rows in groups.items():
                _draw(line, rows, _style(start), rounds.box_angstrom)
            _mark_boxes(line, next(iter(groups.values())))
        if rounds.explore:
            explained = figure.add_subplot(grid[3, 0], sharex=panels[0][0])
            _draw_explained(explained, rounds)
        _finish(panels, explained if rounds.explore else panels[0][2])
        _legend(figure, grid, panels, rounds)
        return png(figure)


def _panels(figure: "Figure", grid: "GridSpec", n: int) -> list[list["Axes"]]:
    """Three axes for each phase: they share x down a column and y along a row."""
    columns: list[list[Axes]] = []
    for i in range(n):
        column_of: list[Axes] = []
        for row in range(3):
            first = columns[0][row] if columns else None
            axes = figure.add_subplot(grid[row, i], sharey=first, sharex=column_of[0] if row else None)
            axes.tick_params(labelleft=i == 0, labelbottom=row == 2)
            column_of.append(axes)
        columns.append(column_of)
    return columns


def _style(start: str) -> dict[str, Any]:
    """A start keeps its colour and dashes; what belongs to no one start is black."""
    if not start:
        return {"color": "black", "linestyle": "-", "marker": "o"}
    n = int(start) - 1 if start.isdecimal() else 0
    return {"color": COLOURS[n % len(COLOURS)], "linestyle": LINES[n % len(LINES)], "marker": "o"}


def _draw(panels: Sequence["Axes"], rows: Sequence[Record], style: dict[str, Any], box_angstrom: float) -> None:
    """One line in each of a phase's three panels; in the last also the band and what the working box can hold."""
    x = np.arange(len(rows)) + 1.0
    moved = column(rows, "moved_median_deg")
    panels[0].plot(x, np.where(moved > 0, moved, np.nan), **style)
    panels[1].plot(x, 100 * column(rows, "stable"), **style)
    resolution = column(rows, "fsc143_angstrom")
    panels[2].plot(x, resolution, **style)
    limited = np.array([at_limit(row, box_angstrom) for row in rows])
    panels[2].plot(x[limited], resolution[limited], **style | {"linestyle": "", "markerfacecolor": "white"})
    panels[2].plot(x, column(rows, "band_angstrom"), color=GREY, linewidth=1)
    panels[2].plot(x, 2 * box_angstrom / column(rows, "box"), color=GREY, linewidth=1.2, linestyle=":")


def _mark_boxes(panels: Sequence["Axes"], rows: Sequence[Record]) -> None:
    """The working box where it is first used, and a line where it changes."""
    boxes = [record.get("box") for record in rows]
    for n, box in enumerate(boxes):
        if isinstance(box, int) and (n == 0 or box != boxes[n - 1]):
            note: dict[str, Any] = {"xytext": (4, 5), "textcoords": "offset points", "color": _SOFT, "fontsize": 10}
            panels[1].annotate(f"{box} px", (n + 0.5, 0), **note)
            for axes in panels if n else ():
                axes.axvline(n + 0.5, color=GREY, linewidth=1, linestyle=":")


def _draw_explained(axes: "Axes", rounds: Rounds) -> None:
    """Share of the signal that the map explains in images it is fitted to (lines) and in images held out (diamonds)."""
    last = {}
    for start, rows in by_start(rounds.explore).items():
        last[start] = len(rows)
        axes.plot(np.arange(len(rows)) + 1.0, 100 * column(rows, "explained"), **_style(start))
    for start, records in by_start(rounds.held_out).items():
        held_out = 100 * column(records, "explained")[-1]
        axes.plot(last.get(start, 1), held_out, "D", color=_style(start)["color"], markersize=8, markeredgecolor="white")
    axes.axhline(100, color=GREY, linewidth=1, linestyle=":")
    axes.set_ylabel("explained (%)")
    axes.set_ylim(min(0.0, axes.get_ylim()[0]), max(106.0, axes.get_ylim()[1]))


def _finish(panels: Sequence[Sequence["Axes"]], lowest: "Axes") -> None:
    """Scales, ticks and the axes' names; ``lowest`` is the panel at the foot of the first column."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    turn, stable, resolution = panels[0]
    moved = np.concatenate([np.asarray(line.get_ydata(), float) for column_of in panels for line in column_of[0].lines])
    # a logarithmic axis without a value above 0 cannot be drawn
    if np.isfinite(moved).any():
        turn.set_yscale("log")
        wide = np.nanmax(moved) > 100 * np.nanmin(moved)
        turn.yaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
        turn.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        turn.yaxis.set_minor_locator(NullLocator())
    turn.set_ylabel("median turn (°)")
    stable.set(ylabel="stable poses (%)", ylim=(0, 103))
    resolution.set_ylabel("resolution (Å)")
    for column_of in panels:
        column_of[0].xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))
    resolution.tick_params(labelbottom=lowest is resolution)
    lowest.set_xlabel("round")
    for column_of in panels[1:]:
        column_of[2].set_xlabel("round")


def _legend(figure: "Figure", grid: "GridSpec", panels: Sequence[Sequence["Axes"]], rounds: Rounds) -> None:
    """The legend: in the cells that the explained share leaves free, else below the figure."""
    from matplotlib.lines import Line2D

    starts = {start for groups in rounds.phases.values() for start in groups}
    lines = [Line2D([], [], label=f"start {start}", **_style(start)) for start in sorted(starts - {""})]
    if "" in starts:
        lines.append(Line2D([], [], label="all images, in halves", **_style("")))
    if rounds.explore and rounds.held_out:
        lines.append(Line2D([], [], label="images held out", color=_SOFT, marker="D", markersize=8, linestyle=""))
    lines.append(Line2D([], [], label="finest detail used", color=GREY, linewidth=1))
    boxes = column([*rounds.explore, *rounds.search, *rounds.refine], "box")
    if math.isfinite(rounds.box_angstrom) and np.isfinite(boxes).any():
        lines.append(Line2D([], [], label="finest in the box", color=GREY, linewidth=1.2, linestyle=":"))
    if rounds.explore and len(panels) > 1:
        corner = figure.add_subplot(grid[3, 1:])
        corner.set_axis_off()
        corner.legend(handles=lines, loc="center", fontsize=11)
    else:
        figure.legend(handles=lines, loc="outside lower center", ncols=2, fontsize=11)
