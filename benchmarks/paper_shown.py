"""Interface of tables and figures to the benchmark, and helpers shared by them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import paper_draw as draw
from paper_items import Scale, spec
from paper_runs import Spec


class Runs(Protocol):
    """Source of the scores and arrays of runs."""

    scale: Scale

    def result(self, spec: Spec) -> dict[str, Any]: ...

    def arrays(self, spec: Spec) -> dict[str, np.ndarray]: ...

    def images(self, name: str) -> Path: ...

    def all_stages(self, name: str) -> dict[str, float]: ...


@dataclass(frozen=True)
class Item:
    """A table or figure: ``specs`` gives its runs at a scale; ``show`` its Markdown, with pictures written to a folder."""

    specs: Callable[[Scale], list[Spec]]
    show: Callable[[Runs, Path], list[str]]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def beside(ours: float, paper: float | None, digits: str = ".2g") -> str:
    """Our value, with that of the paper in brackets."""
    return f"{ours:{digits}} ({'-' if paper is None else f'{paper:g}'})"


def seeds_of(values: Sequence[float], digits: str = ".2g") -> str:
    return ", ".join(f"{v:{digits}}" for v in values)


PANELS = [draw.Panel("rot_mean", "Rot. mean"), draw.Panel("rot_median", "Rot. median", logarithmic=True)]
PANELS += [draw.Panel("res_px", "FSC 0.5, px"), draw.Panel("coverage", "coverage")]


def pip_spec(scale: Scale, preset: str, pip: bool, seed: int, encoder: str = "") -> Spec:
    """A run with or without PIP, otherwise the same. An encoder other than the default of the scale trains on fewer images."""
    changes: dict[str, Any] = {} if pip else {"ace__pip": False}
    if encoder:
        steps = 1500 if preset == "paper-voxel" else 1000
        changes |= {"ace__encoder": encoder, "ace__batch": 64, "ace__steps": steps}
    return spec(scale, "spliceosome-10", preset, seed, **changes)
