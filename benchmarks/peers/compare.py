"""ace-em and other programs on the same images, on the same cores, one after the other, scored by one evaluator.

    python benchmarks/peers/compare.py SET_FOLDER --limit 3600 --cores 0 --diameter 380 --out FILE.md

SET_FOLDER was made by `ace-em simulate`. Every program, ace-em too, has the same limit of wall-clock seconds; what it had on disk
by then is its result. See result.py, relion.py, cryodrgn.py for how each is run, and score.py for how all are judged.
"""

import argparse
import datetime
import importlib.metadata
import platform
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sets import cropped

from ace_em.data.particles import Particles
from peers import cryodrgn, relion
from peers.result import Chain, PeerResult
from peers.score import score

PEERS = ("ace-em", "relion", "cryodrgn")
HEAD = ["program", "version", "state", "wall s", "CPU s", "within 10 deg", "Rot. median", "Rot. mean", "Trans. px^2"]
HEAD += ["FSC 0.5 px", "bound px", "wall / ace-em's"]


@dataclass(frozen=True)
class Settings:
    """What every program is given."""

    particles: Path
    work: Path
    cores: list[int]
    limit_s: float
    diameter_angstrom: float
    final_box: int
    ours: list[str]
    cryodrgn: Path


def run_ace_em(settings: Settings) -> PeerResult:
    """Our own program as a user would run it, with as many threads as cores."""
    work = settings.work / "ace-em"
    work.mkdir(parents=True)
    chain = Chain(work, settings.cores, settings.limit_s, work / "ace-em.log", {"CUDA_VISIBLE_DEVICES": ""})
    command = [str(Path(sys.executable).parent / "ace-em"), "reconstruct", str(settings.particles.absolute()), "-o", "run"]
    command += ["--device", "cpu", "--threads", str(len(settings.cores)), *settings.ours]
    if settings.final_box:
        command += ["--final_box", str(settings.final_box)]
    # 3: it has ended, and says itself that it did not converge
    finished = chain.run(command, fine=(0, 3))
    poses = work / "run" / "poses.star"
    note = "" if finished else "at the limit" if chain.failure == "limit" else chain.failure
    version = importlib.metadata.version("ace-em")
    return PeerResult("ace-em", version, chain.wall_s, chain.cpu_s, finished, note, poses if poses.is_file() else None)


def run_peer(name: str, settings: Settings) -> PeerResult | None:
    """One program, in an empty folder of its own."""
    shutil.rmtree(settings.work / name, ignore_errors=True)
    if name == "ace-em":
        return run_ace_em(settings)
    common = (settings.particles, settings.work / name, settings.cores, settings.limit_s, settings.diameter_angstrom)
    return relion.run(*common) if name == "relion" else cryodrgn.run(*common, settings.cryodrgn)


def why_not(name: str, settings: Settings) -> str:
    """Why a program cannot be run here; empty when it can."""
    if name == "ace-em":
        return ""
    return relion.missing() if name == "relion" else cryodrgn.missing(settings.cryodrgn)


def row(result: PeerResult, truth: Path, final_box: int, bound_px: float, our_wall_s: float | None) -> list[str]:
    """One line of the table."""
    state = ("finished" if result.finished else "unfinished") + (f": {result.note}" if result.note else "")
    line = [result.name, result.version, state, f"{result.wall_s:.0f}", f"{result.cpu_s:.0f}"]
    if result.poses_star is None:
        line += ["-"] * 5
    else:
        s = score(result.poses_star, truth, final_box)
        line += [f"{s['within_10deg']:.1%}", f"{s['rot_median']:.2g}", f"{s['rot_mean']:.2g}", f"{s['trans']:.3f}"]
        line += [f"{s['fsc05_px']:.2f}"]
    ratio = "-" if not our_wall_s else f"{'' if result.finished else '> '}{result.wall_s / our_wall_s:.1f}"
    return [*line, f"{bound_px:.2f}", ratio]


def header(settings: Settings, set_folder: Path) -> list[str]:
    """Title, what was run on what, and the head of the table."""
    particles = Particles.open(settings.particles)
    what = f"{len(particles)} images of {particles.box} px at {particles.pixel_size_angstrom:g} A/px"
    return [
        f"# Programs compared, {datetime.datetime.now().isoformat(' ', 'minutes')}",
        "",
        f"`{set_folder.name}`: {what}; maps at {settings.final_box or particles.box} px. {platform.machine()}, CPU cores "
        f"{','.join(map(str, settings.cores))}, limit {settings.limit_s:g} s of wall-clock time for each program. "
        f"Command: `python benchmarks/peers/compare.py {shlex.join(sys.argv[1:])}`.",
        "",
        "Every map is made by the same back-projection of the images at the program's poses; the bound is that of the true "
        "poses. A ratio with > is that of a program that had not finished.",
        "",
        "| " + " | ".join(HEAD) + " |",
        "|" + "---|" * len(HEAD),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set_folder", type=Path, help="made by `ace-em simulate`")
    parser.add_argument("--limit", type=float, required=True, help="wall-clock seconds for each program")
    parser.add_argument("--cores", default="0", help="cores to run on, such as 0,1")
    parser.add_argument("--peers", default=",".join(PEERS), help=f"some of {', '.join(PEERS)}; ace-em first gives the ratios")
    parser.add_argument("--diameter", type=float, default=0.0, help="of the particle, Angstrom; RELION needs it")
    parser.add_argument("--crop", type=int, default=0, help="Fourier-crop the images to this box first, for all programs")
    parser.add_argument("--final-box", type=int, default=0, help="pixels of the map; default: the images' box")
    parser.add_argument("--ours", default="", help="further options of `ace-em reconstruct`, in one string")
    parser.add_argument("--work", type=Path, help="scratch folder; default: SET_FOLDER/peers")
    parser.add_argument("--cryodrgn", type=Path, default=cryodrgn.ENVIRONMENT, help="its virtual environment, made when absent")
    parser.add_argument("--out", type=Path, required=True, help="Markdown file for the table")
    arguments = parser.parse_args()
    names = arguments.peers.split(",")
    if unknown := set(names) - set(PEERS):
        parser.error(f"--peers: {', '.join(unknown)}; expected some of {', '.join(PEERS)}")
    if "relion" in names and arguments.diameter <= 0:
        parser.error("--diameter: RELION needs the particle's diameter in Angstrom")
    if arguments.crop:
        arguments.set_folder = cropped(arguments.set_folder, arguments.crop)
    particles = arguments.set_folder / "particles.star"
    cores = [int(core) for core in arguments.cores.split(",")]
    work = (arguments.work or arguments.set_folder / "peers").absolute()
    settings = Settings(
        particles=particles,
        work=work,
        cores=cores,
        limit_s=arguments.limit,
        diameter_angstrom=arguments.diameter,
        final_box=arguments.final_box,
        ours=shlex.split(arguments.ours),
        cryodrgn=arguments.cryodrgn.absolute(),
    )

    lines = header(settings, arguments.set_folder)
    bound_px = score(None, arguments.set_folder, arguments.final_box)["fsc05_px"]
    our_wall_s = None
    for name in names:
        reason = why_not(name, settings)
        result = None if reason else run_peer(name, settings)
        if result is None:
            lines.append(f"| {name} | - | not run: {reason} |" + " - |" * (len(HEAD) - 3))
        else:
            our_wall_s = result.wall_s if name == "ace-em" and result.finished else our_wall_s
            cells = row(result, arguments.set_folder, arguments.final_box, bound_px, our_wall_s)
            lines.append("| " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
