"""Storage of the Fourier coefficients of particle images: in memory, or in a scratch file that is read block by block.

RELION's ``--scratch_dir`` and cryoSPARC's cache copy the particles as they are on disk. The scratch file contains cropped
transforms instead, so that a round over all images costs one read. It is an unnamed temporary file: its space is freed when
the process ends, even if it is killed.
"""

import itertools
import os
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ace_em.errors import InputError
from ace_em.maths.half_plane import HalfPlane


class CoefficientStore(Protocol):
    """Half-planes of images, one row of complex coefficients each; read-only once written."""

    def __len__(self) -> int: ...

    def read(self, rows: Tensor, n: int) -> Tensor:
        """The first ``n`` coefficients (b, n) of the images ``rows`` (b,)."""

    def to(self, device: torch.device) -> "CoefficientStore":
        """The store on a device; coefficients in a file stay there."""


class InMemory:
    """Coefficients (N, m), complex64, on any device."""

    def __init__(self, coefficients: Tensor) -> None:
        self.coefficients = coefficients

    def __len__(self) -> int:
        return len(self.coefficients)

    def write(self, first: int, coefficients: Tensor) -> None:
        """Set coefficients (b, m) from row ``first`` on."""
        self.coefficients[first : first + len(coefficients)] = coefficients

    def read(self, rows: Tensor, n: int) -> Tensor:
        return self.coefficients[:, :n][rows.to(self.coefficients.device)]

    def to(self, device: torch.device) -> "InMemory":
        return InMemory(self.coefficients.to(device))


def scratch_bytes(n_images: int, box: int) -> int:
    """Size of a scratch file with images of a working box: 8 bytes per coefficient."""
    return n_images * 8 * len(HalfPlane.within(box))


def refuse_small_folder(folder: Path, size: int) -> None:
    """Raise InputError if the disk of a folder has fewer than ``size`` free bytes."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise InputError(_no_room(folder, size, f"{free / 2**30:.1f} GiB are free"))


def _no_room(folder: Path, size: int, why: str | None) -> str:
    needed = f"{size / 2**30:.1f} GiB of scratch space needed for images that do not fit into memory"
    return f"{folder}: {needed} ({why}); give --scratch with another folder, or more --memory"


class ScratchFile:
    """Coefficients (N, m), complex64, in an unnamed temporary file in ``folder``.

    Raises
    ------
    InputError
        if the disk of the folder is too small.
    """

    def __init__(self, folder: Path, n_images: int, n_coefficients: int) -> None:
        self.n_images, self.n_coefficients = n_images, n_coefficients
        size = n_images * 8 * n_coefficients
        try:
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)
            weakref.finalize(self, self._file.close)
            # allocate now: a full disk must not stop the run later
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._file.fileno(), 0, size)
        except OSError as error:
            raise InputError(_no_room(folder, size, error.strerror)) from error

    def __len__(self) -> int:
        return self.n_images

    def write(self, first: int, coefficients: Tensor) -> None:
        """Write coefficients (b, m) from row ``first`` on."""
        self._file.seek(first * 8 * self.n_coefficients)
        data = memoryview(coefficients.contiguous().numpy().tobytes())
        while data:
            data = data[self._file.write(data) :]

    def read(self, rows: Tensor, n: int) -> Tensor:
        index = rows.cpu().numpy()
        found = np.empty((len(index), self.n_coefficients), dtype=np.complex64)
        view, row_bytes = found.reshape(-1).view(np.uint8).data, 8 * self.n_coefficients
        # one read per run of consecutive rows
        edges = np.flatnonzero(np.diff(index, prepend=-2, append=-2) != 1)
        for start, end in itertools.pairwise(edges):
            self._file.seek(int(index[start]) * row_bytes)
            remaining = view[start * row_bytes : end * row_bytes]
            while remaining:
                n_read = self._file.readinto(remaining)
                if not n_read:
                    raise OSError("the scratch file is truncated")
                remaining = remaining[n_read:]
        return torch.from_numpy(found)[:, :n]

    def to(self, device: torch.device) -> "ScratchFile":
        return self
