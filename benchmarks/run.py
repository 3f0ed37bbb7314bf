"""The standing benchmark: simulate the sets, reconstruct them with default options, score them, write a dated table.

    make bench ARGS="--data DATA --seeds 3 --only 5nrl"

DATA holds structures/ (5nrl.npz, 4v6x.npz, 6vyb.pdb.gz) and, for the real set, particles/betagal_empiar10204/. Everything is
run as a user would run it, through the command line.
"""

import argparse
import datetime
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from sets import SETS, SimulatedSet, structure_file

from ace_em.data.particles import Particles

ROOT = Path(__file__).parents[1]
ACE_EM = Path(sys.executable).parent / "ace-em"
BETAGAL = "particles/betagal_empiar10204/particles_clean.star"
TEN_DEGREES = 8 * np.sin(np.radians(5.0)) ** 2


def ace_em(*arguments: str, log: Path) -> dict[str, float]:
    """Run the command; wall and CPU seconds of it, and the largest peak memory (GiB) of any command so far."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    with open(log, "w") as file:
        done = subprocess.run([ACE_EM, *arguments], stdout=file, stderr=subprocess.STDOUT, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if done.returncode != 0:
        raise SystemExit(f"ace-em {' '.join(arguments)}: exit {done.returncode}, see {log}")
    return {"wall_s": time.monotonic() - started, "cpu_s": cpu, "gib": after.ru_maxrss / 2**20}


def starts_used(run: Path) -> int:
    """Random starts that the run needed."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return max(line.get("start", 1) for line in lines)


def simulated_rows(item: SimulatedSet, data: Path, work: Path, seeds: int) -> list[list[str]]:
    """A row per seed: other images, other poses, other start."""
    rows = []
    for seed in range(1, seeds + 1):
        folder = work / f"{item.name.replace(' ', '_').replace(',', '')}_{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        options = [part for key, value in item.options.items() for part in (f"--{key}", str(value))]
        structure = structure_file(item, data, work)
        ace_em(
            "simulate",
            str(structure),
            "-o",
            str(folder),
            *options,
            "--seed",
            str(seed),
            "--overwrite",
            log=folder / "simulate.log",
        )
        run = folder / "run"
        stars = ("--overwrite",) if run.exists() else ()
        cost = ace_em(
            "reconstruct",
            str(folder / "particles.star"),
            "-o",
            str(run),
            "--seed",
            str(seed),
            *stars,
            log=folder / "reconstruct.log",
        )
        ace_em("evaluate", str(run), "--truth", str(folder), log=folder / "evaluate.log")
        e = json.loads((run / "evaluation.json").read_text())
        rows.append(
            [
                item.name,
                str(seed),
                f"{cost['wall_s']:.0f}",
                f"{cost['cpu_s']:.0f}",
                f"{cost['gib']:.1f}",
                str(starts_used(run)),
                f"{e['within_10deg']:.1%}",
                f"{e['rot_median']:.2g}",
                f"{e['rot_mean']:.2g}",
                f"{e['trans']:.3f}",
                f"{e['fsc05_px']:.2f}",
                f"{e['bound_px']:.2f}",
            ]
        )
        print(" | ".join(rows[-1]), flush=True)
        (folder / "particles.mrcs").unlink()
    return rows


def agreement(a: torch.Tensor, b: torch.Tensor, order: int) -> float:
    """Share of particles whose two poses differ by one of ``order`` global rotations, or their mirrors, within 10 degrees.

    For a particle with a point group of that order two independent runs agree only up to the group; the rotations are found
    one after the other, each the one that the most of the remaining particles share.
    """
    best = 0.0
    mirror = torch.diag(torch.tensor([1.0, 1.0, -1.0]))
    for candidate in (b, mirror @ b @ mirror):
        left = torch.ones(len(a), dtype=torch.bool)
        for _ in range(order):
            turns = (candidate[left] @ a[left].mT)[:300]
            errors = (turns[:, None] @ a[left][None] - candidate[left][None]).square().sum((-1, -2))
            turn = turns[(errors < TEN_DEGREES).sum(1).argmax()]
            error = (turn @ a - candidate).square().sum((-1, -2))
            left &= error >= TEN_DEGREES
            if left.sum() == 0:
                break
        best = max(best, 1 - left.float().mean().item())
    return best


def betagal_rows(data: Path, work: Path, seeds: int) -> list[str]:
    """The real set from several starts, and how far the starts agree up to D2."""
    lines, poses = [], []
    for seed in range(1, seeds + 1):
        run = work / f"betagal_{seed}"
        stars = ("--overwrite",) if run.exists() else ()
        cost = ace_em(
            "reconstruct", str(data / BETAGAL), "-o", str(run), "--seed", str(seed), *stars, log=work / f"betagal_{seed}.log"
        )
        end = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
        found = Particles.open(run / "poses.star", project_root=(data / BETAGAL).parent).poses()
        assert found is not None
        poses.append(found.rotation)
        lines.append(f"- seed {seed}: {cost['wall_s']:.0f} s wall, {cost['cpu_s']:.0f} s CPU; {end['message']}")
        print(lines[-1], flush=True)
    for i in range(len(poses)):
        for j in range(i):
            share = agreement(poses[i], poses[j], 4)
            lines.append(f"- seeds {j + 1} and {i + 1}: {share:.1%} of the particles within 10 degrees of each other, up to D2")
            print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with structures/ and particles/")
    parser.add_argument("--work", type=Path, default=ROOT / "benchmarks" / "data", help="scratch folder")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="sets whose name contains this; 'betagal' for the real one")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    today = datetime.date.today().isoformat()
    head = ["set", "seed", "wall s", "CPU s", "peak GiB", "starts", "within 10 deg", "Rot. median", "Rot. mean"]
    head += ["Trans. px^2", "FSC 0.5 px", "bound px"]
    only = f" --only '{arguments.only}'" if arguments.only else ""
    command = f'make bench ARGS="--data DATA --seeds {arguments.seeds}{only}"'
    lines = [
        f"# Benchmark of {today}",
        "",
        f"{platform.machine()}, {os.cpu_count()} cores (shared, so times are upper bounds), Python {platform.python_version()}, "
        f"torch {torch.__version__}. Command: `{command}`. Default options throughout; "
        "every seed has its own images, poses and random start.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
    ]
    arguments.out.mkdir(parents=True, exist_ok=True)
    table = arguments.out / f"{today}{'-' + arguments.only.replace(' ', '-') if arguments.only else ''}.md"
    for item in SETS:
        if arguments.only in item.name:
            rows = simulated_rows(item, arguments.data, arguments.work, arguments.seeds)
            lines += ["| " + " | ".join(row) + " |" for row in rows]
            table.write_text("\n".join(lines) + "\n")
    if arguments.only in "betagal" and (arguments.data / BETAGAL).is_file():
        lines += ["", "Beta-galactosidase (EMPIAR-10204, 1,534 real particles, C1):", ""]
        lines += betagal_rows(arguments.data, arguments.work, arguments.seeds)
    table.write_text("\n".join(lines) + "\n")
    print(table)


if __name__ == "__main__":
    main()
