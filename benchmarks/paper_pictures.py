"""Figures 2 to 8: the runs that each needs, and how it is drawn."""

from pathlib import Path

import paper_draw as draw
import torch
from paper_images import example_images
from paper_items import DATASETS, Scale, spec
from paper_runs import Spec
from paper_shown import PANELS, Item, Runs, pip_spec
from paper_tables import table4_spec


# --- Figures 2, 3, 8: PIP with FourierNet -------------------------------------------------------------------------------
def fig2_specs(scale: Scale) -> list[Spec]:
    return [pip_spec(scale, "paper-fourier", pip, seed) for pip in (True, False) for seed in scale.seeds]


def pair_specs(scale: Scale) -> list[Spec]:
    """One seed, without and with PIP."""
    return [pip_spec(scale, "paper-fourier", pip, 1) for pip in (False, True)]


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
    poses = [torch.from_numpy(runs.arrays(s)["rotation"]) for s in pair_specs(runs.scale)]
    maps = list(zip(("without PIP", "with PIP"), poses, strict=True))
    return [
        "## Figure 3: predicted viewing directions",
        "",
        "Spliceosome, -10 dB, FourierNet. The paper has a coverage of about 20 % without PIP, the whole sphere with it.",
        "",
        draw.write(pictures / "figure3.png", draw.view_maps(maps)),
    ]


def fig8(runs: Runs, pictures: Path) -> list[str]:
    errors = [runs.arrays(s)["error"] for s in pair_specs(runs.scale)]
    found = list(zip(("without PIP", "with PIP"), errors, strict=True))
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
    # the spike fills less of its box
    picture = draw.write(pictures / "figure5.png", draw.surfaces(maps, [0.012, 0.012, 0.05, 0.05]))
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


FIGURES = {
    "fig2": Item(fig2_specs, fig2),
    "fig3": Item(pair_specs, fig3),
    "fig4": Item(fig4_specs, fig4),
    "fig5": Item(fig5_specs, fig5),
    "fig6": Item(fig6_specs, fig6),
    "fig7": Item(fig7_specs, fig7),
    "fig8": Item(pair_specs, fig8),
}
