"""A small run end to end: every file of RUN/, the same bytes from the same seed, the same poses from black protein, the
other hand, a point group, and the exit code of a run that is not to be trusted."""

import csv
import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import roma
import torch
import yaml

from ace_em import cli
from ace_em.config import RunConfig, SimulationConfig
from ace_em.data.particles import Particles
from ace_em.io.mrc import read_volume
from ace_em.io.star import numeric_column, read_particle_star, write_star
from ace_em.maths.fourier import radius_grid
from ace_em.maths.masks import ball_radius_px, soft_ball
from ace_em.maths.point_group import point_group
from ace_em.maths.radial_mean import features
from ace_em.maths.rotations import angular_distance_deg
from ace_em.metrics.alignment import Frame, align_poses, apply_frame, turn_volume
from ace_em.metrics.fsc import fourier_shell_correlation, resolution_shell
from ace_em.refinement.half_sets import low_pass
from ace_em.run import pipeline
from ace_em.run.evaluation import evaluate
from ace_em.simulation.density import density_map
from ace_em.simulation.structure import Atoms
from ace_em.simulation.write import simulate
from commands import STRUCTURE, run_cli
from volumes import symmetrise_volume

N, BOX, PIXEL = 300, 32, 17.0
FILES = {
    "config.yaml",
    "metrics.jsonl",
    "volume.mrc",
    "half1.mrc",
    "half2.mrc",
    "half1_damped.mrc",
    "half2_damped.mrc",
    "volume_sharp.mrc",
    "mask.mrc",
    "fsc.csv",
    "poses.star",
    "checkpoint.pt",
    "checkpoint.previous.pt",
    "status.json",
    "encoder.pt",
    "report.html",
}
CONFIDENCE_COLUMNS = [
    "aceConfidence",
    "aceLikelihoodGap",
    "aceHypothesisSpread",
    "aceParticleProbability",
    "aceImageContent",
]
POSE_COLUMNS = ["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst"]
# half of the signal is beyond a band that a small run can be searched in
SMALL = [
    "--ace.steps",
    20,
    "--ace.batch",
    64,
    "--ace.fourier.width",
    64,
    "--search.ab_initio_rounds",
    3,
    "--search.max_rounds",
    2,
]
SMALL += ["--search.first_band", 4.5, "--search.last_band", 5.5, "--search.spacing", 2, "--search.top_k", 2]
SMALL += ["--refine.max_rounds", 2, "--starts", 1, "--threads", 1, "--predict.steps", 20]
# so few images and rounds explain too little to be trusted
STRICT = ["--search.shortfall", 0.05]
NOT_CONVERGED = 3


def records_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def read_map(path: Path) -> torch.Tensor:
    return torch.from_numpy(read_volume(path)[0].copy())


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()


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
    run_cli("reconstruct", data / "particles.star", "-o", out, *SMALL, *STRICT, codes=(NOT_CONVERGED,))
    assert contents(data) == before
    return out


@pytest.fixture(scope="module")
def rich_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rich") / "run"
    lenient = ["--search.shortfall", 1, "--search.settled_share", 0.2]
    run_cli("reconstruct", data / "rich.star", "-o", out, *SMALL, "--seed", 1, *lenient)
    return out


def test_every_file_and_no_other(run: Path) -> None:
    # what has not converged names no confident particle
    assert {p.name for p in run.iterdir()} == FILES
    assert (numeric_column(read_particle_star(run / "poses.star"), CONFIDENCE_COLUMNS[0]) == 0).all()
    assert all(p.stat().st_size > 100 for p in run.iterdir())


