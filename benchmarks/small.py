r"""Small and nearly spherical particles: simulated apoferritin (octahedral) and haemoglobin (64 kDa), reconstructed and scored.

    python benchmarks/small.py --data DATA --work WORK [--only "apoferritin -10 dB"] [--symmetry C1] [--seed 1] [-- OPTIONS]

DATA holds structures/5ni1.cif. The 24-mer of apoferritin is built from benchmarks/1fha_ca.txt. OPTIONS go to `ace-em
reconstruct`. Printed for each set: the fraction of poses within 10 degrees of the truth, up to the particle's point group
and the hand, the number of starts, what the map explains of held-out images, CPU seconds, and the verdict.
"""

import argparse
import json
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ace_em.data.particles import Particles
from ace_em.maths.point_group import point_group
from ace_em.metrics.alignment import align_poses, apply_frame, nearest_estimate
from ace_em.metrics.pose_error import pose_error
from ace_em.run.evaluation import matched_poses

CHAIN = Path(__file__).with_name("1fha_ca.txt")
PEPTIDE = 21
"""Electrons of C, O and N between two C-alphas."""
# heavy atoms of a side chain, and the distance of their centre from the C-alpha in Angstrom
SIDE_CHAIN = {
    **{"G": (0, 0.0), "A": (1, 1.5), "S": (2, 1.9), "C": (2, 2.0), "T": (3, 2.0), "V": (3, 2.0), "P": (3, 1.9), "I": (4, 2.3)},
    **{"L": (4, 2.6), "D": (4, 2.5), "N": (4, 2.5), "M": (4, 3.0), "E": (5, 3.1), "Q": (5, 3.1), "K": (5, 3.5), "H": (6, 3.1)},
    **{"F": (7, 3.4), "R": (7, 4.1), "Y": (8, 3.8), "W": (10, 3.9)},
}


@dataclass(frozen=True)
class Set:
    """A simulated set: pixel size and resolution in Angstrom, SNR in dB; true point group, and that of the reconstruction."""

    name: str
    pixel_size: float
    resolution: float
    snr_db: float
    group: str
    imposed: str


SETS = [Set(f"apoferritin {snr} dB", 3, 6, snr, "O", "O") for snr in (0, -5, -10)]
SETS += [Set(f"haemoglobin {snr} dB", 2, 4, snr, "C2", "C1") for snr in (-10, -15)]


def apoferritin() -> tuple[np.ndarray, np.ndarray]:
    """Positions (n, 3) in Angstrom and electrons (n,) of the 24-mer: C-alphas, peptides, and side chains as two points each."""
    rows = [line.split() for line in CHAIN.read_text().splitlines() if not line.startswith("#")]
    alpha = np.array([[float(x) / 10 for x in row[1:]] for row in rows])
    padded = np.concatenate([alpha[:1], alpha, alpha[-1:]])
    outward = 2 * alpha - padded[:-2] - padded[2:]
    outward /= np.linalg.norm(outward, axis=1, keepdims=True)
    n_atoms, distance = (np.array(values) for values in zip(*(SIDE_CHAIN[row[0]] for row in rows), strict=True))
    points = [(alpha, np.full(len(alpha), 6)), ((alpha[1:] + alpha[:-1]) / 2, np.full(len(alpha) - 1, PEPTIDE))]
    for factor in (0.65, 1.35):
        points.append((alpha + factor * distance[:, None] * outward, np.round(3.3 * n_atoms).astype(int)))
    chain, electrons = (np.concatenate(values) for values in zip(*points, strict=True))
    group = point_group("O").numpy()
    return (chain @ group.transpose(0, 2, 1)).reshape(-1, 3), np.tile(electrons, len(group))


def ace_em(*args: object) -> int:
    return subprocess.run([sys.executable, "-m", "ace_em", *map(str, args)]).returncode


def simulated(item: Set, data: Path, work: Path, n: int) -> Path:
    """Folder of a simulated set, made if it is not there."""
    structure, out = data / "structures" / "5ni1.cif", work / item.name.replace(" ", "_")
    if item.group == "O":
        structure = work / "apoferritin.npz"
        coords, electrons = apoferritin()
        np.savez(structure, coords=coords, Z=electrons)
    if not (out / "truth.star").exists():
        image = "--n", n, "--box", 64, "--pixel-size", item.pixel_size, "--resolution", item.resolution, "--snr-db", item.snr_db
        ace_em("simulate", structure, "-o", out, *image, "--shift-sd", 5, "--seed", 1, "--overwrite")
    return out


def within_10deg(run: Path, truth: Path, group: str) -> float:
    """Fraction of the poses of a run within 10 degrees of the truth, up to ``group`` about the axes of the truth."""
    found, true, _ = matched_poses(
        Particles.open(run / "poses.star", project_root=truth), Particles.open(truth / "truth.star", project_root=truth)
    )
    copies = point_group(group).float()
    # the axes are those of the truth, so it is the truth that is brought to the poses found
    frame = align_poses(true, found, copies)
    return pose_error(apply_frame(nearest_estimate(true, found, frame, copies), frame), found).within_10deg


def summary(run: Path) -> str:
    """Starts, explained share of held-out images and verdict, from metrics.jsonl."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    judged = [r for r in rows if r["stage"] == "start"]
    starts = "; ".join(f"{r['explained']:.0%} (expected {r['expected']:.0%}), z {r['against_null_z']:.0f}" for r in judged)
    converged = next((r["converged"] for r in reversed(rows) if "converged" in r), None)
    return f"{len(judged)} starts ({starts}), {'converged' if converged else 'not converged'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--symmetry", default="", help="point group of the reconstruction; default: that of the particle")
    parser.add_argument("--n", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("options", nargs="*")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for item in (s for s in SETS if args.only in s.name):
        truth, symmetry = simulated(item, args.data, args.work, args.n), args.symmetry or item.imposed
        name = "_".join([truth.name, symmetry, str(args.seed), *args.options]).replace("/", "-")
        run, before = args.work / "runs" / name, resource.getrusage(resource.RUSAGE_CHILDREN)
        options = "--symmetry", symmetry, "--seed", args.seed, "--threads", 1, "--predict.steps", 0, *args.options
        code = ace_em("reconstruct", truth / "particles.star", "-o", run, *options)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
        right = within_10deg(run, truth, item.group)
        print(f"RESULT {item.name}, {symmetry}: {right:.2%} within 10 degrees, {summary(run)}, exit {code}, {seconds:.0f} s CPU")


if __name__ == "__main__":
    main()
