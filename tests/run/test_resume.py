"""Runs that are stopped anywhere resume and end with the same bytes; settings, particles and folders are not mixed up."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ace_em.config import SimulationConfig
from ace_em.io.star import read_particle_star, write_star
from ace_em.run.checkpoint import Checkpoint
from ace_em.run.folder import RunFolder
from ace_em.simulation.write import simulate
from commands import STRUCTURE, run_cli

SMALL = ["--ace.steps", 30, "--ace.batch", 32, "--ace.fourier.width", 64, "--search.max_rounds", 2, "--starts", 1]
SMALL += ["--search.ab_initio_rounds", 3, "--search.first_band", 4.5, "--search.last_band", 5.5, "--search.spacing", 2]
SMALL += ["--search.top_k", 2, "--refine.max_rounds", 2, "--threads", 1, "--predict.steps", 30, "--checkpoint_s", 0]
BYTES = (
    "volume.mrc",
    "half1.mrc",
    "half2.mrc",
    "half1_damped.mrc",
    "volume_sharp.mrc",
    "mask.mrc",
    "fsc.csv",
    "poses.star",
    "confident.star",
)
pytestmark = pytest.mark.usefixtures("no_report")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    simulate(STRUCTURE, folder, SimulationConfig(n=150, box=24, pixel_size=22.0, resolution=50.0, snr_db=5.0))
    return folder


def reconstruct(data: Path, out: Path, *options: object, codes: tuple[int, ...] = (0, 3)) -> None:
    run_cli("reconstruct", data / "particles.star", "-o", out, *SMALL, *options, codes=codes)


def results(run: Path) -> dict[str, bytes]:
    return {name: (run / name).read_bytes() for name in BYTES}


def records(run: Path) -> list[dict[str, object]]:
    """All records but the times, and the beginnings, of which a resumed run has several."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "time_s"} for line in lines if line["stage"] != "begin"]


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ace_em.report.page.write_report", lambda run: run / "report.html")
        reconstruct(data, run)
    return run


def disturb(monkeypatch: pytest.MonkeyPatch, at: int, act: Callable[[Checkpoint], None]) -> list[str]:
    """Do something when progress is saved for the ``at``-th time; the names of the steps that saved theirs."""
    saved: list[str] = []
    original = Checkpoint.save_progress

    def disturbed(checkpoint: Checkpoint, name: str, state: object) -> None:
        original(checkpoint, name, state)
        saved.append(name)
        if len(saved) == at:
            act(checkpoint)

    monkeypatch.setattr(Checkpoint, "save_progress", disturbed)
    return saved


def interrupt(checkpoint: Checkpoint) -> None:
    raise KeyboardInterrupt


