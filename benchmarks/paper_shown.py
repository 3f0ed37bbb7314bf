"""What a table or figure is to the benchmark: the runs it needs, the lines it shows; and what several of them share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import paper_draw as draw
from paper_items import Scale, spec
from paper_runs import Spec


class Runs(Protocol):
    """Gives scores and arrays of runs."""

    scale: Scale

    def result(self, spec: Spec) -> dict[str, Any]: ...

    def arrays(self, spec: Spec) -> dict[str, np.ndarray]: ...

    def images(self, name: str) -> Path: ...

    def all_stages(self, name: str) -> dict[str, float]: ...


@dataclass(frozen=True)
class Item:
    """``specs``: the runs it needs at a scale; ``show``: its lines of Markdown, pictures written into a folder."""

    specs: Callable[[Scale], list[Spec]]
    show: Callable[[Runs, Path], list[str]]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def beside(ours: float, paper: float | None, digits: str = ".2g") -> str:
    """Ours, and in brackets the paper's."""
    return f"{ours:{digits}} ({'-' if paper is None else f'{paper:g}'})"


def seeds_of(values: Sequence[float], digits: str = ".2g") -> str:
    return ", ".join(f"{v:{digits}}" for v in values)


PANELS = [draw.Panel("rot_mean", "Rot. mean"), draw.Panel("rot_median", "Rot. median", logarithmic=True)]
PANELS += [draw.Panel("res_px", "FSC 0.5, px"), draw.Panel("coverage", "coverage")]


def pip_spec(scale: Scale, preset: str, pip: bool, seed: int, encoder: str = "") -> Spec:
    """PIP on or off, everything else the same; an encoder other than the scale's own sees fewer images."""
    changes: dict[str, Any] = {} if pip else {"ace__pip": False}
    if encoder:
        steps = 1500 if preset == "paper-voxel" else 1000
        changes |= {"ace__encoder": encoder, "ace__batch": 64, "ace__steps": steps}
    return spec(scale, "spliceosome-10", preset, seed, **changes)
