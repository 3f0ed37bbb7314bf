"""Poses of particles that a run has not seen: right where they say that they are sure, the same whatever the format, and
in the frame of the map that was written."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from ace_em.config import PredictConfig, RunConfig, SimulationConfig, changed
from ace_em.data.particles import Particles
from ace_em.data.pose_columns import GAP, PARTICLE, PROBABILITY, SPREAD
from ace_em.data.preprocess import read_stack
from ace_em.data.select import selected_rows
from ace_em.data.split import half_sets
from ace_em.data.survey import survey
from ace_em.inference.pose_inference import _compared, _spread
from ace_em.io.cryosparc import load_fields
from ace_em.io.star import numeric_column, read_particle_star
from ace_em.maths.masks import disc_share, soft_disc
from ace_em.maths.rotations import angular_distance_deg
from ace_em.maths.slices import volume_to_ft
from ace_em.metrics.alignment import align_poses, apply_frame
from ace_em.physics.pose import Pose
from ace_em.refinement.half_sets import next_round, shared_start, unfiltered_halves
from ace_em.refinement.pose_refinement import LocalResult
from ace_em.run.checkpoint import Checkpoint
from ace_em.run.context import RunContext
from ace_em.run.convergence import Verdict
from ace_em.run.encoder import train_encoder
from ace_em.run.folder import RunFolder
from ace_em.run.half_sets import half_sets_of, judge_poses
from ace_em.run.plan import make_plan, record_survey
from ace_em.run.reporter import RecordFile, Reporter
from ace_em.run.results import Outcome, write_results
from ace_em.simulation.write import simulate
from ace_em.training.autoencoder import build_model
from ace_em.training.state import seeded
from commands import STRUCTURE, run_cli

SIMULATED = {"box": 24, "pixel_size": 22.0, "resolution": 50.0, "snr_db": 10.0, "shift_sd": 10.0}
CONFIG = changed(
    RunConfig(),
    {
        "ace.batch": 128,
        "ace.fourier.width": 128,
        "search.first_band": 4.5,
        "search.last_band": 6.0,
        "threads": 1,
        "predict.steps": 400,
        "predict.lr": 1e-3,
    },
)


def finished_run(seen: Path, out: Path, config: RunConfig, converged: bool = True) -> None:
    """The folder of a run that has found the true poses: maps in half-sets, an encoder trained on them."""
    particles, truth = Particles.open(seen / "particles.star"), Particles.open(seen / "truth.star").poses()
    assert truth is not None
    plan, reporter = make_plan(particles, config), Reporter(mode="quiet")
    box, n = plan.boxes[-1], len(particles)
    stack = read_stack(particles, plan.look, box)
    run = RunFolder.create(out, overwrite=False)
    run.write_config({"particles": str(seen / "particles.star"), **dataclasses.asdict(config)})
    half_set = torch.from_numpy(half_sets(n, 0))
    context = RunContext(plan, config, half_set, run, reporter, Checkpoint(run, reporter, {}, 1e9))
    reporter.records = RecordFile(run.metrics)
    record_survey(plan, reporter)
    sets = half_sets_of(stack, context)
    start = shared_start(stack, torch.zeros(box, box, box), truth.rescaled(box / particles.box), 4.0)
    state = next_round(sets, start, 4.0, None)
    with seeded(0):
        model = build_model(stack, plan.diameter_px(box), config.ace, torch.Generator().manual_seed(0))
    predictor = train_encoder(state, model.state_dict(), context)
    verdict = Verdict(converged, "converged" if converged else "not converged")
    evidence = judge_poses(sets, state, context)
    unfiltered = unfiltered_halves(sets, state)
    outcome = Outcome(state, half_set.numpy(), unfiltered, verdict, evidence, predictor)
    write_results(plan, outcome, config, run, reporter)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on ``seen`` particles, and others of the same structure, ``new``."""
    folder = tmp_path_factory.mktemp("predict")
    simulate(STRUCTURE, folder / "seen", SimulationConfig(n=400, seed=1, **SIMULATED))  # type: ignore[arg-type]
    simulate(STRUCTURE, folder / "new", SimulationConfig(n=120, seed=2, **SIMULATED))  # type: ignore[arg-type]
    finished_run(folder / "seen", folder / "run", CONFIG)
    run_cli("predict", folder / "new/particles.star", "--run", folder / "run", "-o", folder / "new.star", "--threads", 1)
    return folder


