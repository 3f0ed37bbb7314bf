"""Comparisons beyond the paper: decoders and encoders with and without PIP, eq. 6 against eq. 7, and the fast preset."""

from pathlib import Path
from typing import Any

import numpy as np
import paper_draw as draw
from paper_items import SPLICEOSOME, Scale, spec
from paper_runs import Spec
from paper_shown import PANELS, Item, Runs, pip_spec, seeds_of, table

ABLATION = [(preset, encoder) for preset in ("paper-voxel", "paper-fourier") for encoder in ("", "resnet")]
"""'' is the default encoder of the scale: the Fourier encoder for 'cpu', the ResNet-18 for 'paper'."""


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
        changes |= {"ace__hypotheses": 1, "ace__alternatives": False, "ace__batch": 64, "ace__steps": 3000}
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
        cells += [seeds_of([e["within_10deg"] for e in ends], ".0%"), seeds_of(folds, ".0%")]
        rows.append([title, *cells, f"{results[0]['cpu_s']:.0f}"])
        groups[title] = [r["history"] for r in results]
    head = ["loss", "Rot. mean", "Rot. median", "Res. 0.5, px", "coverage", "within 10 deg", "off by a third of a turn"]
    head += ["CPU s"]
    note = (
        "Spike, 200 dB, VoxelGrid_R with PIP, one hypothesis, no half turns; three seeds. Off by a third of a turn: share of the "
        "poses whose error is a turn of 105 to 135 degrees (of random poses: 25 %)."
    )
    picture = draw.write(pictures / "symmetric.png", draw.curves(groups, PANELS))
    return ["## Generalised symmetric loss (eq. 7) against eq. 6", "", note, "", *table(head, rows), "", picture]


def three_fold(arrays: dict[str, np.ndarray]) -> float:
    """Fraction of the poses with a rotation error of about 120 degrees."""
    angle = 2 * np.degrees(np.arcsin(np.sqrt(np.clip(arrays["error"] / 8, 0, 1))))
    return float(((angle > 105) & (angle < 135)).mean())


def fast_specs(scale: Scale) -> list[Spec]:
    return [fast_spec(scale), *paper_one_hypothesis(scale)]


def fast_spec(scale: Scale) -> Spec:
    cpu = {"ace.pip_weight": 0.3, "final_box": 32, "ace.steps": 2000}
    return Spec("spliceosome-10", "fast", 1, tuple(sorted((cpu if scale.name == "cpu" else {"final_box": 128}).items())))


def paper_one_hypothesis(scale: Scale) -> list[Spec]:
    """paper-voxel and cryoai with one hypothesis and their own symmetric losses, but the rates, size and encoder of the scale."""
    if scale.name != "cpu":
        return [spec(scale, "spliceosome-10", preset) for preset in ("paper-voxel", "cryoai")]
    one = {"ace__hypotheses": 1, "ace__alternatives": False, "ace__march": 0.0}
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
    groups: dict[str, list[list[dict[str, float]]]] = {}
    for name, run in zip(("fast, stage 1 alone", "paper-voxel", "cryoai"), fast_specs(runs.scale), strict=True):
        result = runs.result(run)
        edge_angstrom = 128 * SPLICEOSOME["pixel_size"]
        groups[name] = [[h | {"res_angstrom": h["res_px"] * edge_angstrom / result["box"]} for h in result["history"]]]
    groups["fast, all stages"] = [[runs.all_stages("spliceosome-10")]]
    rows = []
    for name, (history,) in groups.items():
        end = history[-1]
        cells = [f"{end['visits'] / 1000:.0f}k", f"{end['cpu_s']:.0f}", f"{end['rot_mean']:.2g}", f"{end['rot_median']:.2g}"]
        rows.append([name, *cells, f"{end['within_10deg']:.1%}", f"{end['res_angstrom']:.1f}"])
    head = ["recipe", "image visits", "CPU s", "Rot. mean", "Rot. median", "within 10 deg", "FSC 0.5, A"]
    keys = [
        ("rot_median", "Rot. median", True),
        ("within_10deg", "within 10 degrees", False),
        ("res_angstrom", "FSC 0.5, A", True),
    ]
    panels = [draw.Panel(key, label, log, x) for x in ("visits", "cpu_s") for key, label, log in keys]
    note = (
        "Spliceosome, -10 dB, the same 5,000 images. `paper-voxel` and `cryoai` in their published form (one hypothesis, eq. 7 "
        "with labels, eq. 6, no marching), with the CPU's box, encoder, rates, beta and numbers of updates; stage 1 of `fast` at "
        "2,000 steps, where its map needs no search; "
        "all stages of `fast` at its default 600 steps and a final box of 64 px, as one point at its end."
    )
    picture = draw.write(pictures / "fast.png", draw.curves(groups, panels, columns=3))
    return ["## The fast recipe beside the paper's", "", note, "", *table(head, rows), "", picture]


EXTRAS = {
    "pip": Item(ablation_specs, ablation),
    "symmetric": Item(symmetric_specs, symmetric),
    "fast": Item(fast_specs, fast),
}
