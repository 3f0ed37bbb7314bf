"""Images in a scratch file are those in memory, to the bit, whatever is done to them; a disk without room is told at once."""

import errno
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ace_em.data import working_set
from ace_em.data.scratch import ScratchFile, ScratchSet
from ace_em.data.working_set import TransferOptics, WorkingSet, blocks, image_power
from ace_em.errors import InputError
from ace_em.maths.half_plane import HalfPlane
from ace_em.physics.ctf import CTFParameters

N = 23
ROWS: dict[str, Tensor | slice] = {
    "slice": slice(5, 40),
    "all": slice(None),
    "scattered": torch.tensor([22, 3, 4, 5, 0, 3, 19]),
    "mask": torch.arange(N) % 3 == 1,
    "none": torch.zeros(N, dtype=torch.bool),
}


def pair(folder: Path, box: int) -> tuple[WorkingSet, ScratchSet]:
    """The same images in memory and in a file; an odd number of coefficients at box 33."""
    generator = torch.Generator().manual_seed(1)
    half_plane = HalfPlane.within(box)
    shape = (N, len(half_plane))
    image_ft = torch.randn(shape, dtype=torch.complex64, generator=generator)
    transfer, variance = torch.randn(shape, generator=generator), torch.rand(len(half_plane), generator=generator)
    file = ScratchFile(folder, *shape)
    for start in range(0, N, 7):
        file.write(start, image_ft[start : start + 7], transfer[start : start + 7])
    defocus = 10000 + 100 * torch.arange(N)
    fixed = [torch.full((N,), value) for value in (30.0, 300.0, 2.7, 0.1, 0.0)]
    optics = TransferOptics(CTFParameters(defocus, defocus, *fixed), 4.0, torch.rand(len(half_plane), generator=generator))
    return WorkingSet(half_plane, image_ft, transfer, variance, optics), ScratchSet(file, half_plane, variance, optics)


def assert_same(memory: WorkingSet, scratch: ScratchSet) -> None:
    assert len(memory) == len(scratch) and memory.box == scratch.box
    for rows in ROWS.values():
        one, other = memory.rows(rows), scratch.rows(rows)
        assert torch.equal(one.image_ft, other.image_ft) and torch.equal(one.transfer, other.transfer)
        assert torch.equal(one.noise_variance, other.noise_variance) and torch.equal(one.half_plane.k, other.half_plane.k)
        assert (one.optics is None) == (other.optics is None)
        if one.optics is not None and other.optics is not None:
            assert torch.equal(one.optics.ctf.defocus_u_angstrom, other.optics.ctf.defocus_u_angstrom)
            assert torch.equal(one.optics.gain, other.optics.gain)


@pytest.mark.parametrize("box", [32, 33])
def test_the_same_as_in_memory(tmp_path: Path, box: int) -> None:
    memory, scratch = pair(tmp_path, box)
    assert_same(memory, scratch)
    assert_same(memory.band(9.5), scratch.band(9.5))
    assert_same(memory.without_optics(), scratch.without_optics())
    elsewhere = scratch.to(torch.device("meta"))
    there = elsewhere.rows(slice(0, 2))
    found = (there.image_ft, there.transfer, there.noise_variance, there.half_plane.k, elsewhere.noise_variance)
    assert {x.device.type for x in found} == {"meta"}


def test_whitened_twice_and_given_other_transfers(tmp_path: Path) -> None:
    memory, scratch = pair(tmp_path, 33)
    generator = torch.Generator().manual_seed(2)
    inner = scratch.band(9.5)
    n = len(memory.half_plane)
    for _ in range(2):
        step = 0.5 + torch.rand(n, generator=generator), 0.5 + torch.rand(N, generator=generator)
        memory.whiten_(*step)
        scratch.whiten_(*step)
    assert_same(memory, scratch)
    assert_same(memory.band(9.5), inner)
    new = torch.randn(N, n, generator=generator)
    for images in (memory, scratch):
        images.replace_transfer_((slice(start, start + 10), new[start : start + 10]) for start in range(0, N, 10))
    assert_same(memory, scratch)
    assert torch.equal(scratch.rows(slice(None)).transfer, new)
    step = 0.5 + torch.rand(n, generator=generator), 0.5 + torch.rand(N, generator=generator)
    memory.whiten_(*step)
    scratch.whiten_(*step)
    assert_same(memory, scratch)


def test_blocks_hold_every_image_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, scratch = pair(tmp_path, 32)
    monkeypatch.setattr(working_set, "BLOCK_BYTES", 5 * 12 * len(memory.half_plane))
    assert [len(b) for b in blocks(scratch)] == [5, 5, 5, 5, 3]
    rows = torch.tensor([4, 9, 2, 20, 21, 1])
    assert torch.equal(torch.cat(list(blocks(memory, rows))), rows)
    power = memory.image_ft.abs().square().sum(1)
    for images in (memory, scratch):
        torch.testing.assert_close(image_power(images), power)


def test_the_file_has_no_name_and_its_space_comes_back(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else None
    memory, scratch = pair(tmp_path, 32)
    assert list(tmp_path.iterdir()) == []
    assert torch.equal(scratch.rows(slice(None)).image_ft, memory.image_ft)
    del scratch
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_disk_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match=rf"{tmp_path.name}: 12\.0 GiB of scratch space.*No space left.*--scratch.*--memory"):
        ScratchFile(tmp_path, 2**30 // 300, 300)
    assert list(tmp_path.iterdir()) == []