def errors(folder: Path, file: Path) -> torch.Tensor:
    """Angles (N,) between the poses of ``file`` and the truth, both brought into the frame of the run's map."""
    seen = Particles.open(folder / "run/poses.star", folder / "seen").poses()
    truth = Particles.open(folder / "seen/truth.star").poses()
    found, true = Particles.open(file, folder / "new").poses(), Particles.open(folder / "new/truth.star").poses()
    assert seen is not None and truth is not None and found is not None and true is not None
    return angular_distance_deg(apply_frame(found, align_poses(seen, truth)).rotation, true.rotation)


def test_new_particles_stand_in_the_frame_of_the_runs_map(folder: Path) -> None:
    right = errors(folder, folder / "new.star") < 15
    # chance would be one in a thousand
    assert right.float().mean() > 0.5
    table = read_particle_star(folder / "new.star")
    probability, spread = numeric_column(table, PROBABILITY), numeric_column(table, SPREAD)
    sure = torch.from_numpy(probability > 0.9)
    assert sure.sum() > 20
    assert right[sure].float().mean() > right.float().mean()
    assert ((probability >= 0) & (probability <= 1)).all() and ((spread >= 0) & (spread <= 180)).all()
    assert (numeric_column(table, GAP) >= 0).all()
    given = read_particle_star(folder / "new/particles.star").particles
    assert table.particles[list(given)].equals(given)


def test_confident_particles_are_those_of_the_poses(folder: Path) -> None:
    poses, confident = (read_particle_star(folder / f"run/{name}.star") for name in ("poses", "confident"))
    sure = numeric_column(poses, PROBABILITY) >= PredictConfig().confident
    rows = np.flatnonzero(sure & (numeric_column(poses, PARTICLE) > 0.5))
    assert 0 < len(rows) < len(poses) or len(confident) == len(poses)
    assert confident.particles.equals(poses.particles.iloc[rows].reset_index(drop=True))


