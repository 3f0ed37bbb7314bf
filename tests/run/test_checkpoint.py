"""The checkpoint's own logic, on a made-up run of two steps: what is saved, written, loaded, and refused."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ace_em.errors import InputError
from ace_em.run.checkpoint import Checkpoint, StopRequested
from ace_em.run.folder import RunFolder
from ace_em.run.reporter import RecordFile, Reporter

FINGERPRINT = {"particles": 7, "image names": "abc"}


@dataclass(frozen=True)
class Sum:
    """What the toy steps give."""

    numbers: Tensor
    name: str


def opened(folder: Path, every_s: float = 0.0, fingerprint: object = FINGERPRINT) -> Checkpoint:
    """The checkpoint of a run in ``folder``, its records too."""
    folder.mkdir(exist_ok=True)
    run, reporter = RunFolder(folder), Reporter(mode="quiet")
    run.metrics.touch()
    reporter.records = RecordFile(run.metrics)
    return Checkpoint(run, reporter, fingerprint, every_s)


def steps(checkpoint: Checkpoint, n: int = 5) -> Iterator[str]:
    """Two steps that add random numbers; yields before each of their updates."""
    for name in ("first", "second"):
        if checkpoint.load_done(Sum, name) is not None:
            continue
        begun = checkpoint.load_progress(name)
        generator = torch.Generator().manual_seed(len(name))
        done, numbers = 0, torch.zeros(3)
        if begun is not None:
            done, numbers = begun["done"], begun["numbers"]
            generator.set_state(begun["random"])
        while done < n:
            yield f"{name} {done}"
            numbers, done = numbers + torch.randn(3, generator=generator), done + 1
            checkpoint.reporter.record(name, done=done)
            checkpoint.save_progress(name, {"done": done, "numbers": numbers, "random": generator.get_state()})
        checkpoint.save_done(name, Sum(numbers, name))


def outcome(checkpoint: Checkpoint) -> list[Tensor]:
    results = [checkpoint.load_done(Sum, name) for name in ("first", "second")]
    assert all(r is not None for r in results)
    return [r.numbers for r in results if r is not None]


def without_times(run: RunFolder) -> list[str]:
    return [line.split('"time_s"')[0] + line.rpartition(",")[2] for line in run.metrics.read_text().splitlines()]


@pytest.mark.parametrize("lost_after", range(1, 11))
def test_a_run_that_is_lost_anywhere_ends_the_same(tmp_path: Path, lost_after: int) -> None:
    """Killed, without any time to write: what was saved last is all there is."""
    whole = opened(tmp_path / "whole")
    for _ in steps(whole):
        pass
    cut = opened(tmp_path / "cut")
    for count, _ in enumerate(steps(cut)):
        if count == lost_after:
            break
    resumed = opened(tmp_path / "cut")
    assert resumed.reload()
    for _ in steps(resumed):
        pass
    assert all(torch.equal(a, b) for a, b in zip(outcome(whole), outcome(resumed), strict=True))
    assert without_times(whole.run) == without_times(resumed.run)


def test_states_are_written_now_and_then_and_on_the_way_out(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path / "run", every_s=1000.0)
    for count, _ in enumerate(steps(checkpoint)):
        if count == 3:
            break
    assert checkpoint.run.read_checkpoint() is None
    checkpoint.flush()
    state = checkpoint.run.read_checkpoint()
    assert state is not None and (state["name"], state["state"]["done"]) == ("first", 3)
    # records of what came later are dropped with it
    checkpoint.reporter.record("first", done=4)
    resumed = opened(tmp_path / "run")
    assert resumed.reload() and resumed.where() == "in first"
    assert len(resumed.run.metrics.read_text().splitlines()) == 3


def test_the_end_of_a_step_is_always_written(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path / "run", every_s=1000.0)
    for name in steps(checkpoint):
        if name == "second 0":
            break
    state = checkpoint.run.read_checkpoint()
    assert state is not None and list(state["done"]) == ["first"] and state["name"] == ""
    assert checkpoint.where() == "after first"


def test_a_request_to_stop_ends_the_step_at_its_last_state(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path / "run", every_s=1000.0)
    with pytest.raises(StopRequested):
        for count, _ in enumerate(steps(checkpoint)):
            if count == 2:
                checkpoint.run.stop.touch()
    checkpoint.flush()
    state = checkpoint.run.read_checkpoint()
    assert state is not None and state["state"]["done"] == 3


def test_results_that_are_replaced_are_dropped(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path / "run")
    for number in (1, 2):
        checkpoint.save_done(f"start {number}: judged", Sum(torch.ones(1), "start"))
    checkpoint.save_done("kept", Sum(torch.zeros(1), "kept"), instead_of="start ")
    assert list(checkpoint.done) == ["kept"] and checkpoint.load_done(Sum, "start 1: judged") is None


@pytest.mark.parametrize("broken", [b"", b"nonsense", None])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path, broken: bytes | None) -> None:
    checkpoint = opened(tmp_path / "run")
    for count, _ in enumerate(steps(checkpoint)):
        if count == 4:
            break
    path = checkpoint.run.checkpoint
    path.write_bytes(path.read_bytes()[:700] if broken is None else broken)
    # what a kill in the middle of a write leaves
    litter = tmp_path / "run/.checkpoint.0a1b2c3d.pt"
    litter.write_bytes(b"half")
    resumed = opened(tmp_path / "run")
    resumed.run.reopen()
    assert resumed.reload() and not litter.exists()
    state = resumed.load_progress("first")
    assert state is not None and state["done"] == 3
    # with both gone the run begins again
    for one in (path, checkpoint.run.previous_checkpoint):
        one.write_bytes(b"")
    again = opened(tmp_path / "run")
    assert not again.reload() and again.run.metrics.read_text() == ""


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = opened(tmp_path / "run")
    walk, save = steps(checkpoint), torch.save
    next(walk), next(walk), next(walk)

    def full(state: object, path: Path) -> None:
        Path(path).write_bytes(b"half of it")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        next(walk)
    monkeypatch.setattr(torch, "save", save)
    assert not list((tmp_path / "run").glob(".checkpoint*"))
    resumed = opened(tmp_path / "run")
    assert resumed.reload()
    state = resumed.load_progress("first")
    assert state is not None and state["done"] in (1, 2)


def test_other_particles_and_versions_are_refused(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path / "run")
    for _ in steps(checkpoint, 1):
        pass
    with pytest.raises(InputError, match="particles was 7, now 8"):
        opened(tmp_path / "run", fingerprint=FINGERPRINT | {"particles": 8}).reload()
    state = checkpoint.run.read_checkpoint()
    assert state is not None
    checkpoint.run.write_checkpoint(state | {"format": 1})
    with pytest.raises(InputError, match="written by another version of ace-em"):
        opened(tmp_path / "run").reload()


def test_the_time_of_a_resumed_run_goes_on(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path / "run")
    checkpoint.reporter.resume_from(500.0)
    checkpoint.save_done("first", Sum(torch.ones(1), "first"))
    resumed = opened(tmp_path / "run")
    assert resumed.reload() and 500 <= resumed.reporter.elapsed_s < 600
    assert os.path.getsize(resumed.run.checkpoint) > 0
