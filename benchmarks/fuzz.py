"""Fuzz the readers of STAR, .cs and MRC files for a given time, with a new seed in every pass.

    python benchmarks/fuzz.py --minutes 60 --seed 1

A pass runs tests/data/test_fuzz.py with ``--examples`` inputs per test. To repeat a pass, give its seed as ``--hypothesis-seed``.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def one_pass(seed: int, examples: int) -> subprocess.CompletedProcess[str]:
    # no example database, so that the seed alone determines a pass
    options = ["-q", "-p", "no:cacheprovider", "--no-header", f"--hypothesis-seed={seed}", "--hypothesis-verbosity=quiet"]
    environment = os.environ | {"ACE_EM_FUZZ_EXAMPLES": str(examples)}
    command = [sys.executable, "-m", "pytest", "tests/data/test_fuzz.py", *options]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1, help="seed of the first pass; each further pass adds 1")
    parser.add_argument("--examples", type=int, default=400, help="inputs per test and pass")
    args = parser.parse_args()
    began, seed, failed = time.monotonic(), args.seed, []
    while time.monotonic() - began < 60 * args.minutes:
        done = one_pass(seed, args.examples)
        print(f"[{time.monotonic() - began:.0f} s] seed {seed}: {done.stdout.strip().splitlines()[-1]}", flush=True)
        if done.returncode:
            failed.append(seed)
            print(done.stdout, done.stderr, sep="\n", flush=True)
        seed += 1
    print(f"seeds {args.seed} to {seed - 1}, {args.examples} inputs per test and seed; failed: {failed or 'none'}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
