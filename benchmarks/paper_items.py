"""The runs behind the tables and figures of the paper: data sets, methods and scales."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paper_runs import Spec
from sets import ctf_star, fresh


@dataclass(frozen=True)
class Dataset:
    """A simulated set. ``pip_weight`` is the paper's beta at this SNR (section 4.1; the middle of its range at -10 dB)."""

    title: str
    structure: str
    simulate: dict[str, float]
    pip_weight: float
    ctf_from: str = ""


SPLICEOSOME = {"box": 128, "pixel_size": 4.25}
SPIKE = {"box": 128, "pixel_size": 3.0}
DATASETS = {
    "spliceosome-200": Dataset("spliceosome, 200 dB", "structures/5nrl.npz", SPLICEOSOME | {"snr_db": 200}, 0.9),
    "spliceosome-10": Dataset("spliceosome, -10 dB", "structures/5nrl.npz", SPLICEOSOME | {"snr_db": -10}, 0.07),
    "spliceosome-20": Dataset(
        "spliceosome, -20 dB, no shifts", "structures/5nrl.npz", SPLICEOSOME | {"snr_db": -20, "shift_sd": 0}, 0.05
    ),
    "spike-200": Dataset("spike, 200 dB", "structures/6vyb.pdb.gz", SPIKE | {"snr_db": 200}, 0.9),
    "spike-10": Dataset("spike, -10 dB", "structures/6vyb.pdb.gz", SPIKE | {"snr_db": -10}, 0.07),
    "80s": Dataset(
        "80S (4V6X, CTFs of EMPIAR-10028), -10 dB",
        "structures/4v6x.npz",
        {"box": 128, "pixel_size": 3.77, "snr_db": -10},
        0.07,
        "poses_ctf/empiar10028_ctf.npz",
    ),
}
METHODS = {"ours (V)": "paper-voxel", "ours (F)": "paper-fourier", "cryoAI": "cryoai", "CryoPoseNet": "cryoposenet"}


@dataclass(frozen=True)
class Scale:
    """Size of the runs: number of images per set, and changes to the presets per decoder."""

    name: str
    n: int
    voxel: dict[str, Any] = field(default_factory=dict)
    fourier: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (1, 2, 3)
    device: str = "cpu"
    pip_weight: float | None = None
    """Overrides the weight of the data sets if given."""

    def settings(self, preset: str) -> dict[str, Any]:
        return self.fourier if preset in ("paper-fourier", "cryoai") else self.voxel


# settings for minutes on a CPU: 32 px, the Fourier encoder with four hypotheses, frequency marching, fewer and smaller
# updates; the same for every method, so the methods differ only as their presets do
CPU: dict[str, Any] = {
    "final_box": 32,
    "ace.encoder": "fourier",
    "ace.hypotheses": 4,
    "ace.alternatives": True,
    "ace.march": 0.6,
    "ace.last_band": 9.0,
    "ace.max_shift": 0.125,
    "ace.shift_weight": 0.01,
    "ace.schedule": "cosine",
    "ace.warmup_steps": 50,
    "ace.lr_encoder": 1e-3,
    "ace.batch": 256,
}
# half turns serve the same purpose as eq. 6 and eq. 7, which are compared separately, with one hypothesis and no half turns
CPU_VOXEL = CPU | {"ace.steps": 1500, "ace.label_steps": 0, "ace.symmetric_loss": "none"}
CPU_FOURIER = CPU | {
    "ace.steps": 600,
    "ace.fouriernet.projector": "lattice",
    "ace.fouriernet.lr": 2e-4,
    "ace.symmetric_loss": "none",
}
SCALES = {
    "cpu": Scale("cpu", 5000, CPU_VOXEL, CPU_FOURIER, pip_weight=0.3),
    "paper": Scale("paper", 50000, {"final_box": 128}, {"final_box": 128}, device="auto"),
}


def spec(scale: Scale, images: str, preset: str, seed: int = 1, half: int = 0, **changes: Any) -> Spec:
    """A preset on a data set at a scale. In the names of ``changes``, two underscores stand for the dot (``ace__pip``)."""
    weight = DATASETS[images].pip_weight if scale.pip_weight is None else scale.pip_weight
    settings = scale.settings(preset) | {"ace.pip_weight": weight}
    settings |= {name.replace("__", "."): value for name, value in changes.items()}
    return Spec(images, preset, seed, tuple(sorted(settings.items())), half)


def simulate_arguments(name: str, scale: Scale, data: Path, out: Path) -> list[str]:
    """Arguments of ``ace-em simulate`` for a set."""
    item = DATASETS[name]
    arguments = [str(data / item.structure), "-o", str(fresh(out)), "--n", str(scale.n), "--seed", "1", "--overwrite"]
    for key, value in item.simulate.items():
        arguments += [f"--{key}", f"{value:g}"]
    if item.ctf_from:
        arguments += ["--ctf", str(ctf_star(data / item.ctf_from, scale.n, 1, out / "ctf.star"))]
    return arguments
