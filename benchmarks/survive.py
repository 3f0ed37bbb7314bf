"""Kill a run with SIGKILL at random times, resume it, and compare its output byte by byte with an undisturbed run.

    python benchmarks/survive.py --kills 20 --seed 1

The run is small (300 simulated images), goes through all stages, and saves a checkpoint every second.
"""

import argparse
import hashlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STRUCTURE = Path(__file__).parents[1] / "examples/data/5nrl_every10th_atom.npz"
SIMULATED = "--n 300 --box 32 --pixel-size 17 --resolution 40 --snr-db 0 --shift-sd 20 --seed 1".split()
SETTINGS = "--ace.steps 60 --search.ab_initio_rounds 4 --starts 2 --predict.steps 150 --checkpoint_s 1".split()
COMPARED = ("volume.mrc", "half1.mrc", "half2.mrc", "volume_sharp.mrc", "mask.mrc", "fsc.csv", "poses.star", "confident.star")
ACE = [sys.executable, "-c", "from ace_em.cli import main; main()"]


def start(data: Path, run: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [*ACE, "reconstruct", str(data / "particles.star"), "-o", str(run), *SETTINGS, *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def digests(run: Path) -> dict[str, str]:
    return {name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in COMPARED}


def last_stage(run: Path) -> str:
    """The last record of the run."""
    if not (run / "metrics.jsonl").exists():
        return "reading images"
    lines = [line for line in (run / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]
    if not lines:
        return "reading images"
    record = json.loads(lines[-1])
    step = record.get("round") or record.get("step") or ""
    return f"{record['stage']} {step}".strip()


def finish(process: subprocess.Popen[bytes]) -> None:
    err = process.communicate()[1]
    # so small a run may not converge, so exit code 3 is accepted
    if process.returncode not in (0, 3):
        raise SystemExit(f"exit code {process.returncode}: {err.decode()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    SETTINGS.extend(["--threads", str(args.threads)])
    chance = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        data, whole = Path(folder) / "data", Path(folder) / "whole"
        subprocess.run([*ACE, "simulate", str(STRUCTURE), "-o", str(data), *SIMULATED], check=True, stdout=subprocess.DEVNULL)
        began = time.monotonic()
        finish(start(data, whole))
        seconds, expected = time.monotonic() - began, digests(whole)
        print(f"undisturbed: {seconds:.0f} s, seed of the kill times {args.seed}", flush=True)
        different = 0
        for number in range(1, args.kills + 1):
            run, moment = Path(folder) / f"run{number}", chance.uniform(2, seconds)
            process = start(data, run)
            time.sleep(moment)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            stage = last_stage(run)
            finish(start(data, run, "--resume"))
            same = digests(run) == expected
            different += not same
            ended = "same" if same else "DIFFERENT"
            print(f"{number:2d}: killed after {moment:5.1f} s, last record {stage:12s} {ended}", flush=True)
        print(f"{args.kills - different} of {args.kills} resumed runs ended with the same bytes")
        sys.exit(different > 0)


if __name__ == "__main__":
    main()