def test_interrupted_whenever_progress_is_saved_it_ends_as_if_undisturbed(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run, interrupted after every saved state of every stage, and resumed each time."""
    run, interrupted = tmp_path / "run", list[str]()
    for _ in range(30):
        with monkeypatch.context() as patched:
            saved = disturb(patched, 1, interrupt)
            reconstruct(data, run, *(["--resume"] if interrupted else []), codes=(0, 3, 130))
        if not saved:
            break
        assert json.loads((run / "status.json").read_text())["state"] == "stopped" and not (run / "volume.mrc").exists()
        interrupted += saved
    stages = ["start 1: training", "start 1: ab initio search", "search", "refinement at 24 px", "encoder training"]
    assert list(dict.fromkeys(interrupted)) == stages and len(interrupted) >= 10
    assert results(run) == results(whole)
    assert records(run) == records(whole)
    assert {p.name for p in run.iterdir()} == {p.name for p in whole.iterdir()}


def test_a_relaxed_refinement_resumes(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The axes of the pseudo-symmetry and the copies chosen are in the state that is saved, after each of its rounds."""
    options, interrupted = ["--relax-symmetry", "c3", "--predict.steps", 0], list[str]()
    reconstruct(data, tmp_path / "whole", *options)
    original = Checkpoint.save_progress

    def disturbed(checkpoint: Checkpoint, name: str, state: object) -> None:
        original(checkpoint, name, state)
        if name.startswith("refinement"):
            interrupted.append(name)
            raise KeyboardInterrupt

    for _ in range(6):
        with monkeypatch.context() as patched:
            patched.setattr(Checkpoint, "save_progress", disturbed)
            before = len(interrupted)
            reconstruct(data, tmp_path / "run", *options, *(["--resume"] if before else []), codes=(0, 3, 130))
        if len(interrupted) == before:
            break
    assert len(interrupted) == 3
    assert records(tmp_path / "run") == records(tmp_path / "whole")
    assert (tmp_path / "run/volume.mrc").read_bytes() == (tmp_path / "whole/volume.mrc").read_bytes()
    found = records(tmp_path / "run")
    stages = list(dict.fromkeys(record["stage"] for record in found))
    assert stages[stages.index("search") :][:3] == ["search", "pseudo_symmetry", "refine"] and "symmetry" not in stages
    assert ["changed_copy" in record for record in found if record["stage"] == "refine"] == [False, True, True]


def test_a_request_to_stop_is_heeded_with_a_checkpoint(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        disturb(patched, 3, lambda checkpoint: checkpoint.run.stop.touch())
        reconstruct(data, run, "--checkpoint_s", 1000, codes=(130,))
    assert "stopped in start 1: ab initio search; the same command with --resume" in capsys.readouterr().out
    assert not (run / "stop").exists()
    reconstruct(data, run, "--resume", "--memory", 1e-4)
    # with the images in a scratch file this time
    assert results(run) == results(whole)


def test_a_lost_stack_stops_the_run_and_comes_back(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, stack = tmp_path / "run", data / "particles.mrcs"
    with monkeypatch.context() as patched:
        # in the search, before the images are read for the refinement
        disturb(patched, 7, lambda checkpoint: stack.rename(data / "elsewhere"))
        reconstruct(data, run, codes=(2,))
    assert "particles.mrcs: no such file" in capsys.readouterr().err
    (data / "elsewhere").rename(stack)
    reconstruct(data, run, "--resume")
    assert results(run) == results(whole)


def test_other_settings_or_particles_are_refused(
    data: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p.name: p.read_bytes() for p in whole.iterdir()}
    reconstruct(data, whole, "--resume", "--seed", 3, codes=(2,))
    assert "--seed 3: the run in" in capsys.readouterr().err
    reconstruct(data, whole, "--resume", "--ace.fourier.depth", 2, codes=(2,))
    assert "--ace.fourier.depth 2: the run in" in capsys.readouterr().err
    table = read_particle_star(data / "particles.star")
    fewer = data / "fewer.star"
    write_star(fewer, table.rows(torch.arange(140).numpy()))
    run_cli("reconstruct", fewer, "-o", whole, "--resume", codes=(2,))
    assert "particles was 150, now 140" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in whole.iterdir() if p.name != "metrics.jsonl"} == {
        name: text for name, text in before.items() if name != "metrics.jsonl"
    }


@pytest.mark.parametrize("spelling", ["-o{}", "--output={}", "--output {}"])
def test_a_resumed_run_has_its_own_settings(data: Path, whole: Path, capsys: pytest.CaptureFixture[str], spelling: str) -> None:
    run_cli("reconstruct", data / "particles.star", *spelling.format(whole).split(), "--resume", codes=(0, 3))
    assert "already finished" in capsys.readouterr().out
    reconstruct(data, whole, "--resume", "--preset", "cryoai", codes=(2,))
    assert "--preset cryoai" in capsys.readouterr().err


def test_two_runs_do_not_share_a_folder(data: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunFolder(whole).locked():
        reconstruct(data, whole, "--resume", codes=(2,))
        reconstruct(data, whole, "--overwrite", codes=(2,))
    assert capsys.readouterr().err.count("another run is writing there") == 2
    assert (whole / "volume.mrc").exists() and not (whole / ".lock").exists()


def test_a_finished_run_is_left_as_it_is(data: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = results(whole)
    reconstruct(data, whole, "--resume")
    assert "already finished" in capsys.readouterr().out
    assert results(whole) == before


def test_images_in_a_scratch_file_give_the_same_bytes(
    data: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tenth of a megabyte holds the images of no box; the blocks of the rounds are the same."""
    run, scratch = tmp_path / "run", tmp_path / "scratch"
    scratch.mkdir()
    reconstruct(data, run, "--memory", 1e-4, "--scratch", scratch)
    assert "scratch file" in capsys.readouterr().out
    assert results(run) == results(whole)
    assert list(scratch.iterdir()) == []


@pytest.mark.slow
def test_kills_at_random_moments(data: Path, whole: Path, tmp_path: Path) -> None:
    """SIGKILL again and again, each time some way further on, until the run gets through."""
    run, generator = tmp_path / "run", torch.Generator().manual_seed(3)
    code = "import sys; sys.argv[0] = 'ace-em'; from ace_em.cli import main; main()"
    args = [str(a) for a in ("reconstruct", data / "particles.star", "-o", run, *SMALL, "--resume")]
    for attempt in range(40):
        with open(tmp_path / "stderr.txt", "wb") as stderr:
            process = subprocess.Popen([sys.executable, "-c", code, *args], stdout=subprocess.DEVNULL, stderr=stderr)
        # longer every time: a busy machine gets through too
        deadline = time.monotonic() + (4 + 4 * torch.rand(1, generator=generator).item()) * 1.1**attempt
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        if process.poll() is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode in (0, 3), (tmp_path / "stderr.txt").read_text()
    assert results(run) == results(whole)
