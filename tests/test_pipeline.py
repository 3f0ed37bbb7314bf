"""A small run end to end: every file of RUN/, the same bytes from the same seed, the same poses from black protein."""

import csv
import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
import yaml

from ace_em import cli
from ace_em.config import RunConfig, SimulationConfig
from ace_em.data.mrc import read_volume
from ace_em.data.particles import Particles
from ace_em.data.star import numeric_column, read_particle_star, write_star
from ace_em.evaluation import evaluate
from ace_em.metrics.fsc import resolution_shell
from ace_em.simulation.write import simulate

STRUCTURE = Path(__file__).parents[1] / "examples/data/5nrl_every10th_atom.npz"
N, BOX, PIXEL = 300, 32, 17.0
FILES = {
    "config.yaml",
    "metrics.jsonl",
    "volume.mrc",
    "half1.mrc",
    "half2.mrc",
    "fsc.csv",
    "poses.star",
    "checkpoint.pt",
    "report.html",
}
POSE_COLUMNS = ["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst"]
SMALL = ["--ace.steps", 20, "--ace.batch", 64, "--ace.width", 64, "--search.explore_rounds", 3, "--search.max_rounds", 2]
SMALL += ["--refine.max_rounds", 2, "--starts", 1, "--threads", 1]


def run_cli(*args: object) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(a) for a in args])
    assert ended.value.code == 0


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated set whose table also has columns and a block that mean nothing to us, and half-sets in rich.star."""
    folder = tmp_path_factory.mktemp("data")
    simulate(STRUCTURE, folder, SimulationConfig(n=N, box=BOX, pixel_size=PIXEL, resolution=30.0, snr_db=0.0))
    table = read_particle_star(folder / "particles.star")
    table.particles.insert(1, "rlnCoordinateX", [f"{i}.50" for i in range(N)])
    table.particles["customNote"] = [f"n{i:03d}" for i in range(N)]
    table.particles["rlnRandomSubset"] = ["2" if i % 3 else "1" for i in range(N)]
    write_star(folder / "rich.star", dataclasses.replace(table, others={"extra": {"rlnOwner": "somebody"}}))
    return folder


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    before = contents(data)
    out = tmp_path_factory.mktemp("runs") / "first"
    run_cli("reconstruct", data / "particles.star", "-o", out, *SMALL)
    assert contents(data) == before
    return out


@pytest.fixture(scope="module")
def rich_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rich") / "run"
    run_cli("reconstruct", data / "rich.star", "-o", out, *SMALL, "--seed", 1)
    return out


def test_every_file_and_no_other(run: Path) -> None:
    assert {p.name for p in run.iterdir()} == FILES
    assert all(p.stat().st_size > 100 for p in run.iterdir())


def test_records_tell_the_stages_in_order(run: Path) -> None:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    stages = list(dict.fromkeys(r["stage"] for r in records))
    assert stages == ["survey", "ace", "search", "refine", "end"]
    times = [r["time_s"] for r in records]
    assert times == sorted(times) and times[0] >= 0
    survey, end = records[0], records[-1]
    assert (survey["n_particles"], survey["box"], survey["pixel_size_angstrom"]) == (N, BOX, PIXEL)
    assert survey["contrast"] == "white" and 200 < survey["diameter_angstrom"] < 500
    assert [r["step"] for r in records if r["stage"] == "ace"] == [10, 20]
    assert [r["round"] for r in records if r["stage"] == "search"] == [1, 2]
    assert isinstance(end["converged"], bool) and end["resolution_angstrom"] >= 2 * PIXEL and end["message"]


def test_maps_and_their_fsc(run: Path) -> None:
    maps = {}
    for name in ("volume", "half1", "half2"):
        maps[name], pixel_size = read_volume(run / f"{name}.mrc")
        assert maps[name].shape == (BOX,) * 3 and pixel_size == pytest.approx(PIXEL) and maps[name].std() > 0
    flat = {name: volume.ravel() for name, volume in maps.items()}
    assert np.corrcoef(flat["half1"], flat["half2"])[0, 1] > 0.8 and not np.array_equal(flat["half1"], flat["half2"])
    assert np.corrcoef(flat["volume"], flat["half1"] + flat["half2"])[0, 1] > 0.95
    # white inside
    assert maps["volume"][BOX // 2 - 3 : BOX // 2 + 3].mean() > 0
    with open(run / "fsc.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["shell", "frequency_per_angstrom", "resolution_angstrom", "fsc"]
    assert [int(r["shell"]) for r in rows] == list(range(BOX // 2 + 1)) and rows[0]["resolution_angstrom"] == "inf"
    for r in rows[1:]:
        assert float(r["resolution_angstrom"]) == pytest.approx(BOX * PIXEL / int(r["shell"]), abs=1e-3)
        assert float(r["frequency_per_angstrom"]) == pytest.approx(int(r["shell"]) / (BOX * PIXEL), abs=1e-6)
    shell = resolution_shell(torch.tensor([float(r["fsc"]) for r in rows]), 0.143)
    end = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert end["resolution_angstrom"] == pytest.approx(BOX * PIXEL / shell, rel=1e-3)


def test_poses_open_as_particles(run: Path, data: Path) -> None:
    given, found = read_particle_star(data / "particles.star"), read_particle_star(run / "poses.star")
    assert list(found.particles) == [*given.particles, *POSE_COLUMNS, "rlnRandomSubset"]
    assert found.particles[list(given.particles)].equals(given.particles)
    halves = np.bincount(numeric_column(found, "rlnRandomSubset").astype(int))
    assert halves.tolist() == [0, N // 2, N // 2]
    particles = Particles.open(run / "poses.star", project_root=data)
    pose = particles.poses()
    assert pose is not None and pose.shift_px.abs().max() < BOX / 2
    # the images have shifts of 1.2 pixels along each axis; most of that is found, whatever the rotations
    truth = Particles.open(data / "truth.star").poses()
    assert truth is not None
    assert (pose.shift_px - truth.shift_px).square().mean() < 0.6 * truth.shift_px.square().mean()


def test_every_input_column_and_block_is_kept(rich_run: Path, data: Path) -> None:
    given, found = read_particle_star(data / "rich.star"), read_particle_star(rich_run / "poses.star")
    assert list(found.particles) == [*given.particles, *POSE_COLUMNS]
    # given half-sets are the ones that are used, so the column is as it was
    assert found.particles[list(given.particles)].equals(given.particles)
    assert found.optics is not None and given.optics is not None and found.optics.equals(given.optics)
    assert found.others == {"extra": {"rlnOwner": "somebody"}}


def test_checkpoint_is_safe_to_load_and_agrees_with_the_files(run: Path, data: Path) -> None:
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    pose = Particles.open(run / "poses.star", project_root=data).poses()
    assert pose is not None
    torch.testing.assert_close(state["rotation"], pose.rotation, atol=1e-5, rtol=0)
    torch.testing.assert_close(state["shift_px"], pose.shift_px, atol=1e-4, rtol=0)
    assert state["start"] == 1 and all(torch.isfinite(v).all() for v in state["model"].values())
    volume = torch.from_numpy(read_volume(run / "volume.mrc")[0])
    assert torch.corrcoef(torch.stack([volume.flatten(), state["volume"].flatten()]))[0, 1] > 0.999


def test_config_holds_every_setting(run: Path, data: Path) -> None:
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert settings.pop("particles") == str((data / "particles.star").resolve())
    expected = dataclasses.asdict(RunConfig())
    assert list(settings) == list(expected)
    assert settings["ace"].pop("steps") == 20 and settings["search"].pop("max_rounds") == 2 and settings["starts"] == 1
    assert list(settings["ace"]) == [name for name in expected["ace"] if name != "steps"]
    assert settings["refine"] == expected["refine"] | {"max_rounds": 2}


def test_config_repeats_the_run_bit_by_bit(run: Path, tmp_path: Path) -> None:
    # the first run's particles stand in its config; where it wrote does not
    run_cli("reconstruct", "--config", run / "config.yaml", "-o", tmp_path / "again")
    for name in ("poses.star", "volume.mrc", "half1.mrc", "half2.mrc", "fsc.csv", "config.yaml"):
        assert (tmp_path / "again" / name).read_bytes() == (run / name).read_bytes(), name


def test_another_seed_is_another_run(run: Path, rich_run: Path) -> None:
    one, other = (read_particle_star(r / "poses.star").particles for r in (run, rich_run))
    assert (one["rlnAngleRot"] != other["rlnAngleRot"]).mean() > 0.9
    # stage 1 knows nothing of half-sets: only the seed can tell these apart
    losses = [
        [json.loads(li).get("image_loss") for li in (r / "metrics.jsonl").read_text().splitlines()] for r in (run, rich_run)
    ]
    assert losses[0][1] is not None and losses[0][1:3] != losses[1][1:3]


def test_black_protein_gives_the_same_poses(run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The stack negated; and scaled and lifted, by powers of two so that no digit is lost to rounding."""
    stack = mrcfile.read(data / "particles.mrcs")
    with mrcfile.new(tmp_path / "particles.mrcs") as file:
        file.set_data(-4 * stack)
    (tmp_path / "particles.star").write_bytes((data / "particles.star").read_bytes())
    run_cli("reconstruct", tmp_path / "particles.star", "-o", tmp_path / "run", *SMALL)
    assert "protein is black (measured" in capsys.readouterr().out
    assert json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[0])["contrast"] == "black"
    assert (tmp_path / "run/poses.star").read_bytes() == (run / "poses.star").read_bytes()
    # protein is white inside the program, and in its maps
    assert (tmp_path / "run/volume.mrc").read_bytes() == (run / "volume.mrc").read_bytes()


