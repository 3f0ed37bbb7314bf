"""``ace-em evaluate`` on runs made by hand, whose scores are known."""

import dataclasses
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import roma
import torch
from torch import Tensor

from ace_em.config import SimulationConfig
from ace_em.data.particle_stack import ParticleStack
from ace_em.data.particles import Particles
from ace_em.data.pose_columns import posed_table
from ace_em.data.preprocess import read_stack
from ace_em.data.survey import Survey, survey
from ace_em.errors import InputError
from ace_em.io.star import read_particle_star, write_star
from ace_em.maths.fourier import radius_grid
from ace_em.physics.pose import Pose
from ace_em.refinement.backprojection import Accumulator, accumulate, reconstruct_halves
from ace_em.report.page import write_report
from ace_em.run import evaluation
from ace_em.run import reporter as progress
from ace_em.run.evaluation import Evaluation, evaluate
from ace_em.run.folder import RunFolder
from ace_em.simulation.write import simulate
from commands import STRUCTURE, run_cli

CONFIG = SimulationConfig(n=300, box=32, pixel_size=17.0, resolution=30.0, snr_db=-18.0, seed=1)
TURN = torch.tensor(roma.rotvec_to_rotmat(torch.tensor([0.7, -1.1, 0.4])).tolist())
OFFSET_PX = torch.tensor([1.6, -1.4, 1.2])  # x, y, z: where the estimated frame has its origin


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("truth")
    simulate(STRUCTURE, out, CONFIG)
    return out


def true_pose(truth: Path) -> Pose:
    pose = Particles.open(truth / "truth.star").poses()
    assert pose is not None
    return pose


def in_another_frame(pose: Pose, mirrored: bool, offset_px: Tensor = OFFSET_PX) -> Pose:
    """The same views told in a frame that is turned, moved and, perhaps, of the other hand."""
    moved = pose.rotation.mT @ offset_px
    pose = Pose(pose.rotation, pose.shift_px - moved[:, [1, 0]])
    return Pose(TURN @ (pose.mirrored() if mirrored else pose).rotation, pose.shift_px)


def write_run(path: Path, truth: Path, pose: Pose, box: int = 32, rows: np.ndarray | None = None) -> Path:
    """RUN/ with these poses and the map that they give; ``rows`` are the particles that the run has, in this order."""
    particles = Particles.open(truth / "particles.star")
    stack = read_stack(particles, survey(particles), box)
    ball = torch.sigmoid(2 * (box / 2 - 2 - radius_grid(box, 3)))
    halves = [accumulate(stack.subset(slice(i, None, 2)), pose[i::2].rescaled(box / 32)) for i in (0, 1)]
    volume = reconstruct_halves(halves[0], halves[1], ball).combined
    path.mkdir()
    run = RunFolder(path)
    run.write_maps({"volume": volume}, 17.0 * 32 / box)
    rows = np.arange(len(pose)) if rows is None else rows
    table = read_particle_star(truth / "particles.star")
    kept = dataclasses.replace(table, particles=table.particles.iloc[rows].reset_index(drop=True))
    write_star(truth / "kept.star", kept)
    kept_particles = Particles.open(truth / "kept.star")
    run.write_poses(posed_table(kept_particles, pose[torch.from_numpy(rows)], 1 + np.arange(len(rows)) % 2), None)
    (truth / "kept.star").unlink()
    return path


@pytest.mark.parametrize("box", [32, 24])
@pytest.mark.parametrize("mirrored", [False, True], ids=["same hand", "mirrored"])
def test_the_frame_and_the_hand_do_not_matter(truth: Path, tmp_path: Path, mirrored: bool, box: int) -> None:
    pose = true_pose(truth)
    result = evaluate(write_run(tmp_path / "run", truth, in_another_frame(pose, mirrored), box), truth)
    assert result.hand == ("mirrored" if mirrored else "same")
    assert result.within_10deg == 1
    # angles have six decimals in poses.star
    assert result.rot_median < 1e-9 and result.rot_mean < 1e-9 and result.trans < 1e-8
    assert not (tmp_path / "run/report.html").exists()
    # noise ends it well before Nyquist, at 2 pixels: a score that could not be worse would say nothing
    assert 2.1 < result.fsc05_px < 6
    assert result.fsc05_px == pytest.approx(result.bound_px, rel=0.04)
    assert result.fsc05_angstrom == pytest.approx(result.fsc05_px * 17 * 32 / box)
    assert len(result.fsc_truth) == box // 2 + 1 and min(result.fsc_truth[1:4]) > 0.9


