"""The report of a small run: one file, nothing fetched, and no gap in the run folder that stops it."""

import json
import re
import shutil
from pathlib import Path

import healpy
import numpy as np
import pandas as pd
import pytest
import roma
import torch

from ace_em.config import SimulationConfig
from ace_em.data.mrc import StackWriter, write_volume
from ace_em.data.star import ParticleTable, with_poses, write_star
from ace_em.errors import InputError
from ace_em.physics.pose import rotmat_to_relion_angles
from ace_em.report.figures import nice_length, smoothed_views
from ace_em.report.page import write_report
from ace_em.report.run_files import Curve, read_run
from ace_em.report.sentences import crossing_angstrom
from ace_em.report.triplets import make_triplets
from ace_em.simulation.dataset import clean_images, sample_ctf, sample_poses, specimen_from_atoms
from ace_em.simulation.structure import Atoms

BOX, PIXEL_SIZE, N = 32, 6.0, 20
N_FIGURES = 6


def _write_particles(folder: Path, run: Path) -> None:
    """Particles made from turned atoms, which share nothing with the slices that predict them, and their poses and map."""
    generator = torch.Generator().manual_seed(0)
    config = SimulationConfig(n=N, box=BOX, pixel_size=PIXEL_SIZE, resolution=20.0, shift_sd=8.0)
    atoms = Atoms(torch.randn(30, 3, generator=generator) * 20, torch.ones(30))
    pose, parameters = sample_poses(config, generator), sample_ctf(config, generator)
    specimen = specimen_from_atoms(atoms, config)
    images = clean_images(specimen, pose, parameters, config)
    images = images / images.std() + 0.1 * torch.randn(images.shape, generator=generator)
    with StackWriter(folder / "stack.mrcs", (N, BOX, BOX), PIXEL_SIZE) as writer:
        writer.write(images.numpy())
    optics = {"rlnOpticsGroup": "1", "rlnImagePixelSize": str(PIXEL_SIZE), "rlnVoltage": "300"}
    optics |= {"rlnSphericalAberration": "2.7", "rlnAmplitudeContrast": "0.1"}
    columns: dict[str, list[str]] = {"rlnImageName": [f"{n + 1}@stack.mrcs" for n in range(N)], "rlnOpticsGroup": ["1"] * N}
    for name, values in (
        ("rlnDefocusU", parameters.defocus_u_angstrom),
        ("rlnDefocusV", parameters.defocus_v_angstrom),
        ("rlnDefocusAngle", parameters.defocus_angle_deg),
    ):
        columns[name] = [f"{value:.3f}" for value in values]
    table = ParticleTable(folder / "particles.star", pd.DataFrame([optics]), pd.DataFrame(columns))
    write_star(table.path, table)
    angles = rotmat_to_relion_angles(pose.rotation).numpy()
    origin = -pose.shift_px.flip(-1).numpy() * PIXEL_SIZE
    write_star(run / "poses.star", with_poses(table, angles, origin, np.arange(N) % 2 + 1, PIXEL_SIZE))
    for name in ("volume", "half1", "half2"):
        write_volume(run / f"{name}.mrc", specimen.volume.numpy(), PIXEL_SIZE)


def _metrics() -> list[dict[str, object]]:
    survey = {"stage": "survey", "time_s": 1.0, "n_particles": N, "box": BOX, "pixel_size_angstrom": PIXEL_SIZE}
    records: list[dict[str, object]] = [survey | {"contrast": "white", "contrast_z": 9.0, "diameter_angstrom": 90.0, "snr": 10.0}]
    for start in (1, 2):
        for step in (0, 50, 100):
            loss = {"image_loss": 1 - step / 200, "pip_loss": float("nan") if step == 0 else 0.1}
            records.append({"stage": "ace", "start": start, "time_s": 2.0, "step": step, "steps": 100} | loss)
        for turn in (1, 2):
            moved = {"stable": 0.5 * turn, "moved_median_deg": 20.0 / turn, "band_angstrom": 30.0, "fsc143_angstrom": 40.0}
            records.append({"stage": "search", "start": start, "time_s": 3.0, "round": turn} | moved)
    refined = {"stable": 1.0, "moved_median_deg": 0.0, "band_angstrom": 20.0, "fsc143_angstrom": 20.0}
    records.append({"stage": "refine", "time_s": 70.0, "box": BOX, "round": 1} | refined)
    records.append({"stage": "end", "time_s": 75.0, "converged": True, "resolution_angstrom": 17.5, "message": "all is well"})
    return records


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder with particles and a finished run; tests copy it."""
    project = tmp_path_factory.mktemp("project")
    run = project / "run"
    run.mkdir()
    _write_particles(project, run)
    frequency = np.arange(BOX // 2 + 1) / (BOX * PIXEL_SIZE)
    fsc = 1 - np.arange(BOX // 2 + 1) / 20
    rows = [f"{n},{f:.6f},{1 / f if f else np.inf:.4f},{c:.4f}" for n, (f, c) in enumerate(zip(frequency, fsc, strict=True))]
    (run / "fsc.csv").write_text("\n".join(["shell,frequency_per_angstrom,resolution_angstrom,fsc", *rows]) + "\n")
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in _metrics()))
    (run / "evaluation.json").write_text(json.dumps({"rot_median": 0.125, "within_10deg": 0.75, "fsc_truth": list(fsc / 2)}))
    (run / "config.yaml").write_text(f"particles: {project / 'particles.star'}\nseed: 7\nace:\n  steps: 100\n")
    return project


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A run folder of its own; its particles are found through config.yaml."""
    return Path(shutil.copytree(finished / "run", tmp_path / "run"))


