"""Announced memory of runs of several sizes, compared with their peak memory.

    python benchmarks/memory.py --folder DIR

The runs are short and do not converge; peak memory does not depend on the length of a run.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

STRUCTURE = Path(__file__).parents[1] / "examples/data/5nrl_every10th_atom.npz"
ACE = [sys.executable, "-c", "from ace_em.cli import main; main()"]
# images, their box, options
RUNS: tuple[tuple[int, int, list[str]], ...] = (
    (300, 32, []),
    (2000, 64, []),
    (2000, 96, []),
    (1500, 128, []),
    (4000, 128, ["--final-box", "64"]),
    (2000, 128, ["--memory", "0.05"]),
    (300, 200, ["--final-box", "200"]),
    (200, 256, ["--final-box", "256"]),
)
SHORT = (
    "--ace.steps 20 --search.ab_initio_rounds 2 --search.max_rounds 2 --refine.max_rounds 2 --predict.steps 20 --starts 1".split()
)
SHORT += "--search.spacing 2.5 --overwrite --quiet".split()


def peak_gib(command: list[str]) -> float:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) not in (0, 3):
        raise SystemExit(f"{' '.join(command)}: exit code {os.waitstatus_to_exitcode(status)}")
    return usage.ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    args = parser.parse_args()
    print("| images | box | options | announced, GiB | peak, GiB | ratio |\n|---|---|---|---|---|---|")
    for n, box, options in RUNS:
        data, run = args.folder / f"data{n}-{box}", args.folder / "run"
        if not (data / "particles.star").exists():
            size = ["--n", str(n), "--box", str(box), "--pixel-size", str(544 / box), "--resolution", str(max(12, 1100 / box))]
            subprocess.run([*ACE, "simulate", str(STRUCTURE), "-o", str(data), *size], check=True, stdout=subprocess.DEVNULL)
        peak = peak_gib([*ACE, "reconstruct", str(data / "particles.star"), "-o", str(run), *SHORT, *options])
        begin = next(r for r in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if r["stage"] == "begin")
        announced = begin["memory_gib"]
        print(f"| {n:,} | {box} | {' '.join(options)} | {announced:.2f} | {peak:.2f} | {announced / peak:.2f} |", flush=True)


if __name__ == "__main__":
    main()
