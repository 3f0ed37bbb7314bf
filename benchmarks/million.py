"""``ace-em predict`` and one search round for a million particles of 64 px: time and peak memory.

    python benchmarks/million.py --folder DIR

DIR needs a few gigabytes. The images are a stack of 10,000 simulated particles and a hundred hard links to it.
(A sparse file would suffice for memory, but images without contrast are refused.)
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
STRUCTURE = ROOT / "examples/data/5nrl_every10th_atom.npz"
ACE = [sys.executable, "-c", "from ace_em.cli import main; main()"]
IMAGES = 10_000
SIMULATED = "--box 64 --pixel-size 8.5 --resolution 17 --snr-db -10 --shift-sd 20 --seed 1".split()


def timed(name: str, *command: str) -> None:
    """Run a command and print its time and peak memory."""
    before, began = os.times(), time.monotonic()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    print(
        f"{name}: exit code {os.waitstatus_to_exitcode(status)}, {time.monotonic() - began:.0f} s, {cpu:.0f} CPU s, "
        f"{usage.ru_maxrss / 2**20:.2f} GiB of memory at the peak",
        flush=True,
    )


def many(folder: Path, n: int) -> Path:
    """A STAR file of ``n`` rows that refer to hard links to the stack."""
    lines = (folder / "data/particles.star").read_text().splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if "@" in line)
    head, rows = lines[:first], [line.split("@", 1) for line in lines[first:] if "@" in line]
    path = folder / "many.star"
    with open(path, "w") as file:
        file.writelines(head)
        for copy in range(-(-n // len(rows))):
            link = folder / f"copy{copy:03d}.mrcs"
            if not link.exists():
                os.link(folder / "data/particles.mrcs", link)
            for index, rest in rows[: n - copy * len(rows)]:
                file.write(f"{index}@{link.name} {rest.split(maxsplit=1)[1]}")
    return path


def search_round(star: Path, run: Path, memory_gib: float, quick: bool) -> None:
    """The first round of the search of all images: each image against the map of its half, then new maps.

    ``quick`` uses a grid 1.3 times as coarse and one local step from the two best orientations, which changes the time but not
    the memory.
    """
    import torch

    from ace_em.config import RunConfig, SearchConfig
    from ace_em.data.split import half_sets
    from ace_em.inference.predictor import Predictor
    from ace_em.physics.pose import Pose
    from ace_em.refinement.half_sets import HalfSets, change_box, search_half_sets, shared_start
    from ace_em.refinement.search import SearchSpace
    from ace_em.run.inputs import open_particles, read_images
    from ace_em.run.plan import announce, make_plan
    from ace_em.run.reporter import Reporter

    search = SearchConfig(spacing=2.0, top_k=2, local_steps=1) if quick else SearchConfig()
    config, reporter = RunConfig(memory=memory_gib, search=search), Reporter()
    plan = make_plan(open_particles(star, config), config)
    announce(plan, config, reporter)
    n, box = len(plan.particles), plan.working_box
    stack = read_images(plan, box, config, star.parent, reporter)
    space = SearchSpace(box, plan.diameter_px(box), config.search, plan.group)
    volume = change_box(Predictor.load(run / "encoder.pt").volume, box)
    pose = Pose(torch.eye(3).expand(n, 3, 3), torch.zeros(n, 2))
    start = shared_start(stack, volume, pose, space.band(config.search.shared_band))
    sets = HalfSets(stack, torch.from_numpy(half_sets(n, 0)), plan.mask(box), plan.group)
    began = time.monotonic()
    with reporter.heartbeat(), reporter.task("one search round", n // 2) as task:
        rounds = search_half_sets(sets, [start], space, torch.Generator().manual_seed(0), lambda _, done: task.update(done))
        state = next(rounds)
    resolution = plan.box_angstrom / state.fsc143_shell
    reporter.say(f"{n / (time.monotonic() - began):.0f} images per second; half-map resolution {resolution:.1f} A (FSC 0.143)")
    reporter.say(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB of memory at the peak")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--n", type=int, default=1_000_000)
    parser.add_argument("--memory", type=float, default=1.0, help="memory for images in the search, in GiB")
    parser.add_argument("--quick", action="store_true", help="a coarser search")
    parser.add_argument("--only", choices=["predict", "search", "search-here"])
    args = parser.parse_args()
    folder: Path = args.folder
    if args.only == "search-here":
        search_round(folder / "many.star", folder / "run", args.memory, args.quick)
        return
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "run/encoder.pt").exists():
        simulated = ["simulate", str(STRUCTURE), "-o", str(folder / "data"), "--overwrite", "--n", str(IMAGES), *SIMULATED]
        subprocess.run([*ACE, *simulated], check=True)
        some = ["reconstruct", str(folder / "data/particles.star"), "-o", str(folder / "run"), "--max-particles", "3000"]
        subprocess.run([*ACE, *some, "--overwrite"], check=True)
    star = many(folder, args.n)
    if args.only != "search":
        out = str(folder / "many_poses.star")
        timed("predict", *ACE, "predict", str(star), "--run", str(folder / "run"), "-o", out, "--overwrite")
    if args.only != "predict":
        options = ["--folder", str(folder), "--memory", str(args.memory), *(["--quick"] if args.quick else [])]
        timed("search", sys.executable, __file__, *options, "--only", "search-here")


if __name__ == "__main__":
    main()
