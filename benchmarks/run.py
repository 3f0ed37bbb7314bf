"""The standing benchmark: simulate sets, reconstruct and score them, and write a dated table.

    make bench ARGS="--data DATA --seeds 3 --only '5nrl -10 dB'"

DATA holds structures/, poses_ctf/ and particles/. Everything is run through the command line, as a user would, with
default options except those shown in the table. For other programs on the same images see peers/compare.py (``--peers``).
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from sets import REAL, SETS, RealSet, SimulatedSet, fresh, simulate_options

from ace_em.data.particles import Particles

ROOT = Path(__file__).parents[1]
ACE_EM = Path(sys.executable).parent / "ace-em"
TEN_DEGREES = 8 * np.sin(np.radians(5.0)) ** 2
HEAD = ["set", "seed", "exit", "wall s", "CPU s", "peak GiB", "starts", "within 10 deg", "Rot. median", "Rot. mean"]
HEAD += ["Trans. px^2", "FSC 0.5 px", "bound px", "over bound", "half-maps 0.143 px", "goal"]


def ace_em(arguments: list[str], log: Path) -> dict[str, float]:
    """Run the command; return exit code, wall and CPU seconds, and peak memory in GiB. Exit code 3 means not converged."""
    started = time.monotonic()
    with open(log, "w") as file:
        process = subprocess.Popen([ACE_EM, *arguments], stdout=file, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    process.returncode = code
    if code not in (0, 3):
        raise SystemExit(f"ace-em {' '.join(arguments)}: exit {code}, see {log}")
    cpu = used.ru_utime + used.ru_stime
    return {"exit": code, "wall_s": time.monotonic() - started, "cpu_s": cpu, "gib": used.ru_maxrss / 2**20}


def records(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def options(settings: dict[str, str]) -> list[str]:
    return [part for key, value in settings.items() for part in (f"--{key}", value)]


def simulated_row(item: SimulatedSet, images: Path, work: Path, seed: int) -> list[str]:
    """Reconstruct and score one set."""
    run = work / f"{''.join(c if c.isalnum() else '_' for c in item.name)}_{seed}"
    shutil.rmtree(run, ignore_errors=True)
    arguments = ["reconstruct", str(images / "particles.star"), "-o", str(run), "--seed", str(seed)]
    cost = ace_em([*arguments, *options(item.reconstruct)], run.with_suffix(".log"))
    ace_em(["evaluate", str(run), "--truth", str(images)], run.with_suffix(".evaluate.log"))
    e = json.loads((run / "evaluation.json").read_text())
    log = records(run)
    pixel_size = e["fsc05_angstrom"] / e["fsc05_px"]
    return [
        item.name,
        str(seed),
        f"{cost['exit']:.0f}",
        f"{cost['wall_s']:.0f}",
        f"{cost['cpu_s']:.0f}",
        f"{cost['gib']:.1f}",
        str(sum(line["stage"] == "start" for line in log)),
        f"{e['within_10deg']:.2%}",
        f"{e['rot_median']:.2g}",
        f"{e['rot_mean']:.2g}",
        f"{e['trans']:.3f}",
        f"{e['fsc05_px']:.3f}",
        f"{e['bound_px']:.3f}",
        f"{e['fsc05_px'] / e['bound_px'] - 1:+.1%}",
        f"{log[-1]['resolution_angstrom'] / pixel_size:.2f}",
        item.goal,
    ]


def agreement(a: torch.Tensor, b: torch.Tensor, order: int) -> float:
    """Fraction of particles whose two poses agree within 10 degrees up to one of ``order`` global rotations, on either hand.

    Two independent runs of a particle with a point group of that order agree only up to the group. The rotations are found
    one after the other, each as the most frequent one among the remaining particles.
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