def test_records_tell_the_stages_in_order(run: Path) -> None:
    records = records_of(run)
    stages = list(dict.fromkeys(r["stage"] for r in records))
    assert stages == [
        "begin",
        "survey",
        "ace",
        "ab_initio",
        "start",
        "kept",
        "search",
        "refine",
        "encoder",
        "content",
        "confidence",
        "end",
    ]
    times = [r["time_s"] for r in records]
    assert times == sorted(times) and times[0] >= 0
    survey, end = records[1], records[-1]
    assert (survey["n_particles"], survey["box"], survey["pixel_size_angstrom"]) == (N, BOX, PIXEL)
    assert survey["contrast"] == "white" and 200 < survey["diameter_angstrom"] < 500
    assert [r["step"] for r in records if r["stage"] == "ace"] == [10, 20]
    for stage, rounds in (("ab_initio", 3), ("search", 2), ("refine", 3)):
        assert [r["round"] for r in records if r["stage"] == stage] == list(range(1, rounds + 1)), stage
    (start,) = [r for r in records if r["stage"] == "start"]
    assert start["held_out"] == N // 5 and 0 < start["explained"] < 1.2 and start["against_null_z"] > 5
    assert 0.5 < start["expected"] < 1
    assert [r["start"] for r in records if r["stage"] == "kept"] == [1]
    assert end["resolution_angstrom"] >= 2 * PIXEL and end["masked_resolution_angstrom"] >= 2 * PIXEL


def test_verdict_is_the_exit_code(run: Path, rich_run: Path) -> None:
    """``run_cli`` in the fixtures has checked the codes."""
    end = records_of(run)[-1]
    assert end["converged"] is False
    assert end["message"].startswith("not converged: ") and "--starts" in end["message"] and "--ace.steps" in end["message"]
    end = records_of(rich_run)[-1]
    assert end["converged"] is True and end["message"].startswith("converged: ")


