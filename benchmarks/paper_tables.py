"""The tables and figures one by one: the runs each needs, and what it shows of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import paper_figures as draw
import torch
from paper_images import example_images
from paper_items import DATASETS, METHODS, Scale, spec
from paper_runs import Spec

from ace_em.metrics.fsc import fourier_shell_correlation, resolution_shell


class Runs(Protocol):
    """Gives scores and arrays of runs."""

    scale: Scale

    def result(self, spec: Spec) -> dict[str, Any]: ...

    def arrays(self, spec: Spec) -> dict[str, np.ndarray]: ...

    def images(self, name: str) -> Path: ...


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


# --- Table 1: res_px, rot_mean, rot_median, trans (pixels^2) of the paper -----------------------------------------------
SIMULATED = ("spliceosome-200", "spliceosome-10", "spliceosome-20", "spike-200", "spike-10")
Numbers = tuple[float | None, float | None, float | None, float | None]
NONE: Numbers = (None, None, None, None)
TABLE1: dict[tuple[str, str], Numbers] = {
    ("spliceosome-200", "CryoPoseNet"): (2.78, None, 0.004, None),
    ("spliceosome-200", "cryoAI"): (2.20, 0.0007, 0.0005, 16.4),
    ("spliceosome-200", "ours (V)"): (2.23, 0.003, 0.0004, 10.3),
    ("spliceosome-200", "ours (F)"): (2.00, 0.0003, 0.0002, 1.7),
    ("spliceosome-10", "CryoPoseNet"): (3.15, None, 0.01, None),
    ("spliceosome-10", "cryoAI"): (2.71, 0.03, 0.003, 58.4),
    ("spliceosome-10", "ours (V)"): (2.03, 0.004, 0.002, 1.7),
    ("spliceosome-10", "ours (F)"): (2.00, 0.002, 0.001, 2.1),
    ("spliceosome-20", "ours (F)"): (2.10, 1.3, 0.02, None),
    ("spike-200", "CryoPoseNet"): (16.0, None, 5, None),
    ("spike-200", "cryoAI"): (2.13, 0.0006, 0.0004, 6.4),
    ("spike-200", "ours (V)"): (2.85, 0.05, 0.003, 0.7),
    ("spike-200", "ours (F)"): (2.00, 0.0003, 0.0002, 1.2),
    ("spike-10", "CryoPoseNet"): (16.0, None, 6, None),
    ("spike-10", "cryoAI"): (2.34, 0.9, 0.002, 9.6),
    ("spike-10", "ours (V)"): (2.87, 0.01, 0.003, 0.4),
    ("spike-10", "ours (F)"): (2.00, 0.1, 0.002, 1.6),
}


def table1_specs(scale: Scale) -> list[Spec]:
    return [spec(scale, images, preset) for images in SIMULATED for preset in METHODS.values()]


def table1(runs: Runs, pictures: Path) -> list[str]:
    rows = []
    for images in SIMULATED:
        for method, preset in METHODS.items():
            result = runs.result(spec(runs.scale, images, preset))
            end, paper = result["end"], TABLE1.get((images, method), NONE)
            # shifts are scored in pixels of the working box; the paper's are of 128
            trans = end["trans"] * (128 / result["box"]) ** 2
            values = (end["res_px"], end["rot_mean"], end["rot_median"], trans)
            cells = [beside(v, p, d) for v, p, d in zip(values, paper, (".2f", ".2g", ".2g", ".3g"), strict=True)]
            extra = [f"{end['within_10deg']:.0%}", f"{end['coverage']:.0%}", f"{result['cpu_s']:.0f}"]
            rows.append([DATASETS[images].title, method, *cells, *extra])
    head = [
        "set",
        "method",
        "Res. 0.5, px",
        "Rot. mean",
        "Rot. median",
        "Trans., px^2 of 128",
        "within 10 deg",
        "coverage",
        "CPU s",
    ]
    note = (
        "Ours first, the paper's in brackets. One seed. Res. is in pixels of the working box, where 2 is Nyquist. At cpu scale "
        "the methods differ in decoder and PIP only; eq. 6 and 7 and the labels are compared further down."
    )
    return ["## Table 1: simulated sets", "", note, "", *table(head, rows)]


# --- Table 2: half-maps of the 80S ------------------------------------------------------------------------------------
TABLE2 = {"ours (V)": 7.54, "ours (F)": 7.90, "cryoAI": 7.91}
TABLE2_METHODS = ("ours (V)", "ours (F)", "cryoAI")


def table2_specs(scale: Scale) -> list[Spec]:
    return [spec(scale, "80s", METHODS[m], half=h) for m in TABLE2_METHODS for h in (1, 2)]


def table2(runs: Runs, pictures: Path) -> list[str]:
    rows = []
    for method in TABLE2_METHODS:
        specs = [spec(runs.scale, "80s", METHODS[method], half=h) for h in (1, 2)]
        maps = [torch.from_numpy(runs.arrays(s)["volume"]) for s in specs]
        ends = [runs.result(s)["end"] for s in specs]
        shell = resolution_shell(fourier_shell_correlation(maps[0], maps[1]), 0.143)
        box = maps[0].shape[-1]
        nyquist = 2 * 3.77 * 128 / box
        rows.append(
            [
                method,
                f"{nyquist * box / 2 / shell:.2f}",
                f"{nyquist:.2f}",
                f"{TABLE2[method]:g}",
                " / ".join(f"{e['res_px']:.2f}" for e in ends),
                " / ".join(f"{e['rot_median']:.2g}" for e in ends),
            ]
        )
    head = ["method", "half-map 0.143, A", "Nyquist, A", "paper (Nyquist 7.54)", "0.5 against the truth, px", "Rot. median"]
    note = (
        "Two trainings on half of the images each, from their own random weights; each map is brought into the true frame by its "
        "own poses, and the two are compared. The images are simulated from 4V6X with the CTFs of EMPIAR-10028."
    )
    return ["## Table 2: 80S ribosome, half-maps", "", note, "", *table(head, rows)]


# --- Table 4: PIP and warm-up labels with voxels ------------------------------------------------------------------------
TABLE4: list[tuple[bool, bool, Numbers]] = [
    (False, False, NONE),
    (False, True, (2.24, 1.124, 0.005, None)),
    (True, True, (2.20, 0.008, 0.004, None)),
    (True, False, NONE),
]


def table4_spec(scale: Scale, pip: bool, labels: bool, seed: int) -> Spec:
    changes: dict[str, Any] = {"ace__pip": pip, "ace__symmetric_loss": "none" if scale.name == "cpu" else "generalised"}
    changes["ace__label_steps"] = 0 if not labels else 300 if scale.name == "cpu" else 4000
    if scale.name == "cpu":
        # the march would stand in for the labels
        changes |= {"ace__march": 0.0, "ace__steps": 1000}
    return spec(scale, "spliceosome-10", "paper-voxel", seed, **changes)


def table4_specs(scale: Scale) -> list[Spec]:
    return [table4_spec(scale, pip, labels, seed) for pip, labels, _ in TABLE4 for seed in scale.seeds]


def seeds_of(values: Sequence[float], digits: str = ".2g") -> str:
    return ", ".join(f"{v:{digits}}" for v in values)


def table4(runs: Runs, pictures: Path) -> list[str]:
    rows = []
    for pip, labels, paper in TABLE4:
        ends = [runs.result(table4_spec(runs.scale, pip, labels, seed))["end"] for seed in runs.scale.seeds]
        cells = [
            f"{seeds_of([e[key] for e in ends], digits)} ({'-' if p is None else p})"
            for key, digits, p in zip(("res_px", "rot_mean", "rot_median"), (".2f", ".2g", ".2g"), paper[:3], strict=True)
        ]
        rows.append(["yes" if pip else "no", "yes" if labels else "no", *cells, seeds_of([e["coverage"] for e in ends], ".0%")])
    head = ["PIP", "warm-up labels", "Res. 0.5, px", "Rot. mean", "Rot. median", "coverage"]
    note = "Spliceosome, -10 dB, VoxelGrid_R; three seeds (the paper's in brackets; it reports a failure for the first row)."
    return ["## Table 4: PIP and warm-up labels with VoxelGrid_R", "", note, "", *table(head, rows)]


# --- Figures 2, 3, 8: PIP with FourierNet -------------------------------------------------------------------------------
PANELS = [("rot_mean", "Rot. mean", False), ("rot_median", "Rot. median", True), ("res_px", "FSC 0.5, px", False)]
PANELS += [("coverage", "coverage", False)]


def pip_spec(scale: Scale, preset: str, pip: bool, seed: int, encoder: str = "", images: str = "spliceosome-10") -> Spec:
    """PIP on or off, everything else the same; an encoder other than the scale's own sees fewer images."""
    changes: dict[str, Any] = {} if pip else {"ace__pip": False}
    if encoder:
        steps = 1500 if preset == "paper-voxel" else 1000
        changes |= {"ace__encoder": encoder, "ace__batch": 64, "ace__steps": steps}
    return spec(scale, images, preset, seed, **changes)


