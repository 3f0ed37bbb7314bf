"""Simulate images and back-project them at their true poses: the map that a perfect pose search would give."""

import tempfile
from pathlib import Path

import torch

from ace_em.config import SimulationConfig
from ace_em.data.particles import Particles
from ace_em.data.preprocess import read_stack
from ace_em.data.survey import survey
from ace_em.io.mrc import read_volume
from ace_em.maths.fourier import radius_grid
from ace_em.metrics.fsc import fourier_shell_correlation, resolution_shell
from ace_em.refinement.backprojection import accumulate, reconstruct_halves
from ace_em.simulation.write import simulate

structure = Path(__file__).parent / "data/5nrl_every10th_atom.npz"
config = SimulationConfig(n=400, box=32, pixel_size=17.0, resolution=34.0, snr_db=-10.0)

with tempfile.TemporaryDirectory() as folder:
    simulate(structure, Path(folder), config)
    particles = Particles.open(Path(folder) / "truth.star")
    stack = read_stack(particles, survey(particles), config.box)
    truth = torch.from_numpy(read_volume(Path(folder) / "volume.mrc")[0])

pose = particles.poses()
assert pose is not None
ball = (radius_grid(config.box, 3) < config.box / 2 - 1).float()
one, two = (accumulate(stack.subset(half), pose[half]) for half in (slice(0, None, 2), slice(1, None, 2)))
halves = reconstruct_halves(one, two, ball)

shell = resolution_shell(fourier_shell_correlation(halves.combined, truth), 0.5)
print(f"The FSC with the true map falls to 0.5 at {config.box * config.pixel_size / shell:.1f} A")
assert config.box / shell < 2.5
