"""Where the Fourier coefficients of particle images are kept: in memory, or in a scratch file that is read block by block.

RELION's ``--scratch_dir`` and cryoSPARC's cache hold particles as they are on disk; the scratch file holds their cropped
transforms, so that a round over all images costs one read. The file has no name: however the program ends, its space is free.
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
    """Half-planes of images, one row of complex coefficients each; nothing changes them once they are written."""

    def __len__(self) -> int: ...

    def read(self, rows: Tensor, n: int) -> Tensor:
        """The first ``n`` coefficients (b, n) of the images ``rows`` (b,)."""

    def to(self, device: torch.device) -> "CoefficientStore":
        """The store whose coefficients are on a device, if they are kept in memory."""


class InMemory:
    """Coefficients (N, m), complex64, on any device."""

    def __init__(self, coefficients: Tensor) -> None:
        self.coefficients = coefficients

    def __len__(self) -> int:
        return len(self.coefficients)

    def write(self, first: int, coefficients: Tensor) -> None:
        """Fill in coefficients (b, m) from row ``first`` on, while the images are read."""
        self.coefficients[first : first + len(coefficients)] = coefficients

    def read(self, rows: Tensor, n: int) -> Tensor:
        return self.coefficients[:, :n][rows.to(self.coefficients.device)]

    def to(self, device: torch.device) -> "InMemory":
        return InMemory(self.coefficients.to(device))


def scratch_bytes(n_images: int, box: int) -> int:
    """Size of a scratch file with images of a working box: 8 bytes a coefficient."""
    return n_images * 8 * len(HalfPlane.within(box))


def refuse_small_folder(folder: Path, size: int) -> None:
    """Refuse a folder on whose disk ``size`` bytes are not free."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise InputError(_no_room(folder, size, f"{free / 2**30:.1f} GiB are free"))


def _no_room(folder: Path, size: int, why: str | None) -> str:
    needed = f"{size / 2**30:.1f} GiB of scratch space are needed for images that do not fit into memory"
    return f"{folder}: {needed} ({why}); give --scratch with another folder, or more --memory"


class ScratchFile:
    """Coefficients (N, m), complex64, in a file without a name in ``folder``.

    Raises
    ------
    InputError
        when the folder has no room for it.
    """

    def __init__(self, folder: Path, n_images: int, n_coefficients: int) -> None:
        self.n_images, self.n_coefficients = n_images, n_coefficients
        size = n_images * 8 * n_coefficients
        try:
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)
            weakref.finalize(self, self._file.close)
            # a full disk is found now, not in the middle of a run
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
        # one read for each run of neighbouring rows
        edges = np.flatnonzero(np.diff(index, prepend=-2, append=-2) != 1)
        for start, end in itertools.pairwise(edges):
            self._file.seek(int(index[start]) * row_bytes)
            wanted = view[start * row_bytes : end * row_bytes]
            while wanted:
                n_read = self._file.readinto(wanted)
                if not n_read:
                    raise OSError("the scratch file ends before its last image")
                wanted = wanted[n_read:]
        return torch.from_numpy(found)[:, :n]

    def to(self, device: torch.device) -> "ScratchFile":
        return self