def _page(run: Path) -> str:
    path = write_report(run)
    assert path == run / "report.html"
    assert not list(run.glob(".report*")), "a temporary file was left"
    return path.read_text(encoding="utf-8")


def test_a_finished_run_gives_one_self_contained_page(run: Path) -> None:
    page = _page(run)
    assert page.count('<img src="data:image/png;base64,') == page.count("<img") == N_FIGURES
    assert "Not shown" not in page and "What is missing" not in page
    addresses = re.findall(r"""(?:src|href|srcset|action)\s*=\s*["']?([^"'>]*)""", page) + re.findall(r"url\(([^)]*)", page)
    assert all(address.startswith("data:") for address in addresses)
    assert "<script" not in page and "@import" not in page
    assert f"The run converged: {N} particles gave a map at 17.5 Å (half-map FSC 0.143) in 1 min 15 s." in page
    # the line 1 - shell / 20 is 0.5 at shell 10 of 192 Angstrom
    assert "0.5 at 19.2 Å" in page
    assert "all is well" in page and "seed: 7" in page and "0.125" in page
    assert "What this run cannot tell you" in page and "coarser than about 30 Å" in page


def test_an_unfinished_run_gives_a_page_that_says_what_is_missing(tmp_path: Path) -> None:
    empty = tmp_path / "run"
    empty.mkdir()
    page = _page(empty)
    assert "The run has not ended: it has logged nothing" in page
    assert page.count("Not shown") == N_FIGURES and "<img" not in page
    for file in ("volume.mrc", "half1.mrc", "fsc.csv", "poses.star", "config.yaml", "metrics.jsonl"):
        assert f"<code>{file}</code>: not there" in page
    with pytest.raises(InputError, match="not a folder"):
        write_report(tmp_path / "nowhere")


def test_a_line_cut_short_is_left_out(run: Path) -> None:
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(text[:-40])
    page = _page(run)
    assert "the last line is incomplete" in page
    assert "its last entry is from the refinement" in page
    assert page.count("<img") == N_FIGURES


def test_a_run_that_did_not_converge_says_so(run: Path) -> None:
    (run / "metrics.jsonl").write_text(json.dumps({"stage": "end", "converged": False, "resolution_angstrom": None}) + "\n")
    (run / "fsc.csv").unlink()
    page = _page(run)
    assert f"without converging: {N} particles gave a map at a resolution that was not measured" in page
    assert page.count("Not shown") == 3


def test_particles_that_are_gone_cost_their_figure_only(finished: Path, tmp_path: Path) -> None:
    project = Path(shutil.copytree(finished, tmp_path / "project"))
    (project / "stack.mrcs").unlink()
    (project / "run" / "config.yaml").write_text("particles: particles.star\n")
    page = _page(project / "run")
    assert page.count("<img") == N_FIGURES - 1
    assert re.search(r"Not shown: particle images: .*stack\.mrcs not found", page)


def test_files_that_are_not_what_they_seem_are_named(run: Path) -> None:
    for file in ("volume.mrc", "fsc.csv", "poses.star", "evaluation.json"):
        (run / file).write_text("rubbish")
    (run / "config.yaml").write_text("particles: [unclosed")
    page = _page(run)
    for file in ("volume.mrc", "fsc.csv", "poses.star", "evaluation.json", "config.yaml"):
        assert f"<code>{file}</code>" in page


def test_text_of_the_run_is_escaped(run: Path) -> None:
    evil = "<script>alert(1)</script>"
    (run / "config.yaml").write_text(f"particles: '{evil}'\nseed: \"{evil}\"\n")
    (run / "evaluation.json").write_text(json.dumps({evil: evil}))
    records = [{"stage": "survey", "contrast": evil}, {"stage": "end", "message": evil}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    page = _page(Path(shutil.move(run, run.with_name("<script>x"))))
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)") >= 6


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_predictions_match_images_made_from_turned_atoms(finished: Path, sign: float) -> None:
    files = read_run(finished / "run")
    assert files.particles is not None and files.map is not None
    triplets = make_triplets(files.particles, files.map, sign, 12.0)
    assert [t.row for t in triplets] == [1, 6, 11, 15, 20]
    # wrong shifts, CTF or rotations give less than 0.7
    assert all(sign * t.correlation > 0.93 for t in triplets), [t.correlation for t in triplets]
    assert all(t.clean.shape == (BOX, BOX) for t in triplets)


def test_crossing_passes_over_the_first_shells_and_may_not_happen() -> None:
    frequency = np.arange(6) / 100.0
    assert crossing_angstrom(Curve(frequency, np.array([1, 0, 1, 0.8, 0.2, 0.1])), 0.5) == pytest.approx(100 / 3.5)
    assert np.isnan(crossing_angstrom(Curve(frequency, np.ones(6)), 0.5))


def test_smoothed_views_are_one_when_uniform_and_peak_where_all_look() -> None:
    uniform = roma.random_rotmat(20000, generator=torch.Generator().manual_seed(0))
    assert smoothed_views(uniform, 15.0) == pytest.approx(1.0, abs=0.25)
    one = uniform[:1].expand(50, 3, 3)
    density = smoothed_views(one, 10.0)
    assert density.mean() == pytest.approx(1.0, abs=0.02)
    peak = np.array(healpy.pix2vec(16, int(density.argmax())))
    assert peak @ one[0, :, 2].numpy() > 0.995


@pytest.mark.parametrize(("extent", "length"), [(100.0, 20.0), (416.0, 100.0), (150.0, 50.0), (3.0, 1.0)])
def test_scale_bars_are_round_lengths(extent: float, length: float) -> None:
    assert nice_length(extent) == length