def fig2_specs(scale: Scale) -> list[Spec]:
    return [pip_spec(scale, "paper-fourier", pip, seed) for pip in (True, False) for seed in scale.seeds]


def fig2(runs: Runs, pictures: Path) -> list[str]:
    groups = {
        name: [runs.result(pip_spec(runs.scale, "paper-fourier", pip, seed))["history"] for seed in runs.scale.seeds]
        for name, pip in (("with PIP", True), ("without PIP", False))
    }
    return [
        "## Figure 2: PIP with FourierNet, over the training",
        "",
        "Spliceosome, -10 dB, three seeds. The paper ends at a mean Rot. of 0.002 with and 1.98 without PIP.",
        "",
        draw.write(pictures / "figure2.png", draw.curves(groups, PANELS)),
    ]


def fig3(runs: Runs, pictures: Path) -> list[str]:
    maps = [
        (name, torch.from_numpy(runs.arrays(pip_spec(runs.scale, "paper-fourier", pip, 1))["rotation"]))
        for name, pip in (("without PIP", False), ("with PIP", True))
    ]
    return [
        "## Figure 3: predicted viewing directions",
        "",
        "Spliceosome, -10 dB, FourierNet. The paper has a coverage of about 20 % without PIP, the whole sphere with it.",
        "",
        draw.write(pictures / "figure3.png", draw.view_maps(maps)),
    ]


