"""Project a volume in two ways: by rotating it and summing along z, and as a central slice of its Fourier transform."""

from pathlib import Path

import roma
import torch

from ace_em.maths.fourier import centred_fft
from ace_em.physics.projection import fourier_projection, line_integral
from ace_em.simulation.density import density_map
from ace_em.simulation.structure import read_structure

atoms = read_structure(Path(__file__).parent / "data/5nrl_every10th_atom.npz")
volume = density_map(atoms, box=64, pixel_size_angstrom=10.0, resolution_angstrom=80.0)

# along z, without rotation, the two are identical
straight = torch.eye(3)[None]
torch.testing.assert_close(centred_fft(line_integral(volume, straight), 2)[0], centred_fft(volume, 3)[32], atol=0.5, rtol=1e-3)

# along other directions they differ only by interpolation
rotation = roma.random_rotmat(4, generator=torch.Generator().manual_seed(0))
summed, sliced = line_integral(volume, rotation), fourier_projection(volume, rotation)
error = (summed - sliced).norm() / summed.norm()
print(f"4 projections of {len(atoms)} atoms: line integral and Fourier slice differ by {error:.2%}")
assert error < 0.02