def test_the_page_of_a_run_shows_the_truth_from_then_on(truth: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", truth, true_pose(truth))
    (run / "metrics.jsonl").touch()
    write_report(run)
    assert "Comparison with the truth" not in (run / "report.html").read_text()
    run_cli("evaluate", run, "--truth", truth)
    page = (run / "report.html").read_text()
    assert "Comparison with the truth" in page and "100.00 %" in page


def test_errors_are_those_that_were_made(truth: Path, tmp_path: Path) -> None:
    """A third of the poses turned by 20 degrees, all shifts off by 3 and 4 hundredths."""
    pose = true_pose(truth)
    angle = math.radians(20)
    axis = torch.nn.functional.normalize(torch.randn(300, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    wrong = torch.arange(300) % 3 == 0
    rotation = torch.where(wrong[:, None, None], roma.rotvec_to_rotmat(angle * axis) @ pose.rotation, pose.rotation)
    off = torch.tensor([0.03, 0.04]) * torch.tensor([[1.0], [-1.0]]).repeat(150, 1)
    spoilt = in_another_frame(Pose(rotation, pose.shift_px), mirrored=False)
    result = evaluate(write_run(tmp_path / "run", truth, Pose(spoilt.rotation, spoilt.shift_px + off)), truth)
    assert result.within_10deg == pytest.approx(2 / 3)
    assert result.rot_median < 1e-9
    assert result.rot_mean == pytest.approx(8 * math.sin(angle / 2) ** 2 / 3, rel=1e-3)
    assert 0.002 < result.trans < 0.1
    assert result.fsc05_px > 1.02 * result.bound_px


def test_shift_error_is_in_pixels_of_the_images(truth: Path, tmp_path: Path) -> None:
    pose = true_pose(truth)
    off = torch.tensor([0.3, 0.4]) * torch.tensor([[1.0], [-1.0]]).repeat(150, 1)
    result = evaluate(write_run(tmp_path / "run", truth, Pose(pose.rotation, pose.shift_px + off), box=24), truth)
    assert result.trans == pytest.approx(0.25, rel=0.03)


def test_random_poses_score_as_random(truth: Path, tmp_path: Path) -> None:
    pose = true_pose(truth)
    random = roma.random_rotmat(300, generator=torch.Generator().manual_seed(3))
    result = evaluate(write_run(tmp_path / "run", truth, Pose(random, pose.shift_px)), truth)
    # E ||R - S||_F^2 = 6 for independent rotations; the alignment gains a little
    assert result.within_10deg < 0.03 and 4.5 < result.rot_mean < 6.3 and result.rot_median > 4
    assert result.fsc05_px > 1.5 * result.bound_px


def test_particles_are_matched_by_name(truth: Path, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).permutation(300)[:150]
    pose = in_another_frame(true_pose(truth), mirrored=True)
    result = evaluate(write_run(tmp_path / "run", truth, pose, rows=rows), truth)
    assert result.within_10deg == 1 and result.rot_median < 1e-9 and result.trans < 1e-8


def test_coverage(truth: Path, tmp_path: Path) -> None:
    """All views along one direction reach one of the 192 pixels of the sphere, in whatever frame they are told."""
    pose = true_pose(truth)
    full = evaluate(write_run(tmp_path / "full", truth, in_another_frame(pose, mirrored=False, offset_px=torch.zeros(3))), truth)
    # 300 uniform views leave exp(-300 / 192) of the pixels empty
    assert full.coverage == pytest.approx(1 - math.exp(-300 / 192), abs=0.06)
    spin = roma.rotvec_to_rotmat(torch.tensor([0.0, 0.0, 1.0]) * torch.linspace(0, 6, 300)[:, None])
    one = evaluate(write_run(tmp_path / "one", truth, Pose(pose.rotation[:1] @ spin, pose.shift_px)), truth)
    assert one.coverage <= 2 / 192


def test_the_command_prints_and_writes_the_same_numbers(truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", truth, in_another_frame(true_pose(truth), mirrored=True))
    before = {p.name for p in run.iterdir()}
    run_cli("evaluate", run, "--truth", truth)
    out = capsys.readouterr().out
    assert {p.name for p in run.iterdir()} == before | {"evaluation.json"}
    written = json.loads((run / "evaluation.json").read_text())
    assert list(written) == [field.name for field in dataclasses.fields(Evaluation)]
    # two threads add up in another order each time
    again = dataclasses.asdict(evaluate(run, truth))
    assert written["hand"] == again.pop("hand")
    assert {name: written[name] for name in again} == {name: pytest.approx(value, abs=1e-5) for name, value in again.items()}
    for name, value in written.items():
        if name != "fsc_truth":
            assert name in out and (value if isinstance(value, str) else f"{value:.5g}") in out


@pytest.mark.parametrize(
    ("cuda", "mps", "option", "expected"),
    [
        (True, False, [], "cuda"),
        (True, False, ["--device", "cuda"], "cuda"),
        (True, False, ["--device", "cpu"], "cpu"),
        (False, False, [], "cpu"),
        # never tried there, as in a run
        (False, True, ["--device", "mps"], "cpu"),
    ],
)
def test_the_command_takes_the_bound_to_the_device(
    truth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, option: list[str], expected: str
) -> None:
    devices = []

    def accumulated(*args: Any, device: torch.device, **others: Any) -> Accumulator:
        devices.append(device)
        return accumulate(*args, **others)

    run = write_run(tmp_path / "run", truth, true_pose(truth))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(evaluation, "accumulate", accumulated)
    run_cli("evaluate", run, "--truth", truth, *option)
    assert devices == [torch.device(expected)] * 2


def test_images_are_read_some_at_a_time(truth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run", truth, true_pose(truth))
    at_once = evaluate(run, truth)
    sizes, lines = [], io.StringIO()

    def read(particles: Particles, look: Survey, box: int, rows: np.ndarray) -> ParticleStack:
        sizes.append(len(rows))
        return read_stack(particles, look, box, rows)

    monkeypatch.setattr(evaluation, "read_stack", read)
    monkeypatch.setattr(evaluation, "READ_AT_A_TIME", 81)
    monkeypatch.setattr(progress, "EVERY_S", 0.0)
    in_blocks = evaluate(run, truth, reporter=progress.Reporter(stream=lines))
    # an even number each: the halves are the same images, added up in another order
    assert sizes == [80, 80, 80, 60]
    assert in_blocks.bound_px == pytest.approx(at_once.bound_px, rel=1e-5)
    said = "inserting the images at their true poses: {} of 300"
    assert all(said.format(done) in lines.getvalue() for done in (80, 160, 240, 300))
    sizes.clear()
    # an image of 32 px takes some 4.8 kB
    monkeypatch.setattr(evaluation, "READ_BYTES", 2**20)
    monkeypatch.setattr(evaluation, "READ_AT_A_TIME", 5000)
    evaluate(run, truth)
    assert len(sizes) == 2 and sum(sizes) == 300 and sizes[0] % 2 == 0


def without_poses(truth: Path, run: Path) -> Path:
    (run / "poses.star").write_bytes((truth / "particles.star").read_bytes())
    return run / "poses.star"


def without(name: str) -> Callable[[Path, Path], Path]:
    def remove(truth: Path, run: Path) -> Path:
        (run / name).unlink()
        return run / name

    return remove


def one_more(truth: Path, run: Path) -> Path:
    table = read_particle_star(run / "poses.star")
    table.particles.loc[4, "rlnImageName"] = "5@particles.mrcs"
    write_star(run / "poses.star", table)
    return run / "poses.star"


@pytest.mark.parametrize("spoil", [without_poses, without("poses.star"), without("volume.mrc"), one_more])
def test_what_cannot_be_scored(truth: Path, tmp_path: Path, spoil: Callable[[Path, Path], Path]) -> None:
    run = write_run(tmp_path / "run", truth, true_pose(truth))
    file = spoil(truth, run)
    with pytest.raises(InputError) as caught:
        evaluate(run, truth)
    assert str(file) in str(caught.value) and "expected" in str(caught.value)
    assert not (run / "evaluation.json").exists()


def test_folders_that_are_not_there(truth: Path, tmp_path: Path) -> None:
    for run, folder in ((tmp_path / "no", truth), (truth, tmp_path / "no")):
        with pytest.raises(InputError, match="no such file"):
            evaluate(run, folder)
    assert not (truth / "evaluation.json").exists()
