"""Whitened images that memory has no room for: a scratch file, read block by block.

RELION's ``--scratch_dir`` and cryoSPARC's cache hold particles as they are on disk; this file holds them cropped and whitened, so
that a round over all images costs a read and nothing else. It has no name: whatever ends the program, its space is free again.
"""

import itertools
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ace_em.data.working_set import TransferOptics, WorkingSet
from ace_em.errors import InputError
from ace_em.maths.fourier import HalfPlane


def row_floats(n_coefficients: int) -> int:
    """float32 numbers an image: its coefficients, its transfer; even, as complex numbers are pairs."""
    return 3 * n_coefficients + n_coefficients % 2


def scratch_bytes(n_images: int, box: int) -> int:
    """Size of a file with images of a working box."""
    return n_images * 4 * row_floats(len(HalfPlane.within(box)))


def refuse_small_folder(folder: Path, size: int) -> None:
    """Refuse a folder on whose disk ``size`` bytes are not free."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise InputError(_no_room(folder, size, f"{free / 2**30:.1f} GiB are free"))


def _no_room(folder: Path, size: int, why: str | None) -> str:
    needed = f"{size / 2**30:.1f} GiB of scratch space are needed for images that memory has no room for"
    return f"{folder}: {needed} ({why}); give --scratch with another folder, or more --memory"


class ScratchFile:
    """Images one after the other, each its coefficients (n complex64) and then its transfer (n float32)."""

    def __init__(self, folder: Path, n_images: int, n_coefficients: int) -> None:
        self.n_images, self.n_coefficients = n_images, n_coefficients
        self.row_bytes = 4 * row_floats(n_coefficients)
        size = n_images * self.row_bytes
        try:
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)
            weakref.finalize(self, self._file.close)
            # a disk without room is found out now, not in the middle of a run
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._file.fileno(), 0, size)
        except OSError as error:
            raise InputError(_no_room(folder, size, error.strerror)) from error

    def write(self, first: int, image_ft: Tensor, transfer: Tensor) -> None:
        """Images (b, n) and transfers (b, n) from row ``first`` on."""
        rows = np.zeros((len(image_ft), row_floats(self.n_coefficients)), dtype=np.float32)
        rows[:, : 2 * self.n_coefficients] = torch.view_as_real(image_ft).flatten(1).numpy()
        rows[:, 2 * self.n_coefficients : 3 * self.n_coefficients] = transfer.numpy()
        self._file.seek(first * self.row_bytes)
        data = memoryview(rows.tobytes())
        while data:
            data = data[self._file.write(data) :]

    def write_transfer(self, first: int, transfer: Tensor) -> None:
        """Other transfers (b, n) from row ``first`` on."""
        rows = self.read(np.arange(first, first + len(transfer)))
        image_ft = torch.view_as_complex(rows[:, : 2 * self.n_coefficients].unflatten(1, (-1, 2)))
        self.write(first, image_ft, transfer)

    def read(self, index: np.ndarray) -> Tensor:
        """Rows (b, :func:`row_floats`) of some images, in any order."""
        rows = np.empty((len(index), row_floats(self.n_coefficients)), dtype=np.float32)
        view = rows.reshape(-1).view(np.uint8).data
        # one read for each row of neighbours
        edges = np.flatnonzero(np.diff(index, prepend=-2, append=-2) != 1)
        for start, end in itertools.pairwise(edges):
            self._file.seek(int(index[start]) * self.row_bytes)
            wanted = view[start * self.row_bytes : end * self.row_bytes]
            while wanted:
                n = self._file.readinto(wanted)
                if not n:
                    raise OSError("the scratch file ends before its last image")
                wanted = wanted[n:]
        return torch.from_numpy(rows)


@dataclass(frozen=True)
class ScratchSet:
    """Whitened half-planes of particle images in a file, with the attributes of a :class:`WorkingSet`.

    Attributes
    ----------
    half_plane : what of the file's coefficients is looked at: its first n.
    image_steps, transfer_steps : the whitenings since the file was written, each applied to what is read, in order, so that the
        bits are those of images whitened in memory; shared with the bands of this set.
    device : where images are brought.
    """

    file: ScratchFile
    half_plane: HalfPlane
    noise_variance: Tensor
    optics: TransferOptics | None = None
    image_steps: list[Tensor] = field(default_factory=list)
    transfer_steps: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    device: torch.device = torch.device("cpu")

    def __len__(self) -> int:
        return self.file.n_images

    @property
    def box(self) -> int:
        return self.half_plane.box

    def band(self, max_radius: float) -> "ScratchSet":
        """The coefficients with ``|k| <= max_radius``."""
        inner = self.half_plane.band(max_radius)
        n = len(inner)
        optics = None if self.optics is None else replace(self.optics, gain=self.optics.gain[:n])
        return replace(self, half_plane=inner, noise_variance=self.noise_variance[:n], optics=optics)

    def rows(self, rows: Tensor | slice) -> WorkingSet:
        """Some of the particles, read into memory."""
        index = torch.arange(len(self))[rows.cpu() if isinstance(rows, Tensor) else rows]
        found, whole, n = self.file.read(index.numpy()), self.file.n_coefficients, len(self.half_plane)
        image_ft = torch.view_as_complex(found[:, : 2 * whole].unflatten(1, (-1, 2)))[:, :n].contiguous()
        transfer = found[:, 2 * whole : 2 * whole + n].contiguous()
        for noise_sd in self.image_steps:
            image_ft.div_(noise_sd[:n])
        for noise_sd, brightness in self.transfer_steps:
            transfer.mul_(brightness[index, None] / noise_sd[:n])
        optics = None if self.optics is None else replace(self.optics, ctf=self.optics.ctf[index])
        return WorkingSet(self.half_plane, image_ft, transfer, self.noise_variance, optics).to(self.device)

    def without_optics(self) -> "ScratchSet":
        """The same images; they cannot be turned any more."""
        return replace(self, optics=None)

    def to(self, device: torch.device) -> "ScratchSet":
        """The same file, read to another device."""
        half_plane, variance = self.half_plane.to(device), self.noise_variance.to(device)
        return replace(self, half_plane=half_plane, noise_variance=variance, device=device)

    def whiten_(self, noise_sd: Tensor, brightness: Tensor) -> None:
        """As :meth:`WorkingSet.whiten_`, from the next read on."""
        self.image_steps.append(noise_sd)
        self.transfer_steps.append((noise_sd, brightness))

    def replace_transfer_(self, parts: Iterator[tuple[slice, Tensor]]) -> None:
        """As :meth:`WorkingSet.replace_transfer_`; the new transfers count as they are, whatever steps there were."""
        for rows, transfer in parts:
            self.file.write_transfer(rows.start, transfer)
        self.transfer_steps.clear()
