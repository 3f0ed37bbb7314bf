"""The benchmark sets: what is simulated, from which structure, with which options of `ace-em simulate`."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class SimulatedSet:
    """A structure file of the data folder (or a part of it) and the options that make images of it."""

    name: str
    structure: str
    options: dict[str, float]
    n_atoms: int = 0
    """0: the whole structure; otherwise whole chains around chain ``chain`` until there are this many atoms"""
    chain: int = 0


SETS = [
    SimulatedSet("5nrl -10 dB", "structures/5nrl.npz", {"n": 3000, "box": 64, "pixel_size": 8.5}),
    SimulatedSet("4v6x -10 dB", "structures/4v6x.npz", {"n": 3000, "box": 64, "pixel_size": 7.5}),
    SimulatedSet("6vyb -10 dB", "structures/6vyb.pdb.gz", {"n": 3000, "box": 64, "pixel_size": 5.0, "shift_sd": 10}),
    SimulatedSet(
        "5nrl, 35,000 atoms, -10 dB",
        "structures/5nrl.npz",
        {"n": 3000, "box": 64, "pixel_size": 5.98, "shift_sd": 10, "resolution": 8},
        n_atoms=31000,
        chain=3,
    ),
    SimulatedSet(
        "4v6x, 60,000 atoms, -10 dB",
        "structures/4v6x.npz",
        {"n": 3000, "box": 64, "pixel_size": 7.53, "shift_sd": 10, "resolution": 8},
        n_atoms=60000,
        chain=5,
    ),
    SimulatedSet(
        "4v6x, 39,000 atoms, -10 dB",
        "structures/4v6x.npz",
        {"n": 3000, "box": 64, "pixel_size": 7.53, "shift_sd": 10, "resolution": 8},
        n_atoms=35000,
        chain=20,
    ),
]


def structure_file(item: SimulatedSet, data: Path, work: Path) -> Path:
    """The set's structure; a part of one is written to ``work`` as .npz first."""
    whole = data / item.structure
    if not item.n_atoms:
        return whole
    with np.load(whole) as arrays:
        coords, number, chain = arrays["coords"], arrays["Z"], arrays["chain"]
    names = sorted(set(chain.tolist()))
    centre = {c: coords[chain == c].mean(0) for c in names}
    around = centre[names[item.chain % len(names)]]
    kept: list[str] = []
    for c in sorted(names, key=lambda c: float(np.linalg.norm(centre[c] - around))):
        if np.isin(chain, kept).sum() >= item.n_atoms:
            break
        kept.append(c)
    rows = np.isin(chain, kept)
    path = work / f"{whole.stem}_{item.n_atoms}_{item.chain}.npz"
    np.savez(path, coords=coords[rows], Z=number[rows])
    return path
