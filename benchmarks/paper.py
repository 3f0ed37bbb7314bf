"""All tables and figures of the ACE-EM paper, with the numbers of the paper for comparison.

    make paper ARGS="--data DATA --only table4"

``--scale cpu`` (default) reduces box, images and steps, so that one table takes minutes and all take hours on two cores;
``--scale paper`` is the published size, for a GPU. Finished runs are kept in the work folder, so runs shared by tables are
trained once, and an interrupted command continues where it stopped.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paper_extras import EXTRAS
from paper_items import SCALES, Scale, simulate_arguments
from paper_pictures import FIGURES
from paper_runs import Spec, save, train_run
from paper_tables import TABLES

from ace_em.config import RunConfig

ITEMS = TABLES | FIGURES | EXTRAS
ROOT = Path(__file__).parents[1]
ACE_EM = Path(sys.executable).parent / "ace-em"


@dataclass(frozen=True)
class Bench:
    """Scale of the runs, and the data and work folders."""

    scale: Scale
    data: Path
    work: Path

    def images(self, name: str) -> Path:
        """Folder of the simulated set, simulated if missing."""
        folder = self.work / f"{name}-{self.scale.n}"
        if not (folder / "volume.mrc").exists():
            arguments = simulate_arguments(name, self.scale, self.data, folder)
            subprocess.run([ACE_EM, "simulate", *arguments], check=True, capture_output=True)
        return folder

    def result(self, spec: Spec) -> dict[str, Any]:
        """Scores of a run, trained if missing."""
        path = self.work / f"{spec.key()}.json"
        if not path.exists():
            print(f"training {spec}", flush=True)
            save(self.work, spec, *train_run(spec, self.images(spec.images), self.scale.device))
        result: dict[str, Any] = json.loads(path.read_text())
        return result

    def all_stages(self, name: str) -> dict[str, float]:
        """Final scores, image visits and CPU seconds of a default command-line run, refined at 64 px."""
        path = self.work / f"all-stages-{name}.json"
        if not path.exists():
            run, images = self.work / f"all-stages-{name}", self.images(name)
            before = os.times()
            options = ["-o", run, "--overwrite", "--final_box", "64", "--threads", str(torch.get_num_threads())]
            subprocess.run([ACE_EM, "reconstruct", images / "particles.star", *options], check=True, capture_output=True)
            after = os.times()
            subprocess.run([ACE_EM, "evaluate", run, "--truth", images], check=True, capture_output=True)
            found = json.loads((run / "evaluation.json").read_text())
            cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
            cost = {"visits": visits(run, self.scale.n), "cpu_s": cpu_s, "res_angstrom": found["fsc05_angstrom"]}
            path.write_text(json.dumps(found | cost))
        result: dict[str, float] = json.loads(path.read_text())
        return result

    def arrays(self, spec: Spec) -> dict[str, np.ndarray]:
        """Poses, errors and maps of a run."""
        self.result(spec)
        with np.load(self.work / f"{spec.key()}.npz") as arrays:
            return dict(arrays)


def visits(run: Path, n: int) -> int:
    """Number of image visits of a run, from its settings and records: training, ab initio search, search and refinement."""
    config = RunConfig()
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    count = {stage: sum(r["stage"] == stage for r in records) for stage in ("start", "ab_initio", "search", "refine")}
    training = count["start"] * config.ace.steps * config.ace.batch
    ab_initio = count["ab_initio"] * config.search.ab_initio_images + count["start"] * config.search.held_out
    return training + ab_initio + (count["search"] + count["refine"]) * n


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with structures/ and poses_ctf/")
    parser.add_argument("--scale", choices=SCALES, default="cpu")
    parser.add_argument("--only", default="", help=f"comma-separated, of {', '.join(ITEMS)}")
    parser.add_argument("--work", type=Path, default=ROOT / "benchmarks" / "data" / "paper", help="where runs are kept")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",") if arguments.only else list(ITEMS)
    if unknown := set(chosen) - set(ITEMS):
        parser.error(f"--only {', '.join(unknown)}: expected some of {', '.join(ITEMS)}")
    work = arguments.work / arguments.scale
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    bench = Bench(SCALES[arguments.scale], arguments.data, work)
    today = datetime.date.today().isoformat()
    label = f"-{arguments.only.replace(',', '-')}" if arguments.only else ""
    table = arguments.out / f"paper-{today}{label}.md"
    pictures = arguments.out / f"paper-{today}"
    pictures.mkdir(parents=True, exist_ok=True)
    lines = [f"# The paper's tables and figures, {today}", "", _preamble(arguments.scale, arguments.only), ""]
    for name in chosen:
        lines += [*ITEMS[name].show(bench, pictures), ""]
        table.write_text("\n".join(lines))
    if not any(pictures.iterdir()):
        shutil.rmtree(pictures)
    print(table)


def _preamble(scale: str, only: str) -> str:
    command = f'`make paper ARGS="--data DATA --scale {scale}{f" --only {only}" if only else ""}"`'
    machine = f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}"
    size = "The published size (`--scale paper`) needs a GPU and was not run." if scale == "cpu" else ""
    return f"{command}; {machine}; threads as the process has cores. {size}"


if __name__ == "__main__":
    main()
