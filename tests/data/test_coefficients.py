"""Images in a scratch file are those in memory, to the bit; a full disk is told at once."""

import dataclasses
import errno
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ace_em.data import particle_stack
from ace_em.data.coefficients import InMemory, ScratchFile
from ace_em.data.particle_stack import ParticleStack
from ace_em.errors import InputError
from ace_em.maths.half_plane import HalfPlane
from stacks import ctf_parameters, stack_of

N = 23
ROWS: dict[str, Tensor | slice] = {
    "slice": slice(5, 40),
    "all": slice(None),
    "scattered": torch.tensor([22, 3, 4, 5, 0, 3, 19]),
    "mask": torch.arange(N) % 3 == 1,
    "none": torch.zeros(N, dtype=torch.bool),
}


def pair(folder: Path, box: int) -> tuple[ParticleStack, ParticleStack]:
    """The same images in memory and in a file; an odd number of coefficients at box 33."""
    generator = torch.Generator().manual_seed(1)
    half_plane = HalfPlane.within(box)
    image_ft = torch.randn(N, len(half_plane), dtype=torch.complex64, generator=generator)
    file = ScratchFile(folder, N, len(half_plane))
    for start in range(0, N, 7):
        file.write(start, image_ft[start : start + 7])
    parameters = ctf_parameters(N).defocused(100 * torch.arange(N))
    memory = stack_of(half_plane, image_ft, parameters, 4.0)
    memory = memory.with_noise(memory.noise.scaled(0.5 + torch.rand(1, box // 2 + 1, generator=generator)))
    return memory, dataclasses.replace(memory, store=file)


def assert_same(memory: ParticleStack, scratch: ParticleStack) -> None:
    assert len(memory) == len(scratch) and memory.box == scratch.box
    for rows in ROWS.values():
        one, other = memory.batch(rows), scratch.batch(rows)
        assert torch.equal(one.image_ft, other.image_ft) and torch.equal(one.effective_ctf, other.effective_ctf)
        assert torch.equal(memory.images(rows), scratch.images(rows))


@pytest.mark.parametrize("box", [32, 33])
def test_the_same_as_in_memory(tmp_path: Path, box: int) -> None:
    memory, scratch = pair(tmp_path, box)
    assert_same(memory, scratch)
    assert_same(memory.band(9.5), scratch.band(9.5))
    rows = torch.tensor([7, 2, 2, 20])
    some = scratch.subset(rows).band(7).in_memory()
    assert isinstance(some.store, InMemory) and some.store.coefficients.shape == (4, len(some.half_plane))
    assert torch.equal(some.batch(slice(None)).image_ft, memory.band(7).batch(rows).image_ft)
    assert memory.in_memory() is memory
    assert torch.equal(scratch.power(), memory.power())


def test_blocks_hold_every_image_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, scratch = pair(tmp_path, 32)
    monkeypatch.setattr(particle_stack, "BLOCK_BYTES", 5 * 12 * len(memory.half_plane))
    assert [len(b) for b in scratch.blocks()] == [5, 5, 5, 5, 3]
    rows = torch.tensor([4, 9, 2, 20, 21, 1])
    assert torch.equal(torch.cat(list(memory.blocks(rows))), rows)
    torch.testing.assert_close(scratch.power(), memory.batch(slice(None)).image_ft.abs().square().sum(1))


def test_the_file_has_no_name_and_its_space_comes_back(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else None
    memory, scratch = pair(tmp_path, 32)
    assert list(tmp_path.iterdir()) == []
    assert torch.equal(scratch.images(slice(None)), memory.images(slice(None)))
    del scratch
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_disk_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match=rf"{tmp_path.name}: 8\.0 GiB of scratch space.*No space left.*--scratch.*--memory"):
        ScratchFile(tmp_path, 2**30 // 300, 300)
    assert list(tmp_path.iterdir()) == []
