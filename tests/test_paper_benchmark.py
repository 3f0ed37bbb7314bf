"""The benchmark of the paper's tables: every run it names can be made, the truth scores perfectly, and a shrunken table is
written from beginning to end."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ace_em.config import SimulationConfig, changed
from ace_em.presets import preset
from ace_em.simulation.write import simulate

ROOT = Path(__file__).parents[1]
STRUCTURE = ROOT / "examples/data/5nrl_every10th_atom.npz"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield __import__("paper")
    for name in [n for n in sys.modules if n.startswith("paper") or n == "sets"]:
        del sys.modules[name]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    out = tmp_path / "images"
    simulate(STRUCTURE, out, SimulationConfig(n=120, box=24, pixel_size=22.0, resolution=50.0, snr_db=0.0))
    return out


@pytest.mark.parametrize("scale", ["cpu", "paper"])
def test_every_run_is_a_preset_with_settings_that_there_are(bench: Any, scale: str) -> None:
    for name, item in bench.ITEMS.items():
        specs = item.specs(bench.SCALES[scale])
        assert specs, name
        for spec in specs:
            config = changed(preset(spec.preset), dict(spec.settings))
            assert config.final_box == {"cpu": 32, "paper": 128}[scale]
            assert spec.images in sys.modules["paper_items"].DATASETS
        # one run, one name
        assert len({s.key() for s in specs}) == len(set(specs))


def test_the_published_size_is_the_papers(bench: Any) -> None:
    """Section 4.1: nothing but the box and the weight of PIP differs from the preset."""
    for item in bench.ITEMS.values():
        for spec in item.specs(bench.SCALES["paper"]):
            touched = dict(spec.settings).keys() - {
                "final_box",
                "ace.pip_weight",
                "ace.pip",
                "ace.label_steps",
                "ace.symmetric_loss",
            }
            assert not touched, spec


def test_the_truth_scores_perfectly_and_a_turned_frame_as_well(bench: Any, folder: Path) -> None:
    runs = sys.modules["paper_runs"]
    _, truth, diameter_px = runs.load_images(folder, 24)
    assert 5 < diameter_px < 24
    rows = torch.arange(100)
    found = runs.score(truth.pose[rows], truth.volume, truth, rows)
    assert found["rot_mean"] < 1e-6 and found["within_10deg"] == 1 and found["trans"] < 1e-6
    assert found["res_px"] == pytest.approx(2.0, abs=0.01)
    shuffled = runs.score(truth.pose[rows.flip(0)], truth.volume, truth, rows)
    assert shuffled["rot_mean"] > 3


def test_a_table_from_beginning_to_end(bench: Any, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Table 4 with runs of three steps: trained once, kept, shown with the paper's numbers."""
    runs, tables, items = (sys.modules[n] for n in ("paper_runs", "paper_tables", "paper_items"))
    small = {"final_box": 24, "ace.steps": 3, "ace.batch": 8, "ace.encoder": "fourier", "ace.warmup_steps": 1}
    scale = items.Scale("tiny", 120, small, small, seeds=(1, 2))
    monkeypatch.setattr(bench.Bench, "images", lambda self, name: folder)
    work, pictures = tmp_path / "work", tmp_path / "pictures"
    for made in (work, pictures):
        made.mkdir()
    kept = bench.Bench(scale, tmp_path, work)
    lines = tables.TABLES["table4"].show(kept, pictures)
    rows = [line for line in lines if line.startswith("| ")]
    assert len(rows) == 5 and "(2.24)" in rows[2] and "(0.008)" in rows[3]
    specs = tables.TABLES["table4"].specs(scale)
    assert len(specs) == 8 and len(list(work.glob("*.json"))) == 8
    history = kept.result(specs[0])["history"]
    assert [h["step"] for h in history] == [1, 2, 3] and history[-1]["visits"] == 24
    assert kept.arrays(specs[0])["volume"].shape == (24, 24, 24)
    # a second time nothing is trained
    monkeypatch.setattr(runs, "train_run", None)
    monkeypatch.setattr(bench, "train_run", None)
    assert tables.TABLES["table4"].show(kept, pictures) == lines
    assert dataclasses.asdict(specs[0])["images"] == "spliceosome-10"