def test_a_run_is_not_replaced_by_one_of_its_own_particles(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (folder / "run/confident.star").read_bytes()
    own, here = folder / "run/confident.star", ("-o", folder / "run", "--overwrite")
    run_cli("reconstruct", own, *here, "--project", folder / "seen", codes=(2,))
    run_cli("reconstruct", folder / "seen/particles.star", *here, "--subset", own, codes=(2,))
    assert capsys.readouterr().err.count("is a file of the run in") == 2
    assert own.read_bytes() == before


def test_a_flipped_run_predicts_in_its_own_frame(folder: Path) -> None:
    """The same run with the other hand: its poses and the new ones mirror together."""
    flipped = folder / "flipped"
    finished_run(folder / "seen", flipped, changed(CONFIG, {"flip_hand": True}))
    run_cli("predict", folder / "new/particles.star", "--run", flipped, "-o", folder / "mirrored.star", "--threads", 1)
    one, other = (Particles.open(folder / name, folder / "new").poses() for name in ("new.star", "mirrored.star"))
    assert one is not None and other is not None
    mirror = torch.diag(torch.tensor([1.0, 1.0, -1.0]))
    torch.testing.assert_close(mirror @ one.rotation @ mirror, other.rotation, atol=1e-3, rtol=0)


def test_bad_requests_are_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = folder / "new/particles.star"
    run_cli("predict", new, "--run", tmp_path, "-o", tmp_path / "a.star", codes=(2,))
    assert "encoder.pt: no such file" in capsys.readouterr().err
    run_cli("predict", new, "--run", folder / "run", "-o", folder / "new.star", codes=(2,))
    assert "exists already" in capsys.readouterr().err
    other = dict(SIMULATED, pixel_size=20.0)
    simulate(STRUCTURE, tmp_path / "other", SimulationConfig(n=5, **other))  # type: ignore[arg-type]
    run_cli("predict", tmp_path / "other/particles.star", "--run", folder / "run", "-o", tmp_path / "a.star", codes=(2,))
    assert "24 px at 20 A/px, expected 24 px at 22 A/px" in capsys.readouterr().err
    (tmp_path / "broken").mkdir()
    RunFolder(tmp_path / "broken").encoder.write_bytes(b"nonsense")
    run_cli("predict", new, "--run", tmp_path / "broken", "-o", tmp_path / "a.star", codes=(2,))
    assert "cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "a.star").exists()


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("a.txt", "ends in .star or .cs"),
        ("nowhere/a.star", "no folder"),
        ("new/particles.star", "is the input"),
        ("run/poses.star", "is a file of the run"),
        ("new/particles.mrcs", "ends in .star or .cs"),
        ("run", "ends in .star or .cs"),
    ],
)
def test_no_file_that_is_needed_is_replaced(folder: Path, capsys: pytest.CaptureFixture[str], out: str, words: str) -> None:
    before = (folder / out).read_bytes() if (folder / out).is_file() else None
    options = ("--run", folder / "run", "-o", folder / out, "--overwrite")
    run_cli("predict", folder / "new/particles.star", *options, codes=(2,))
    err = capsys.readouterr().err
    assert words in err and len(err.splitlines()) == 1
    assert before is None or (folder / out).read_bytes() == before


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--max-particles", "-1", "--max-particles -1"),
        ("--seed", "-1", "--seed -1"),
        ("--threads", "-1", "--threads -1"),
        ("--subset", "rows.txt", "row number"),
        ("--subset", "rows.npy", "archive"),
    ],
)
def test_bad_choices_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, words: str
) -> None:
    (tmp_path / "rows.txt").write_text("9" * 30)
    with (tmp_path / "rows.npy").open("wb") as file:
        np.savez(file, rows=np.arange(3))
    given = tmp_path / value if value.startswith("rows") else value
    options = ("--run", folder / "run", "-o", tmp_path / "a.star", option, given)
    run_cli("predict", folder / "new/particles.star", *options, codes=(2,))
    err = capsys.readouterr().err
    assert words in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(("text", "expected"), [("1\n3 5\n", [0, 2, 4]), ("2", [1])])
def test_only_some_are_predicted(folder: Path, tmp_path: Path, text: str, expected: list[int]) -> None:
    (tmp_path / "rows.txt").write_text(text)
    out = tmp_path / "some.star"
    run = ("--run", folder / "run", "--threads", 1)
    run_cli("predict", folder / "new/particles.star", *run, "-o", out, "--subset", tmp_path / "rows.txt")
    some, every = read_particle_star(out).particles, read_particle_star(folder / "new.star").particles
    assert some["rlnImageName"].tolist() == every["rlnImageName"].iloc[expected].tolist()
    angles = (some, every.iloc[expected])
    one, other = (f["rlnAngleTilt"].to_numpy(dtype=float) for f in angles)
    np.testing.assert_allclose(one, other, atol=1e-2)
    # the same images under names that another program would write
    text = "".join(f"{row + 1:06d}@./{folder.name}/../particles.mrcs\n" for row in expected)
    (tmp_path / "names.star").write_text("data_\nloop_\n_rlnImageName\n" + text)
    table = read_particle_star(folder / "new/particles.star")
    assert selected_rows(table, str(tmp_path / "names.star"), "", 0, 0).tolist() == expected


@pytest.mark.parametrize(("contrast", "sign"), [("auto", 1), ("black", -1)])
def test_a_new_cs_file_says_which_contrast_was_taken(folder: Path, tmp_path: Path, contrast: str, sign: int) -> None:
    options = ("--run", folder / "run", "-o", tmp_path / "new.cs", "--contrast", contrast, "--threads", 1)
    run_cli("predict", folder / "new/particles.star", *options)
    assert (load_fields(tmp_path / "new.cs")["blob/sign"] == sign).all()


