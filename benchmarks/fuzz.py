"""Give the readers of STAR, .cs and MRC files spoilt input for as long as told, with a new seed in every pass.

    python benchmarks/fuzz.py --minutes 60 --seed 1

A pass is tests/data/test_fuzz.py with ``--examples`` inputs a test; ``--hypothesis-seed`` with the seed of a line repeats it.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def one_pass(seed: int, examples: int) -> subprocess.CompletedProcess[str]:
    # no example database: every pass draws its own, so that its seed repeats it
    options = ["-q", "-p", "no:cacheprovider", "--no-header", f"--hypothesis-seed={seed}", "--hypothesis-verbosity=quiet"]
    environment = os.environ | {"ACE_EM_FUZZ_EXAMPLES": str(examples)}
    command = [sys.executable, "-m", "pytest", "tests/data/test_fuzz.py", *options]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1, help="of the first pass; every further pass adds 1")
    parser.add_argument("--examples", type=int, default=400, help="inputs a test and pass")
    args = parser.parse_args()
    began, seed, failed = time.monotonic(), args.seed, []
    while time.monotonic() - began < 60 * args.minutes:
        done = one_pass(seed, args.examples)
        print(f"[{time.monotonic() - began:.0f} s] seed {seed}: {done.stdout.strip().splitlines()[-1]}", flush=True)
        if done.returncode:
            failed.append(seed)
            print(done.stdout, done.stderr, sep="\n", flush=True)
        seed += 1
    print(f"seeds {args.seed} to {seed - 1}, {args.examples} inputs a test and seed; failed: {failed or 'none'}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