def test_maps_and_their_fsc(run: Path) -> None:
    maps = {}
    for name in ("volume", "half1", "half2", "half1_damped", "half2_damped", "volume_sharp", "mask"):
        array, pixel_size = read_volume(run / f"{name}.mrc")
        assert array.shape == (BOX,) * 3 and pixel_size == pytest.approx(PIXEL) and array.std() > 0
        maps[name] = torch.from_numpy(array.copy())
    assert not torch.equal(maps["half1"], maps["half2"])
    low = {name: low_pass(volume, 8) for name, volume in maps.items()}
    assert correlation(low["half1"], low["half2"]) > 0.8
    assert correlation(low["volume"], low["half1"] + low["half2"]) > 0.9
    # the damped halves are the same maps where there are data, and quieter
    for half in ("half1", "half2"):
        assert correlation(low[half], low[f"{half}_damped"]) > 0.95
        assert maps[f"{half}_damped"].std() < maps[half].std()
    # white inside
    assert maps["volume"][BOX // 2 - 3 : BOX // 2 + 3].mean() > 0
    # the halves are unfiltered, all over the box; the map of both is kept in a ball
    corner = radius_grid(BOX, 3) > BOX / 2 + 2
    assert maps["half1"][corner].std() > 0.02 * maps["half1"].std()
    assert maps["volume"][corner].abs().max() < 1e-3 * maps["volume"].abs().max()
    assert 0 <= maps["mask"].min() and maps["mask"].max() == pytest.approx(1, abs=0.01)
    assert not maps["volume_sharp"][maps["mask"] == 0].any()
    assert correlation(maps["volume_sharp"], (low["half1"] + low["half2"]) * maps["mask"]) > 0.8
    with open(run / "fsc.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    curves = ["fsc", "fsc_features", "fsc_masked", "fsc_randomised", "fsc_corrected"]
    assert list(rows[0]) == ["shell", "frequency_per_angstrom", "resolution_angstrom", *curves]
    assert [int(r["shell"]) for r in rows] == list(range(BOX // 2 + 1)) and rows[0]["resolution_angstrom"] == "inf"
    for r in rows[1:]:
        assert float(r["resolution_angstrom"]) == pytest.approx(BOX * PIXEL / int(r["shell"]), abs=1e-3)
        assert float(r["frequency_per_angstrom"]) == pytest.approx(int(r["shell"]) / (BOX * PIXEL), abs=1e-6)
    column = {name: torch.tensor([float(r[name]) for r in rows]) for name in curves}
    end = records_of(run)[-1]
    for name, key in (("fsc", "resolution_angstrom"), ("fsc_corrected", "masked_resolution_angstrom")):
        assert end[key] == pytest.approx(BOX * PIXEL / resolution_shell(column[name], 0.143), rel=1e-3)
    ball = soft_ball(BOX, ball_radius_px(BOX, records_of(run)[1]["diameter_angstrom"] / PIXEL))
    features_fsc = fourier_shell_correlation(*(features(maps[name] * ball) for name in ("half1_damped", "half2_damped")))
    torch.testing.assert_close(column["fsc_features"], features_fsc, atol=2e-3, rtol=0)
    # another program gets the same curve from the files, but for the ball's edge
    masked = fourier_shell_correlation(maps["half1_damped"] * maps["mask"], maps["half2_damped"] * maps["mask"])
    torch.testing.assert_close(column["fsc_masked"], masked, atol=0.01, rtol=0)


def test_poses_open_as_particles(run: Path, data: Path) -> None:
    given, found = read_particle_star(data / "particles.star"), read_particle_star(run / "poses.star")
    assert list(found.particles) == [*given.particles, *POSE_COLUMNS, "rlnRandomSubset", *CONFIDENCE_COLUMNS]
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
    assert list(found.particles) == [*given.particles, *POSE_COLUMNS, *CONFIDENCE_COLUMNS]
    # given half-sets are the ones that are used, so the column is as it was
    assert found.particles[list(given.particles)].equals(given.particles)
    assert found.optics is not None and given.optics is not None and found.optics.equals(given.optics)
    assert found.others == {"extra": {"rlnOwner": "somebody"}}


def test_checkpoint_is_safe_to_load_and_agrees_with_the_files(run: Path, data: Path) -> None:
    """The last two are kept, and hold tensors, numbers and strings alone."""
    pose = Particles.open(run / "poses.star", project_root=data).poses()
    assert pose is not None
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        state = torch.load(run / name, weights_only=True)["done"][f"refinement at {BOX} px"]
        best = {name: of_all[:, 0] for name, of_all in state["posterior"]["pose"].items()}
        torch.testing.assert_close(best["rotation"], pose.rotation, atol=1e-5, rtol=0)
        torch.testing.assert_close(best["shift_px"], pose.shift_px, atol=1e-4, rtol=0)
    volume = torch.from_numpy(read_volume(run / "volume.mrc")[0])
    kept = state["halves"]["combined"]
    assert torch.corrcoef(torch.stack([volume.flatten(), kept.flatten()]))[0, 1] > 0.999


def test_config_holds_every_setting(run: Path, data: Path) -> None:
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert settings.pop("particles") == str((data / "particles.star").resolve())
    expected = dataclasses.asdict(RunConfig())
    assert list(settings) == list(expected)
    assert settings["ace"].pop("steps") == 20 and settings["search"].pop("max_rounds") == 2 and settings["starts"] == 1
    assert list(settings["ace"]) == [name for name in expected["ace"] if name != "steps"]
    assert settings["ace"]["voxel"] == expected["ace"]["voxel"] and settings["ace"]["fourier"]["width"] == 64
    assert settings["refine"] == expected["refine"] | {"max_rounds": 2}
    assert (settings["symmetry"], settings["flip_hand"], settings["b_factor"]) == ("C1", False, None)


def test_config_repeats_the_run_bit_by_bit_from_black_protein_too(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], no_report: None
) -> None:
    """The stack negated; and scaled and lifted, by powers of two so that no digit is lost to rounding."""
    stack = mrcfile.read(data / "particles.mrcs")
    with mrcfile.new(tmp_path / "particles.mrcs") as file:
        file.set_data(-4 * stack)
    (tmp_path / "particles.star").write_bytes((data / "particles.star").read_bytes())
    again = tmp_path / "run"
    # the first run's particles stand in its config; what is typed wins. Where it wrote does not
    run_cli("reconstruct", tmp_path / "particles.star", "--config", run / "config.yaml", "-o", again, codes=(NOT_CONVERGED,))
    assert "protein is black (measured" in capsys.readouterr().out
    assert records_of(again)[1]["contrast"] == "black"
    # protein is white inside the program, and in its maps
    for name in (
        "poses.star",
        "volume.mrc",
        "half1.mrc",
        "half2.mrc",
        "half1_damped.mrc",
        "volume_sharp.mrc",
        "mask.mrc",
        "fsc.csv",
    ):
        assert (again / name).read_bytes() == (run / name).read_bytes(), name
    one, other = (yaml.safe_load((r / "config.yaml").read_text()) for r in (run, again))
    assert one.pop("particles") != other.pop("particles") and one == other


def test_config_means_the_same_from_another_folder(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], no_report: None
) -> None:
    """A relative --subset; and a request to stop that comes too late is gone."""
    monkeypatch.chdir(tmp_path)
    Path("rows.txt").write_text(" ".join(map(str, range(1, 151))))
    results = pipeline.write_results

    def asked_to_stop(*args: Any) -> None:
        Path("run/stop").touch()
        results(*args)

    monkeypatch.setattr(pipeline, "write_results", asked_to_stop)
    lenient = ["--search.shortfall", 1, "--search.settled_share", 0, "--predict.steps", 0, "--project", data]
    (tmp_path / "particles.star").write_bytes((data / "particles.star").read_bytes())
    with pytest.raises(SystemExit):
        cli.main([str(a) for a in ("reconstruct", "particles.star", "-o", "run", *SMALL, *lenient, "--subset", "rows.txt")])
    assert not Path("run/stop").exists()
    settings = yaml.safe_load(Path("run/config.yaml").read_text())
    assert settings["subset"] == str(tmp_path / "rows.txt") and settings["scratch"] == ""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main(["reconstruct", "../particles.star", "-o", "../run", "--resume"])
    assert ended.value.code in (0, NOT_CONVERGED) and "already finished" in capsys.readouterr().out


def test_flip_hand_writes_the_mirror_image_of_the_run(run: Path, data: Path, tmp_path: Path, no_report: None) -> None:
    run_cli("reconstruct", "--config", run / "config.yaml", "-o", tmp_path / "run", "--flip-hand", "true", codes=(NOT_CONVERGED,))
    z = torch.arange(1, BOX)  # the plane that has no partner on the other side apart
    for name in ("volume", "half1", "half2", "half1_damped", "half2_damped"):
        one, other = read_map(run / f"{name}.mrc"), read_map(tmp_path / f"run/{name}.mrc")
        assert torch.equal(other[z], one[BOX - z]), name
        assert correlation(one, other) < 0.99
    one, other = read_map(run / "volume_sharp.mrc"), read_map(tmp_path / "run/volume_sharp.mrc")
    assert correlation(other[z], one[BOX - z]) > 0.99
    poses = [Particles.open(r / "poses.star", project_root=data).poses() for r in (run, tmp_path / "run")]
    assert poses[0] is not None and poses[1] is not None
    torch.testing.assert_close(poses[1].rotation, poses[0].mirrored().rotation, atol=1e-5, rtol=0)
    torch.testing.assert_close(poses[1].shift_px, poses[0].shift_px, atol=1e-5, rtol=0)


def test_point_group_from_start_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str], no_report: None) -> None:
    """Four copies of some atoms about two-fold axes that no one has told of; the map has them along x, y and z."""
    generator = torch.Generator().manual_seed(0)
    group = point_group("D2").float()
    unit = torch.randn(60, 3, generator=generator).clamp(-1.5, 1.5) * torch.tensor([40.0, 30, 25]) + torch.tensor([40.0, 50, 30])
    coords = torch.einsum("gij,nj->gni", group, unit).reshape(-1, 3)
    hidden = coords @ roma.random_rotmat(generator=generator).T
    np.savez(tmp_path / "d2.npz", coords=hidden.numpy(), Z=np.full(len(coords), 6))
    simulate(tmp_path / "d2.npz", tmp_path, SimulationConfig(n=200, box=BOX, pixel_size=PIXEL, resolution=40.0, snr_db=0.0))
    run, options = tmp_path / "run", [*SMALL, "--ace.steps", 200, "--search.ab_initio_rounds", 5, "--symmetry", "d2"]
    with pytest.raises(SystemExit) as ended:
        cli.main([str(a) for a in ("reconstruct", tmp_path / "particles.star", "-o", run, *options)])
    assert ended.value.code == (0 if records_of(run)[-1]["converged"] else NOT_CONVERGED)
    records = records_of(run)
    stages = list(dict.fromkeys(r["stage"] for r in records))
    assert stages == [
        "begin",
        "survey",
        "ace",
        "ab_initio",
        "start",
        "kept",
        "symmetry",
        "search",
        "refine",
        "encoder",
        "content",
        "confidence",
        "end",
    ]
    (found,) = [r for r in records if r["stage"] == "symmetry"]
    # so short a run says 0.56 to 0.90, as the seed will have it
    assert found["group"] == "D2" and found["correlation"] > 0.4
    assert "D2: the correlation of the map with its symmetric copies" in capsys.readouterr().out
    assert "--symmetry" not in records[-1]["message"]
    volume = read_map(run / "volume.mrc")
    # to rounding: images alone make a map of such a particle nearly as symmetric
    assert correlation(volume, symmetrise_volume(volume, group)) > 0.999
    # it is that of the particle, with its axes where RELION has them: which is which, and the hand, are free
    truth = density_map(Atoms(coords / PIXEL, torch.ones(len(coords))), BOX, 1.0, 40.0 / PIXEL)
    frames = [Frame(turn, hand, torch.zeros(3)) for turn in point_group("O").float() for hand in (False, True)]
    assert max(correlation(turn_volume(volume, frame), truth) for frame in frames) > 0.9
    # not every map has that symmetry
    assert correlation(volume, symmetrise_volume(volume, point_group("C3").float())) < 0.9