def real_rows(item: RealSet, data: Path, work: Path, seeds: int) -> list[str]:
    """A real set from several seeds, and the agreement of the poses up to the point group."""
    lines, poses = [], []
    for seed in range(1, seeds + 1):
        run = work / f"{''.join(c if c.isalnum() else '_' for c in item.name)}_{seed}"
        shutil.rmtree(run, ignore_errors=True)
        arguments = ["reconstruct", str(data / item.particles), "-o", str(run), "--seed", str(seed)]
        cost = ace_em([*arguments, *options(item.reconstruct)], run.with_suffix(".log"))
        end = records(run)[-1]
        found = Particles.open(run / "poses.star", project_root=(data / item.particles).parent).poses()
        assert found is not None
        poses.append(found.rotation)
        lines.append(
            f"- {item.name}, seed {seed}: exit {cost['exit']:.0f}, {cost['wall_s']:.0f} s wall, {cost['cpu_s']:.0f} s CPU; "
            f"half-maps FSC 0.143 at {end['resolution_angstrom']:.2f} A in the ball, {end['masked_resolution_angstrom']:.2f} A "
            f"in the mask (phase-randomised); B {end['b_factor']:.0f} A^2. {end['message']}"
        )
        print(lines[-1], flush=True)
    for i in range(len(poses)):
        for j in range(i):
            share = agreement(poses[i], poses[j], item.group_order)
            lines.append(f"- {item.name}, seeds {j + 1} and {i + 1}: {share:.1%} of the poses within 10 degrees up to the group")
            print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with structures/, poses_ctf/ and particles/")
    parser.add_argument("--work", type=Path, default=ROOT / "benchmarks" / "data", help="scratch folder")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="sets whose name contains this")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--peers", default="", help="'relion,cryodrgn': compare on the 5nrl -10 dB images of seed 1")
    parser.add_argument("--limit", type=float, default=3600, help="seconds for each peer")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    today = datetime.date.today().isoformat()
    label = "".join(c if c.isalnum() else "-" for c in arguments.only)
    table = arguments.out / f"{today}{'-' + label if label else ''}.md"
    only = f" --only '{arguments.only}'" if arguments.only else ""
    lines = [
        f"# Benchmark of {today}",
        "",
        f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores (shared, so times are upper bounds), Python "
        f"{platform.python_version()}, torch {torch.__version__}. Command: "
        f'`make bench ARGS="--data DATA --seeds {arguments.seeds}{only}"`. Default options but for the final box and the '
        "point group in the set's name; every seed has its own images, poses and random start. The bound is the map of the same "
        "images at their true poses, without symmetry; 2 px is Nyquist. Exit 3: the run says itself that it did not converge.",
        "",
        "| " + " | ".join(HEAD) + " |",
        "|" + "---|" * len(HEAD),
    ]
    chosen = [item for item in SETS if arguments.only in item.name]
    for seed in range(1, arguments.seeds + 1):
        for name in dict.fromkeys(item.images for item in chosen):
            mine = [item for item in chosen if item.images == name]
            images = fresh(arguments.work / f"{name}_{seed}")
            ace_em(["simulate", *simulate_options(mine[0], arguments.data, images, seed)], images / "simulate.log")
            for item in mine:
                row = simulated_row(item, images, arguments.work, seed)
                print(" | ".join(row), flush=True)
                lines.append("| " + " | ".join(row) + " |")
                table.write_text("\n".join(lines) + "\n")
            if not (arguments.peers and seed == 1):
                shutil.rmtree(images)
    real = [item for item in REAL if arguments.only in item.name and (arguments.data / item.particles).is_file()]
    for real_item in real:
        lines += ["", *real_rows(real_item, arguments.data, arguments.work, arguments.seeds)]
        table.write_text("\n".join(lines) + "\n")
    if arguments.peers:
        compare(arguments, table)
    print(table)


def compare(arguments: argparse.Namespace, table: Path) -> None:
    """Run other programs on the images of one set at 64 px, by peers/compare.py."""
    item = next(s for s in SETS if s.name == "5nrl -10 dB, 64 px")
    images = fresh(arguments.work / f"{item.images}_peers")
    ace_em(["simulate", *simulate_options(item, arguments.data, images, 1)], images / "simulate.log")
    command = [sys.executable, str(ROOT / "benchmarks" / "peers" / "compare.py"), str(images), "--crop", "64"]
    command += ["--limit", str(arguments.limit), "--diameter", "380", "--peers", f"ace-em,{arguments.peers}"]
    subprocess.run([*command, "--out", str(table.with_name(f"{table.stem}-peers.md"))], check=True)


if __name__ == "__main__":
    main()
