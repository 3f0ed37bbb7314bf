"""Reading atoms from structure files."""

import gzip
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ace_em.errors import InputError

STRUCTURE_SUFFIXES = (".pdb", ".cif", ".mmcif", ".ent", ".npz")


@dataclass(frozen=True)
class Atoms:
    """Atoms, centred on their weighted mean.

    Attributes
    ----------
    position_angstrom : (n, 3) in x, y, z order.
    weight : (n,) atomic numbers.
    """

    position_angstrom: Tensor
    weight: Tensor

    def __len__(self) -> int:
        return len(self.weight)

    @property
    def least_box_angstrom(self) -> float:
        """Edge of the smallest box that contains the atoms in every orientation."""
        return 2 * self.position_angstrom.norm(dim=-1).max().item()


def is_structure(path: Path) -> bool:
    """Whether the suffix of the file is that of a structure."""
    name = path.name.lower().removesuffix(".gz")
    return name.endswith(STRUCTURE_SUFFIXES)


def read_structure(path: Path) -> Atoms:
    """Read the atoms of a structure file, without hydrogens; waters are removed from .pdb and .cif files.

    Parameters
    ----------
    path : .pdb or .cif file (or .gz of one), or .npz with ``coords`` in Angstrom, or in tenths of an Angstrom if they are
        integers, and atomic numbers ``Z``.

    Raises
    ------
    InputError : the file is missing or unreadable, or has no heavy atoms.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a structure (.pdb, .cif, .npz) or a map (.mrc)")
    position, number = _read_npz(path) if path.suffix == ".npz" else _read_with_gemmi(path)
    keep = number > 1
    position, number = position[keep], number[keep]
    if len(number) == 0:
        raise InputError(f"{path}: no atoms found; expected a structure with at least one heavy atom")
    weight = torch.as_tensor(number, dtype=torch.float64)
    centred = torch.as_tensor(position, dtype=torch.float64)
    centred = centred - (centred * weight[:, None]).sum(0) / weight.sum()
    return Atoms(centred, weight)


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = sorted(arrays.files)
            coords, number = (arrays[name] if name in names else None for name in ("coords", "Z"))
    # numpy raises different errors for a file that is not a zip, a damaged zip, a renamed .npy and an object array
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: not a readable .npz file; expected arrays 'coords' and 'Z'") from error
    if coords is None or number is None:
        raise InputError(f"{path}: arrays {names} found; expected 'coords' and 'Z'")
    numeric = all(np.issubdtype(a.dtype, np.number) for a in (coords, number))
    if not numeric or coords.ndim != 2 or coords.shape[1] != 3 or number.shape != (len(coords),):
        raise InputError(
            f"{path}: coords {coords.dtype} {coords.shape} and Z {number.dtype} {number.shape}; expected numbers (n, 3) and (n,)"
        )
    if not (np.isfinite(coords).all() and np.isfinite(number).all()):
        raise InputError(f"{path}: coords or Z hold NaN or infinite values; expected finite numbers")
    scale = 0.1 if np.issubdtype(coords.dtype, np.integer) else 1.0
    return coords.astype(np.float64) * scale, number.astype(np.int64)


def _read_with_gemmi(path: Path) -> tuple[np.ndarray, np.ndarray]:
    import gemmi

    try:
        if path.suffix == ".gz":
            # gemmi reads a truncated file without an error, so decompress it once to check
            with gzip.open(path) as file:
                while file.read(2**20):
                    pass
        structure = gemmi.read_structure(str(path))
    except (RuntimeError, ValueError, OSError, EOFError, IndexError, zlib.error) as error:
        raise InputError(f"{path}: not a readable structure, or truncated; expected .pdb, .cif or .npz") from error
    if len(structure) == 0:
        raise InputError(f"{path}: no model found; expected a structure (.pdb, .cif, .npz)")
    structure.remove_waters()
    atoms = [cra.atom for cra in structure[0].all()]
    position = np.array([atom.pos.tolist() for atom in atoms]).reshape(-1, 3)
    return position, np.array([atom.element.atomic_number for atom in atoms], dtype=np.int64)