def fig8(runs: Runs, pictures: Path) -> list[str]:
    found = [
        (name, runs.arrays(pip_spec(runs.scale, "paper-fourier", pip, 1))["error"])
        for name, pip in (("without PIP", False), ("with PIP", True))
    ]
    return [
        "## Figure 8: rotation errors",
        "",
        draw.write(pictures / "figure8.png", draw.error_histograms(found)),
    ]


# --- Figures 4, 5, 6: maps ----------------------------------------------------------------------------------------------
def fig4_specs(scale: Scale) -> list[Spec]:
    return [table4_spec(scale, pip, True, 1) for pip in (False, True)]


def fig4(runs: Runs, pictures: Path) -> list[str]:
    without, with_pip = (runs.arrays(s) for s in fig4_specs(runs.scale))
    maps = [("without PIP", without["volume"], "Blues_r"), ("with PIP", with_pip["volume"], "Blues_r")]
    maps += [("truth", with_pip["true_volume"], "gray")]
    picture = draw.write(pictures / "figure4.png", draw.surfaces(maps))
    return ["## Figure 4: spliceosome, -10 dB, VoxelGrid_R, with warm-up labels", "", picture]


def fig5_specs(scale: Scale) -> list[Spec]:
    return [spec(scale, "spike-200", "paper-fourier"), spec(scale, "80s", "paper-voxel", half=1)]


def fig5(runs: Runs, pictures: Path) -> list[str]:
    spike, ribosome = (runs.arrays(s) for s in fig5_specs(runs.scale))
    maps = [("spike, FourierNet", spike["volume"], "Blues_r"), ("truth", spike["true_volume"], "gray")]
    maps += [("80S, voxels, half", ribosome["volume"], "Blues_r"), ("truth", ribosome["true_volume"], "gray")]
    picture = draw.write(pictures / "figure5.png", draw.surfaces(maps))
    return ["## Figure 5: spike (200 dB) and 80S (half of the images)", "", picture]


def fig6_specs(scale: Scale) -> list[Spec]:
    return [spec(scale, "spliceosome-10", preset) for preset in ("cryoai", "paper-fourier")]


def fig6(runs: Runs, pictures: Path) -> list[str]:
    cryoai, ours = (runs.arrays(s) for s in fig6_specs(runs.scale))
    maps = [("cryoAI mode", cryoai["volume"], "Oranges_r"), ("ACE-EM, FourierNet", ours["volume"], "Blues_r")]
    maps += [("truth", ours["true_volume"], "gray")]
    picture = draw.write(pictures / "figure6.png", draw.surfaces(maps))
    return ["## Figure 6: spliceosome, -10 dB", "", picture]


# --- Figure 7: images -----------------------------------------------------------------------------------------------------
FIG7 = ("spliceosome-200", "spliceosome-10", "spliceosome-20")


def fig7_specs(scale: Scale) -> list[Spec]:
    return [spec(scale, images, "paper-fourier") for images in FIG7]


