"""Stage 1 alone, as the published recipes run it: every file, an honest verdict; and what pose-image-pose is for."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ace_em.config import SimulationConfig
from ace_em.data.particles import Particles
from ace_em.io.mrc import read_volume
from ace_em.presets import PRESETS
from ace_em.run.evaluation import Evaluation, evaluate
from ace_em.run.folder import FILES
from ace_em.simulation.write import simulate
from commands import STRUCTURE, run_cli

N, BOX = 120, 24
TINY = ["--ace.batch", 8, "--ace.steps", 3, "--ace.warmup_steps", 2, "--threads", 1]


def reconstruct(data: Path, out: Path, *options: object, codes: tuple[int, ...] = (0,)) -> list[dict[str, Any]]:
    run_cli("reconstruct", data / "particles.star", "-o", out, *options, codes=codes)
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    simulate(STRUCTURE, folder, SimulationConfig(n=N, box=BOX, pixel_size=22.0, resolution=50.0, snr_db=10.0))
    return folder


@pytest.mark.parametrize("name", [n for n in PRESETS if n != "fast"])
def test_a_preset_leaves_a_whole_run(data: Path, tmp_path: Path, name: str) -> None:
    run = tmp_path / name
    records = reconstruct(data, run, "--preset", name, *TINY, codes=(3,))
    given_only = {"evaluation.json", "stop", ".lock", "current.mrc", "poses.cs", "confident.cs", "confident.star"}
    assert {p.name for p in run.iterdir()} == set(FILES) - given_only
    assert list(dict.fromkeys(r["stage"] for r in records)) == ["begin", "survey", "watch", "ace", "content", "confidence", "end"]
    assert [r["step"] for r in records if r["stage"] == "watch"] == [2, 3]
    # a network of three steps knows nothing, and the run says so
    assert records[-1]["converged"] is False and "explains" in records[-1]["message"]
    poses = Particles.open(run / "poses.star", project_root=data).poses()
    assert poses is not None and len(poses) == N
    assert read_volume(run / "volume.mrc")[0].shape == (BOX, BOX, BOX)
    page = (run / "report.html").read_text()
    assert "ended without converging" in page
    assert "one network trained on all images" in page and "share nothing" not in page
    assert "Missing or damaged files" not in page and "Not shown" not in page and "resolution, FSC" not in page


def test_no_encoder_is_kept_where_none_is_wanted(data: Path, tmp_path: Path, no_report: None) -> None:
    run = tmp_path / "run"
    reconstruct(data, run, "--preset", "cryoposenet", *TINY, "--predict.steps", 0, codes=(3,))
    assert not (run / "encoder.pt").exists() and not (run / "confident.star").exists()
    # how sure poses are, the maps say; an encoder's hypotheses are missing
    table = (run / "poses.star").read_text()
    assert "aceLikelihoodGap" in table and "aceHypothesisSpread" not in table


def test_the_map_is_the_decoders_and_the_poses_are_the_encoders(data: Path, tmp_path: Path, no_report: None) -> None:
    """Repeated from its own settings file, bit for bit; the checkpoint's decoder is the map."""
    run, again = tmp_path / "run", tmp_path / "again"
    reconstruct(data, run, "--preset", "cryoposenet", *TINY, codes=(3,))
    reconstruct(data, again, "--config", run / "config.yaml", codes=(3,))
    assert (run / "volume.mrc").read_bytes() == (again / "volume.mrc").read_bytes()
    saved = torch.load(run / "checkpoint.pt", weights_only=True)["done"]["autoencoder"]["trained"]
    weights = saved["networks"]
    decoder = weights["decoder.density"] * weights["decoder.mask"] * weights["decoder.amplitude"]
    torch.testing.assert_close(torch.from_numpy(read_volume(run / "volume.mrc")[0].copy()), decoder, rtol=1e-5, atol=1e-6)
    poses = Particles.open(run / "poses.star", project_root=data).poses()
    assert poses is not None
    torch.testing.assert_close(poses.rotation, saved["pose"]["rotation"], atol=1e-4, rtol=0)


def test_an_interrupted_training_goes_on_to_the_same_end(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_report: None
) -> None:
    """The poses that are watched are part of the state."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    options = ["--preset", "cryoposenet", "--ace.encoder", "fourier", *TINY, "--ace.steps", 40]
    records = reconstruct(data, whole, *options, codes=(3,))

    def interrupt(*args: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("ace_em.run.log.poses_watched", lambda step, *rest: interrupt() if step > 30 else None)
        reconstruct(data, run, *options, codes=(130,))
    saved = torch.load(run / "checkpoint.pt", weights_only=True)
    assert (saved["name"], saved["state"]["training"]["step"]) == ("start 1: training", 25)
    resumed = reconstruct(data, run, *options, "--resume", codes=(3,))
    assert (run / "volume.mrc").read_bytes() == (whole / "volume.mrc").read_bytes()
    assert (run / "poses.star").read_bytes() == (whole / "poses.star").read_bytes()
    assert {**records[-1], "time_s": 0} == {**resumed[-1], "time_s": 0}


@pytest.fixture(scope="module")
def clear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with little noise, as the paper's at 200 dB."""
    folder = tmp_path_factory.mktemp("clear")
    config = SimulationConfig(n=2000, box=32, pixel_size=17.0, resolution=34.0, snr_db=20.0, seed=1)
    simulate(STRUCTURE, folder, config)
    return folder


@pytest.mark.slow
def test_pip_is_the_point(clear: Path, tmp_path: Path) -> None:
    """The same training with and without pose-image-pose: with it the poses are found, without it they are not."""
    scores: list[Evaluation] = []
    for pip in ("true", "false"):
        options = ["--stages", "ace", "--ace.steps", 900, "--ace.batch", 128, "--threads", 1, "--ace.pip", pip]
        reconstruct(clear, tmp_path / pip, *options, codes=(0, 3))
        scores.append(evaluate(tmp_path / pip, clear))
    found, lost = scores
    # where so short a training ends hangs on the processor's rounding: found 0.2 and more of the poses against less than 0.02 on
    # one, 0.20 against 0.13 (median 1.02 against 3.26; random poses have 6.6) on another
    assert found.rot_median < 2 and lost.rot_median > 3, scores
    assert found.within_10deg > 0.15 and lost.within_10deg < 0.75 * found.within_10deg, scores
    assert found.fsc05_px < 0.6 * lost.fsc05_px, scores
    assert found.coverage > 1.2 * lost.coverage, scores
