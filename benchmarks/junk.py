r"""Simulated stacks that contain junk: fraction of correct poses, verdict of the run, and calibration of the probabilities.

    python benchmarks/junk.py --data DATA --work WORK [--only "20 % noise"] [--seed 0] [--set subunit]

DATA holds structures/ (4v6x.npz, 6vyb.pdb.gz, 5nrl.npz). Sets and runs are kept below WORK. A set contains particles with
noise images, or images of another particle, shuffled in; fractions are of the whole stack. Printed for each: the fraction of
particles with poses within 10 degrees of the truth after robust alignment; the verdict; the time before the encoder
is trained on the final map; and the fraction of correct poses (within 15 degrees) against their probability. Junk is
never correct.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ace_em.data.particles import Particles
from ace_em.data.pose_columns import PROBABILITY
from ace_em.inference.confidence import Evidence, ResidualBaseline, pose_probability
from ace_em.io.mrc import StackWriter
from ace_em.io.plain import unpacked
from ace_em.io.star import numeric_column, read_particle_star, write_star
from ace_em.maths.rotations import angular_distance_deg
from ace_em.metrics.alignment import align_poses, apply_frame
from ace_em.physics.image_content import Content
from ace_em.physics.noise import background_mask, background_mean_sd

EDGES = (0.0, 0.1, 0.5, 0.9, 0.98, 1.0001)
RIGHT_DEG = 15.0
N_SHOWN = 3000


@dataclass(frozen=True)
class Mixture:
    """Shares of the whole stack that are noise, images of another particle, and carbon edges or ice; options of the
    reconstruction."""

    name: str
    noise: float = 0.0
    other: float = 0.0
    edges: float = 0.0
    options: Sequence[str] = ()


MIXTURES = [
    Mixture("clean"),
    Mixture("20 % noise", noise=0.2),
    Mixture("15 % another particle", other=0.15),
    Mixture("40 % junk", noise=0.15, other=0.15, edges=0.1),
    Mixture("60 % junk", noise=0.25, other=0.2, edges=0.15),
    Mixture("noise alone", noise=1.0),
    # training and ab initio search are far too short to converge
    Mixture("a wrong arrangement", options="--ace.steps 60 --search.ab_initio_rounds 2 --search.max_rounds 2 --starts 1".split()),
]


@dataclass(frozen=True)
class Base:
    """A structure of the data folder, all of it or the chains around one, its simulation, and the other particle."""

    structure: str
    about: str
    pixel_size: float
    resolution: float
    other: str


BASES = {
    "subunit": Base("4v6x.npz", "IC", 6.4, 12.8, "6vyb.pdb.gz"),
    "spliceosome": Base("5nrl.npz", "", 8.5, 17.0, "6vyb.pdb.gz"),
    "spike": Base("6vyb.pdb.gz", "", 6.0, 12.0, "1aon.pdb.gz"),
}


def structure_of(base: Base, data: Path, work: Path) -> Path:
    """The whole structure, or the chains closer to one of its two largest RNAs than to the other."""
    whole = data / "structures" / base.structure
    if not base.about:
        return whole
    out = work / f"{whole.stem}_{base.about}.npz"
    if not out.exists():
        with np.load(whole) as arrays:
            coords, element, chain = (arrays[name] for name in ("coords", "Z", "chain"))
        names, sizes = np.unique(chain, return_counts=True)
        largest = [name for name in names[np.argsort(-sizes)][:2]]
        centre = {name: coords[chain == name].mean(0) for name in names}
        near = {n: min(largest, key=lambda rna, n=n: np.linalg.norm(centre[n] - centre[rna])) for n in names}  # type: ignore[misc]
        keep = np.array([near[c] == base.about for c in chain])
        np.savez(out, coords=coords[keep], Z=element[keep])
    return out


def simulated(structure: Path, out: Path, n: int, base: Base, seed: int) -> Path:
    if not (out / "truth.star").exists():
        options = {"n": n, "box": 64, "pixel-size": base.pixel_size, "snr-db": -10, "shift-sd": 10, "resolution": base.resolution}
        run(
            "simulate",
            structure,
            "-o",
            out,
            *(x for k, v in options.items() for x in (f"--{k}", v)),
            "--seed",
            seed,
            "--overwrite",
        )
    return out


def mixture(item: Mixture, base: Base, data: Path, work: Path, seed: int) -> tuple[Path, np.ndarray]:
    """Folder of the mixed set, and whether each of its images shows the particle, (N,) bool."""
    good = simulated(structure_of(base, data, work), work / f"good_{seed}", N_SHOWN, base, seed)
    n = N_SHOWN if item.noise < 1 else 0
    total = round(N_SHOWN / (1 - item.noise - item.other - item.edges)) if n else N_SHOWN
    n_other, n_edges = round(total * item.other), round(total * item.edges)
    out = work / f"{item.name.replace(' ', '_').replace('%', 'pc')}_{seed}"
    out.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    kind = random.permutation(np.repeat([0, 1, 2, 3], [n, total - n - n_other - n_edges, n_other, n_edges]))
    if (out / "particles.star").exists():
        return out, kind == 0
    particles = Particles.open(good / "particles.star")
    other = simulated(data / "structures" / base.other, work / f"other_{seed}", N_SHOWN, base, seed + 1) if n_other else good
    others = Particles.open(other / "particles.star")
    box = particles.box
    images = torch.from_numpy(particles.images(np.arange(200)))
    sd = background_mean_sd(images, background_mask(box, box / 2))[1].mean().item()
    rows = np.arange(total) % N_SHOWN
    rows[kind == 0] = np.arange(n)
    with StackWriter(out / "particles.mrcs", (total, box, box), particles.pixel_size_angstrom) as stack:
        for i in range(total):
            if kind[i] == 1:
                stack.write(sd * random.standard_normal((1, box, box)).astype(np.float32))
            elif kind[i] == 3:
                stack.write((sd * film_edge_or_ice(box, random))[None].astype(np.float32))
            else:
                stack.write((particles, others)[kind[i] // 2].images(rows[i : i + 1]))
    for name in ("particles.star", "truth.star"):
        table = read_particle_star(good / name)
        mixed = table.particles.iloc[rows].reset_index(drop=True)
        mixed["rlnImageName"] = [f"{i + 1:06d}@particles.mrcs" for i in range(total)]
        write_star(out / name, dataclasses.replace(table, particles=mixed, path=out / name))
    return out, kind == 0


def film_edge_or_ice(box: int, random: np.random.Generator) -> np.ndarray:
    """(box, box) noise of unit variance with the edge of a carbon film, or with crystals of ice, of about ten times the power of
    a particle at -10 dB."""
    y, x = np.mgrid[:box, :box] - box / 2
    if random.random() < 0.5:
        angle, offset = random.uniform(0, 2 * np.pi), random.uniform(-0.3, 0.3) * box
        distance = x * np.cos(angle) + y * np.sin(angle) - offset
        film = 1 / (1 + np.exp(-distance / 1.5))
        # a Fresnel fringe along the edge
        feature = film + 0.6 * np.cos(distance / 2) * np.exp(-((distance / 6) ** 2))
    else:
        feature = np.zeros((box, box))
        for _ in range(random.integers(2, 7)):
            cy, cx, width = *random.uniform(-0.4, 0.4, 2) * box, random.uniform(0.02, 0.06) * box
            feature -= np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * width**2))
    feature = feature - feature.mean()
    return random.standard_normal((box, box)) + feature / feature.std()


def run(*args: object) -> int:
    return subprocess.run([Path(sys.executable).with_name("ace-em"), *map(str, args)]).returncode


def reconstructed(item: Mixture, folder: Path, seed: int, options: list[str]) -> Path:
    out = folder / "run"
    if not (out / "report.html").exists():
        run("reconstruct", folder / "particles.star", "-o", out, "--seed", seed, *item.options, *options, "--overwrite")
    return out


def report(item: Mixture, folder: Path, particle: np.ndarray, out: Path) -> None:
    shown = torch.from_numpy(particle)
    found, true = Particles.open(out / "poses.star", folder).poses(), Particles.open(folder / "truth.star").poses()
    assert found is not None and true is not None
    right, median = torch.zeros(len(shown), dtype=torch.bool), float("nan")
    if shown.any():
        aligned = apply_frame(found, align_poses(found[shown], true[shown]))
        error = angular_distance_deg(aligned.rotation, true.rotation)
        right = (error < RIGHT_DEG) & shown
        median = (8 * torch.deg2rad(error[shown] / 2).sin().square()).median().item()
        within = (error[shown] < 10).float().mean().item()
        print(f"## {item.name}: {within:.2%} of the particles within 10 degrees, median Rot. {median:.2e}")
    else:
        print(f"## {item.name}")
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    trained = next((r["time_s"] for r in records if r["stage"] == "encoder"), float("nan"))
    end = next(r for r in records if r["stage"] == "end")
    starts = sum(r["stage"] == "start" for r in records)
    print(f"{starts} start(s), {trained:.0f} s without the encoder's training, {end['time_s']:.0f} s in all. {end['message']}")
    table = read_particle_star(out / "poses.star")
    if PROBABILITY not in table.particles:
        return
    said = torch.from_numpy(numeric_column(table, PROBABILITY))
    if not end["converged"]:
        print("all probabilities in poses.star are 0; the table shows those from before the verdict")
        said = before_the_verdict(out)
    file = out / "confident.star"
    confident = set(read_particle_star(file).particles["rlnImageName"]) if file.exists() else set()
    listed = torch.tensor([name in confident for name in table.particles["rlnImageName"]])
    print(f"confident.star: {listed[shown].float().mean():.1%} of the particles, {listed[~shown].float().mean():.1%} of the junk")
    print("| said | images | said on average | right |\n|---|---|---|---|")
    for low, high in zip(EDGES, EDGES[1:], strict=False):
        inside = (said >= low) & (said < high)
        if inside.any():
            values = f"{int(inside.sum())} | {said[inside].mean():.1%} | {right[inside].float().mean():.1%}"
            print(f"| {low:.2f} to {min(high, 1):.2f} | {values} |")
    print(flush=True)


def before_the_verdict(out: Path) -> torch.Tensor:
    """Probabilities (N,) of the poses of a run that did not converge, without the factor for the whole map."""
    finished = torch.load(out / "checkpoint.pt", weights_only=True)["done"]
    found, last = unpacked(Evidence, finished["confidence"]), list(finished)[list(finished).index("confidence") - 1]
    shown = unpacked(Content, finished[last]["content"]).shows_particle
    return pose_probability(found.log_odds_against, found.residual_z, ResidualBaseline.of(found.residual_z[shown]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--set", choices=list(BASES), default="subunit")
    parser.add_argument("--seed", type=int, default=0)
    args, options = parser.parse_known_args()
    base, work = BASES[args.set], args.work / args.set
    work.mkdir(parents=True, exist_ok=True)
    for item in MIXTURES:
        if args.only in ("", item.name):
            folder, particle = mixture(item, base, args.data, work, args.seed)
            report(item, folder, particle, reconstructed(item, folder, args.seed, options))


if __name__ == "__main__":
    main()