def test_a_bad_image_is_named_by_its_row_of_the_file(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("particles.star", "particles.mrcs"):
        (tmp_path / name).write_bytes((folder / "new" / name).read_bytes())
    with open(tmp_path / "particles.mrcs", "r+b") as file:
        file.seek(1024 + 7 * 24 * 24 * 4)
        file.write(np.full(3, np.nan, "<f4").tobytes())
    # row 8 is the third of those that are left
    (tmp_path / "rows.txt").write_text("3 5 8 100")
    options = ("--run", folder / "run", "-o", tmp_path / "a.star", "--subset", tmp_path / "rows.txt", "--threads", 1)
    run_cli("predict", tmp_path / "particles.star", *options, codes=(2,))
    assert (
        f"image 8 contains NaN or infinite values (row 8 of {tmp_path / 'particles.star'}; --exclude" in capsys.readouterr().err
    )


def answers_of(*residuals: float, apart_deg: float) -> list[LocalResult]:
    turn = torch.deg2rad(torch.tensor(apart_deg))
    about_z = [
        torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]])
        for c, s in ((torch.cos(k * turn), torch.sin(k * turn)) for k in range(9))
    ]
    return [LocalResult(Pose(about_z[k][None], torch.zeros(1, 2)), torch.tensor([r])) for k, r in enumerate(residuals)]


def test_near_answers_are_one_and_far_ones_compete() -> None:
    c1 = torch.eye(3)[None]
    found = _compared(answers_of(100.0, 101.0, 102.0, apart_deg=40), c1, 15.0, 1.0)
    assert found.log_odds_against.exp().item() == pytest.approx(np.exp(-1) + np.exp(-2)) and found.gap.item() == pytest.approx(1)
    found = _compared(answers_of(101.0, 100.0, apart_deg=5), c1, 15.0, 1.0)
    assert found.log_odds_against.item() == -torch.inf and found.gap.isnan() and found.residual.item() == 100
    # the point group's copies are one answer
    c9 = torch.cat([a.pose.rotation for a in answers_of(*[0.0] * 9, apart_deg=40)])
    assert _compared(answers_of(100.0, 101.0, apart_deg=40), c9, 15.0, 1.0).log_odds_against.item() == -torch.inf


def about_z(*angles_deg: float) -> Pose:
    angle = torch.deg2rad(torch.tensor(angles_deg))
    c, s, zero, one = angle.cos(), angle.sin(), 0 * angle, 1 + 0 * angle
    rotation = torch.stack([c, -s, zero, s, c, zero, zero, zero, one], -1).view(-1, 3, 3)
    return Pose(rotation, torch.zeros(len(angle), 2))


def test_an_images_answers_are_its_own() -> None:
    """Kept at 0 degrees; 90 and 100 degrees are one answer, whose likelihood is that of its better way, image by image."""
    c1, answers = torch.eye(3)[None], [about_z(0.0, 0.0), about_z(90.0, 90.0), about_z(100.0, 100.0)]
    residuals = torch.tensor([[100.0, 100.0], [130.0, 101.0], [101.0, 150.0]])
    both = [LocalResult(pose, residual) for pose, residual in zip(answers, residuals, strict=True)]
    found = _compared(both, c1, 15.0, 1.0)
    torch.testing.assert_close(found.gap, torch.tensor([1.0, 1.0]))
    torch.testing.assert_close(found.log_odds_against, torch.tensor([-1.0, -1.0]))
    for image in range(2):
        alone = [LocalResult(a.pose[image : image + 1], a.residual[image : image + 1]) for a in both]
        assert _compared(alone, c1, 15.0, 1.0).gap.item() == found.gap[image].item()


def test_what_lies_near_to_a_near_answer_is_no_nearer() -> None:
    """0, 12 and 24 degrees: the second is the first, the third is neither."""
    chain = [LocalResult(about_z(12.0 * k), torch.tensor([100.0 + k])) for k in range(3)]
    assert _compared(chain, torch.eye(3)[None], 15.0, 1.0).gap.item() == pytest.approx(2)