def fig7(runs: Runs, pictures: Path) -> list[str]:
    specs = fig7_specs(runs.scale)
    rows = [(DATASETS[s.images].title.split(", ")[1], example_images(s, runs.arrays(s), runs.images(s.images))) for s in specs]
    titles = ["input", "decoder's projection", "with CTF, shift and noise"]
    picture = draw.write(pictures / "figure7.png", draw.image_rows(rows, titles))
    return ["## Figure 7: input, projection, prediction (spliceosome, FourierNet)", "", picture]


# --- beyond the paper's own: both decoders and encoders; eq. 6 against eq. 7; the fast recipe ------------------------------
ABLATION = [(preset, encoder) for preset in ("paper-voxel", "paper-fourier") for encoder in ("", "resnet")]
"""'' is the scale's own encoder: the Fourier encoder on a CPU, the ResNet-18 at the paper's size."""


def ablation_seeds(scale: Scale, encoder: str) -> tuple[int, ...]:
    return scale.seeds[:1] if encoder else scale.seeds


def ablation_cases(scale: Scale) -> list[tuple[str, str]]:
    return ABLATION if scale.name == "cpu" else [case for case in ABLATION if not case[1]]


def ablation_specs(scale: Scale) -> list[Spec]:
    return [
        pip_spec(scale, preset, pip, seed, encoder)
        for preset, encoder in ablation_cases(scale)
        for seed in ablation_seeds(scale, encoder)
        for pip in (True, False)
    ]


def ablation(runs: Runs, pictures: Path) -> list[str]:
    rows, groups = [], {}
    for preset, encoder in ablation_cases(runs.scale):
        for pip in (True, False):
            seeds = ablation_seeds(runs.scale, encoder)
            results = [runs.result(pip_spec(runs.scale, preset, pip, seed, encoder)) for seed in seeds]
            ends = [r["end"] for r in results]
            settings = dict(results[0]["spec"]["settings"])
            name = {"paper-voxel": "VoxelGrid_R", "paper-fourier": "FourierNet"}[preset]
            network = encoder or settings.get("ace.encoder", "resnet")
            cells = [seeds_of([e[k] for e in ends], d) for k, d in (("rot_mean", ".2g"), ("rot_median", ".2g"))]
            cells += [seeds_of([e["res_px"] for e in ends], ".2f"), seeds_of([e["coverage"] for e in ends], ".0%")]
            visits, milliseconds = results[0]["history"][-1]["visits"], results[0]["ms_per_step"]
            cells += [f"{visits / 1000:.0f}k", f"{milliseconds:.0f} ({results[0]['batch']})"]
            rows.append([name, network, "yes" if pip else "no", *cells])
            groups[f"{name}, {network}, PIP {'on' if pip else 'off'}"] = [r["history"] for r in results]
    head = ["decoder", "encoder", "PIP", "Rot. mean", "Rot. median", "Res. 0.5, px", "coverage", "visits", "ms a step (batch)"]
    lines = ["## PIP on and off, both decoders, both encoders", "", "Spliceosome, -10 dB; a number for each seed.", ""]
    lines += table(head, rows)
    for n, preset in enumerate(("VoxelGrid_R", "FourierNet")):
        some = {name: histories for name, histories in groups.items() if name.startswith(preset)}
        lines += ["", draw.write(pictures / f"pip-{('voxels', 'fouriernet')[n]}.png", draw.curves(some, PANELS))]
    return lines


def symmetric_spec(scale: Scale, loss: str, seed: int) -> Spec:
    changes: dict[str, Any] = {"ace__symmetric_loss": loss}
    if scale.name == "cpu":
        changes |= {"ace__hypotheses": 1, "ace__mates": False, "ace__batch": 64, "ace__steps": 3000}
    return spec(scale, "spike-200", "paper-voxel", seed, **changes)


def symmetric_specs(scale: Scale) -> list[Spec]:
    return [symmetric_spec(scale, loss, seed) for loss in ("half-turn", "generalised") for seed in scale.seeds]