def test_fitted_defocus_is_handed_back(run: Path, data: Path, tmp_path: Path, no_report: None) -> None:
    """On top of the same run: U and V move together, by what the record says, and the poses stay."""
    out = tmp_path / "run"
    run_cli(
        "reconstruct", data / "particles.star", "-o", out, *SMALL, *STRICT, "--refine.defocus", "true", codes=(NOT_CONVERGED,)
    )
    given, before, found = (read_particle_star(f) for f in (data / "particles.star", run / "poses.star", out / "poses.star"))
    moved = [numeric_column(found, name) - numeric_column(given, name) for name in ("rlnDefocusU", "rlnDefocusV")]
    np.testing.assert_allclose(moved[0], moved[1], atol=1e-5)
    record = next(r for r in records_of(out) if r["stage"] == "defocus")
    assert 1 < record["sd_angstrom"] == pytest.approx(moved[0].std(ddof=1), abs=0.1)
    assert np.abs(moved[0]).max() <= 2 * RunConfig().refine.defocus_range
    assert found.particles["rlnAngleRot"].equals(before.particles["rlnAngleRot"])


def test_images_of_nothing_do_not_converge(tmp_path: Path, capsys: pytest.CaptureFixture[str], no_report: None) -> None:
    """And on the way: contrast as told, and a final box smaller than the images'."""
    simulate(STRUCTURE, tmp_path, SimulationConfig(n=200, box=BOX, pixel_size=PIXEL, resolution=30.0, snr_db=0.0))
    with mrcfile.open(tmp_path / "particles.mrcs", "r+") as file:
        file.data[:] = np.random.default_rng(0).normal(size=file.data.shape)
    run, options = tmp_path / "run", ["--contrast", "black", "--final-box", 24, "--diameter", 340]
    run_cli("reconstruct", tmp_path / "particles.star", "-o", run, *SMALL, *options, codes=(NOT_CONVERGED,))
    said, end = capsys.readouterr().out, records_of(run)[-1]
    assert "protein is black (as given" in said
    assert end["converged"] is False and "more particles" in end["message"]
    assert "explains held-out images no better than a map with random phases" in end["message"]
    assert end["message"] in said
    volume, pixel_size = read_volume(run / "volume.mrc")
    assert volume.shape == (24, 24, 24) and pixel_size == pytest.approx(PIXEL * BOX / 24)