def test_told_contrast_is_believed(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = [*SMALL, "--ace.steps", 1, "--search.max_rounds", 1, "--refine.max_rounds", 1, "--search.spacing", 3]
    run_cli("reconstruct", data / "particles.star", "-o", tmp_path / "run", *quick, "--contrast", "black", "--final-box", 24)
    assert "protein is black (as told" in capsys.readouterr().out
    volume, pixel_size = read_volume(tmp_path / "run/volume.mrc")
    assert volume.shape == (24, 24, 24) and pixel_size == pytest.approx(PIXEL * BOX / 24)


def test_evaluate_and_report_after_the_run(run: Path, data: Path) -> None:
    before = contents(run)
    run_cli("evaluate", run, "--truth", data)
    written = json.loads((run / "evaluation.json").read_text())
    assert list(written)[:4] == ["fsc05_px", "fsc05_angstrom", "bound_px", "rot_mean"]
    assert written["fsc05_px"] >= written["bound_px"] and 0 < written["coverage"] <= 1 and written["trans"] < 2
    run_cli("report", run)
    after = contents(run)
    assert {name for name in FILES if after[name] != before[name]} <= {"report.html"}
    assert after["report.html"] != before["report.html"]
    (run / "evaluation.json").unlink()
    (run / "report.html").write_bytes(before["report.html"])


def test_interrupt_leaves_a_checkpoint_and_no_litter(data: Path, tmp_path: Path) -> None:
    long = [*SMALL, "--search.max_rounds", 500, "--search.stable_share", 2]
    args = ["reconstruct", str(data / "particles.star"), "-o", str(tmp_path / "run"), *map(str, long)]
    code = f"import sys; sys.argv = ['ace-em', *{args!r}]; from ace_em.cli import main; main()"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "run/checkpoint.pt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err == "ace-em reconstruct: interrupted\n"
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"config.yaml", "metrics.jsonl", "checkpoint.pt"}
    assert torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)["rotation"].shape == (N, 3, 3)


@pytest.mark.slow
def test_structure_is_solved_from_nothing(tmp_path: Path) -> None:
    """What it is all for: noisy images, no poses, no reference, no option given."""
    simulate(STRUCTURE, tmp_path, SimulationConfig(n=1500, box=64, pixel_size=8.5, resolution=20.0, snr_db=-10.0, seed=5))
    run = tmp_path / "run"
    run_cli("reconstruct", tmp_path / "particles.star", "-o", run)
    result = evaluate(run, tmp_path)
    assert result.within_10deg > 0.95 and result.rot_median < 0.002 and result.trans < 1.0
    assert result.fsc05_px < 1.1 * result.bound_px
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["converged"] is True