def test_a_disc_makes_coefficients_count_less(tmp_path: Path) -> None:
    """Noise alone, as the images are read: twice the mean of a log-likelihood ratio is its variance, once it is corrected."""
    config = SimulationConfig(n=2000, box=32, pixel_size=17.0, resolution=50.0, snr_db=-60.0, shift_sd=0.0)
    simulate(STRUCTURE, tmp_path, config)
    particles = Particles.open(tmp_path / "particles.star")
    images = read_stack(particles, survey(particles, sign=1.0), 32).batch(slice(None))
    # a particle well inside the disc, with nothing at the lowest frequencies, where the background's mean was taken away
    waves = torch.cos(2 * np.pi * 5 / 32 * torch.arange(32)) * torch.cos(2 * np.pi * 4 / 32 * torch.arange(32))[:, None]
    template = images.half_plane.from_image(0.3 * waves * soft_disc(32, 6.0, 3.0))
    ratio = (images.image_ft.abs().square() - (images.image_ft - template).abs().square()).sum(1)
    counted = (ratio.var() / (2 * ratio.mean().abs())).item()
    assert counted > 1.3
    assert counted * disc_share(32) == pytest.approx(1, abs=0.1)
    # a third of what they say: a third of the gap
    answers = [LocalResult(about_z(40.0 * k), torch.tensor([100.0 + 3 * k])) for k in range(2)]
    assert _compared(answers, torch.eye(3)[None], 15.0, 1 / 3).gap.item() == pytest.approx(1)


def test_the_spread_is_the_median() -> None:
    proposed = Pose.stack([about_z(angle) for angle in (1.0, 2.0, 90.0, 100.0)])
    assert _spread(proposed, about_z(0.0), torch.eye(3)[None], False).item() == pytest.approx(46, abs=0.1)


def test_a_run_that_has_not_converged_says_of_no_pose_that_it_is_probable(folder: Path, tmp_path: Path) -> None:
    """Neither of its own particles, nor of new ones; and why no confident.star is there."""
    finished_run(folder / "seen", tmp_path / "run", changed(CONFIG, {"predict.steps": 2}), converged=False)
    own = read_particle_star(tmp_path / "run/poses.star")
    assert (numeric_column(own, PROBABILITY) == 0).all() and (numeric_column(own, GAP) != 0).any()
    assert not (tmp_path / "run/confident.star").exists()
    out = tmp_path / "new.star"
    run_cli("predict", folder / "new/particles.star", "--run", tmp_path / "run", "-o", out, "--threads", 1)
    assert (numeric_column(read_particle_star(out), PROBABILITY) == 0).all()


def test_noise_is_no_new_particle(folder: Path, tmp_path: Path) -> None:
    """Images of nothing, in files that say they are particles."""
    for name in ("particles.star", "particles.mrcs"):
        (tmp_path / name).write_bytes((folder / "new" / name).read_bytes())
    noise = np.random.default_rng(0).standard_normal((120, 24, 24)).astype("<f4")
    with open(tmp_path / "particles.mrcs", "r+b") as file:
        file.seek(1024)
        file.write(noise.tobytes())
    out = tmp_path / "noise.star"
    options = ("--run", folder / "run", "-o", out, "--threads", 1, "--contrast", "white")
    run_cli("predict", tmp_path / "particles.star", *options)
    assert (numeric_column(read_particle_star(out), PROBABILITY) < 0.5).mean() > 0.97


def test_volume_ft_of_the_map_is_what_is_saved(folder: Path) -> None:
    from ace_em.inference.predictor import Predictor

    predictor = Predictor.load(RunFolder(folder / "run").encoder)
    assert predictor.volume.shape == (predictor.working_box,) * 3
    assert volume_to_ft(predictor.volume).grid.isfinite().all()
    assert predictor.baseline.spread > 0 and predictor.box == 24