def test_another_seed_is_another_run(run: Path, rich_run: Path) -> None:
    one, other = (read_particle_star(r / "poses.star").particles for r in (run, rich_run))
    assert (one["rlnAngleRot"] != other["rlnAngleRot"]).mean() > 0.9
    # stage 1 knows nothing of half-sets: only the seed can tell these apart
    losses = [[record.get("image_loss") for record in records_of(r)] for r in (run, rich_run)]
    assert losses[0][2] is not None and losses[0][2:4] != losses[1][2:4]


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
    long = [*SMALL, "--search.ab_initio_rounds", 500, "--search.ab_initio_explained", 2]
    args = ["reconstruct", str(data / "particles.star"), "-o", str(tmp_path / "run"), *map(str, long)]
    # a shell without job control starts background commands, and what they start, deaf to the interrupt
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += f"sys.argv = ['ace-em', *{args!r}]; from ace_em.cli import main; main()"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "run/checkpoint.pt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err == "ace-em reconstruct: interrupted\n"
    left = {p.name for p in (tmp_path / "run").iterdir()} - {"checkpoint.previous.pt", "current.mrc"}
    assert left == {"config.yaml", "metrics.jsonl", "checkpoint.pt", "status.json"}
    assert torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)["fingerprint"]["particles"] == N