def symmetric(runs: Runs, pictures: Path) -> list[str]:
    rows, groups = [], {}
    for loss, title in (("half-turn", "eq. 6"), ("generalised", "eq. 7")):
        results = [runs.result(symmetric_spec(runs.scale, loss, seed)) for seed in runs.scale.seeds]
        folds = [three_fold(runs.arrays(symmetric_spec(runs.scale, loss, seed))) for seed in runs.scale.seeds]
        ends = [r["end"] for r in results]
        cells = [seeds_of([e[k] for e in ends], d) for k, d in (("rot_mean", ".2g"), ("rot_median", ".2g"))]
        cells += [seeds_of([e["res_px"] for e in ends], ".2f"), seeds_of([e["coverage"] for e in ends], ".0%")]
        rows.append([title, *cells, seeds_of(folds, ".0%"), f"{results[0]['cpu_s']:.0f}"])
        groups[title] = [r["history"] for r in results]
    head = ["loss", "Rot. mean", "Rot. median", "Res. 0.5, px", "coverage", "off by a third of a turn", "CPU s"]
    note = (
        "Spike, 200 dB, VoxelGrid_R with PIP, one hypothesis, no mates; three seeds. Off by a third of a turn: share of the "
        "poses whose error is a turn of 105 to 135 degrees (of random poses: 25 %)."
    )
    picture = draw.write(pictures / "symmetric.png", draw.curves(groups, PANELS))
    return ["## Generalised symmetric loss (eq. 7) against eq. 6", "", note, "", *table(head, rows), "", picture]


def three_fold(arrays: dict[str, np.ndarray]) -> float:
    """Share of the poses whose error is a turn of about 120 degrees."""
    angle = 2 * np.degrees(np.arcsin(np.sqrt(np.clip(arrays["error"] / 8, 0, 1))))
    return float(((angle > 105) & (angle < 135)).mean())


def fast_specs(scale: Scale) -> list[Spec]:
    return [fast_spec(scale), *paper_one_hypothesis(scale)]


def fast_spec(scale: Scale) -> Spec:
    changes: dict[str, Any] = {"ace__pip_weight": 0.3, "final_box": 32}
    if scale.name == "cpu":
        changes |= {"ace__steps": 2000}
    return Spec("spliceosome-10", "fast", 1, tuple(sorted((k.replace("__", "."), v) for k, v in changes.items())))


def paper_one_hypothesis(scale: Scale) -> list[Spec]:
    """paper-voxel and cryoai with one hypothesis and their own symmetric losses, as published but for the encoder and size."""
    if scale.name != "cpu":
        return [spec(scale, "spliceosome-10", preset) for preset in ("paper-voxel", "cryoai")]
    one = {"ace__hypotheses": 1, "ace__mates": False, "ace__march": 0.0}
    voxel = spec(
        scale,
        "spliceosome-10",
        "paper-voxel",
        **one,
        ace__symmetric_loss="generalised",
        ace__label_steps=500,
        ace__batch=64,
        ace__steps=5000,
    )
    return [voxel, spec(scale, "spliceosome-10", "cryoai", **one, ace__symmetric_loss="half-turn")]


def fast(runs: Runs, pictures: Path) -> list[str]:
    groups = {}
    for name, run in zip(("fast (stage 1)", "paper-voxel", "cryoai"), fast_specs(runs.scale), strict=True):
        groups[name] = [runs.result(run)["history"]]
    rows = []
    for name, (history,) in groups.items():
        end = history[-1]
        cells = [f"{end['visits'] / 1000:.0f}k", f"{end['cpu_s']:.0f}", f"{end['rot_mean']:.2g}", f"{end['rot_median']:.2g}"]
        rows.append([name, *cells, f"{end['within_10deg']:.0%}", f"{end['res_px']:.2f}"])
    head = ["recipe", "visits", "CPU s", "Rot. mean", "Rot. median", "within 10 deg", "Res. 0.5, px"]
    panels = [("rot_median", "Rot. median", True), ("within_10deg", "within 10 degrees", False), ("res_px", "FSC 0.5, px", False)]
    pictures_of = [draw.write(pictures / f"fast-{x}.png", draw.curves(groups, panels, x)) for x in ("visits", "cpu_s")]
    return ["## The fast recipe beside the paper's", "", *table(head, rows), "", *pictures_of]


ITEMS = {
    "table1": Item(table1_specs, table1),
    "table2": Item(table2_specs, table2),
    "table4": Item(table4_specs, table4),
    "fig2": Item(fig2_specs, fig2),
    "fig3": Item(lambda scale: fig2_specs(scale)[::3], fig3),
    "fig4": Item(fig4_specs, fig4),
    "fig5": Item(fig5_specs, fig5),
    "fig6": Item(fig6_specs, fig6),
    "fig7": Item(fig7_specs, fig7),
    "fig8": Item(lambda scale: fig2_specs(scale)[::3], fig8),
    "pip": Item(ablation_specs, ablation),
    "symmetric": Item(symmetric_specs, symmetric),
    "fast": Item(fast_specs, fast),
}