@pytest.mark.slow
def test_structure_is_solved_from_nothing(tmp_path: Path) -> None:
    """What it is all for: noisy images, no poses, no reference, no option given."""
    simulate(STRUCTURE, tmp_path, SimulationConfig(n=1500, box=64, pixel_size=8.5, resolution=20.0, snr_db=-10.0, seed=5))
    run = tmp_path / "run"
    run_cli("reconstruct", tmp_path / "particles.star", "-o", run)
    result = evaluate(run, tmp_path)
    assert result.within_10deg > 0.95 and result.rot_median < 0.002 and result.trans < 1.0
    assert result.fsc05_px < 1.1 * result.bound_px
    assert records_of(run)[-1]["converged"] is True


def with_noise_images(folder: Path, n: int, noise: int) -> np.ndarray:
    """Shuffle so many images of pure noise into a simulated set of ``n``; which images show the particle (n + noise,)."""
    random = np.random.default_rng(0)
    with mrcfile.open(folder / "particles.mrcs") as file:
        images = file.data.copy()
    # the corners of an image hold nothing but its noise
    sd = images[:, :8, :8].std()
    junk = (sd * random.standard_normal((noise, *images.shape[1:]))).astype(np.float32)
    order = random.permutation(n + noise)
    with mrcfile.new(folder / "particles.mrcs", np.concatenate([images, junk])[order], overwrite=True) as file:
        file.voxel_size = 8.5
        file.set_image_stack()
    for name in ("particles.star", "truth.star"):
        table = read_particle_star(folder / name)
        rows = table.particles.iloc[np.concatenate([np.arange(n), np.arange(noise)])[order]].reset_index(drop=True)
        rows["rlnImageName"] = [f"{i + 1:06d}@particles.mrcs" for i in range(n + noise)]
        write_star(folder / name, dataclasses.replace(table, particles=rows))
    return order < n


@pytest.mark.slow
def test_images_of_noise_do_not_bend_the_map(tmp_path: Path) -> None:
    """A quarter of the stack is pure noise: the first start solves it, and none of the noise is called confident."""
    simulate(STRUCTURE, tmp_path, SimulationConfig(n=1500, box=64, pixel_size=8.5, resolution=20.0, snr_db=-10.0, seed=5))
    shows = torch.from_numpy(with_noise_images(tmp_path, 1500, 500))
    run = tmp_path / "run"
    run_cli("reconstruct", tmp_path / "particles.star", "-o", run, "--predict.steps", 0, "--starts", 1)
    poses = [Particles.open(tmp_path / name, tmp_path).poses() for name in ("run/poses.star", "truth.star")]
    found, true = (pose[shows] for pose in poses if pose is not None)
    error = angular_distance_deg(apply_frame(found, align_poses(found, true)).rotation, true.rotation)
    assert (error < 10).float().mean() > 0.97
    records = records_of(run)
    assert records[-1]["converged"] is True
    assert [r["shown"] for r in records if r["stage"] == "refine"][-1] == pytest.approx(0.75, abs=0.01)
    confident = set(read_particle_star(run / "confident.star").particles["rlnImageName"])
    listed = torch.tensor([name in confident for name in read_particle_star(run / "poses.star").particles["rlnImageName"]])
    assert listed[shows].float().mean() > 0.9 and listed[~shows].float().mean() < 0.02
