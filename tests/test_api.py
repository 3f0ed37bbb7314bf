"""The public names: quick to import, all there, documented, silent, and without a global seed."""

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

import ace_em
from ace_em import plot
from ace_em.config import SimulationConfig
from ace_em.models.choice import build_decoder, build_encoder
from ace_em.simulation.write import simulate

STRUCTURE = Path(__file__).parents[1] / "examples" / "data" / "5nrl_every10th_atom.npz"


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, ace_em; dir(ace_em); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_is_there_and_documented() -> None:
    for name in ace_em.__all__:
        assert hasattr(ace_em, name) and name in dir(ace_em)
        if callable(getattr(ace_em, name)):
            assert inspect.getdoc(getattr(ace_em, name)), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ace_em.nothing


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api")
    simulate(STRUCTURE, folder, SimulationConfig(n=120, box=24, pixel_size=20.0, resolution=45, snr_db=0, seed=1))
    return folder


def test_the_stages(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each can be stopped and gone on with; the true poses give the true map."""
    state_before = torch.get_rng_state()
    particles = ace_em.read_particles(folder / "particles.star")
    look = ace_em.survey(particles)
    images = ace_em.read_images(particles, 24, look)
    config = ace_em.AceConfig(steps=4, batch=16, warmup_steps=1)
    training = ace_em.train_autoencoder(images, look.diameter_angstrom, config, seed=1)
    updates = iter(training)
    first = [next(updates).step, next(updates).step]
    assert first + [p.step for p in training] == [1, 2, 3, 4]

    pose = ace_em.read_particles(folder / "truth.star").poses()
    truth, _ = ace_em.read_map(folder / "volume.mrc")
    assert pose is not None
    halves = ace_em.backproject(images, pose)
    assert ace_em.fourier_shell_correlation(halves.combined, truth)[1:7].min() > 0.9
    rounds = ace_em.ab_initio(images, halves.combined, pose, look.diameter_angstrom, ace_em.SearchConfig(ab_initio_rounds=2))
    assert next(rounds).number == 1
    state = next(ace_em.refine_half_sets(images, halves.combined, pose, look.diameter_angstrom))
    frame = ace_em.align_poses(state.pose, pose)
    assert ace_em.pose_error(ace_em.apply_frame(state.pose, frame), pose).within_10deg > 0.8
    assert torch.equal(torch.get_rng_state(), state_before)
    said = capsys.readouterr()
    assert said.out == said.err == ""


def test_what_is_read_can_be_written_and_read_again(folder: Path, tmp_path: Path) -> None:
    """Poses of a stack, in its pixels, reach the STAR file in Angstrom; a map keeps its grey values at another box."""
    particles, truth = (ace_em.read_particles(folder / name) for name in ("particles.star", "truth.star"))
    pose = truth.poses()
    assert pose is not None
    at_box = pose.rescaled(16 / particles.box)
    ace_em.write_poses(tmp_path / "poses.star", particles, at_box.rescaled(particles.box / 16))
    written = ace_em.read_particles(tmp_path / "poses.star", project=folder)
    again = written.poses()
    assert again is not None and written.image_names == truth.image_names
    assert torch.allclose(again.rotation, pose.rotation, atol=1e-5)
    assert torch.allclose(again.shift_px, pose.shift_px, atol=1e-5)

    whole, pixel_size = ace_em.read_map(folder / "volume.mrc")
    small, pixel_size_small = ace_em.read_map(folder / "volume.mrc", box=16)
    assert small.shape == (16, 16, 16) and pixel_size_small == pytest.approx(pixel_size * 24 / 16)
    assert small.mean().item() == pytest.approx(whole.mean().item(), rel=1e-4)


def test_a_set_is_simulated_from_paths_given_as_text(tmp_path: Path) -> None:
    config = SimulationConfig(n=2, box=24, pixel_size=20.0, resolution=45)
    ace_em.simulate(str(STRUCTURE), str(tmp_path / "set"), config)
    assert len(ace_em.read_particles(str(tmp_path / "set" / "particles.star"))) == 2


def test_figures_show_in_a_notebook() -> None:
    generator = torch.Generator().manual_seed(0)
    rotation, _ = torch.linalg.qr(torch.randn(50, 3, 3, generator=generator))
    figures: list[Any] = [
        plot.slices(torch.randn(8, 8, 8, generator=generator), "noise"),
        plot.images(torch.randn(7, 8, 8, generator=generator)),
        plot.images(torch.randn(7, 8, 8, generator=generator).numpy()),
        plot.fsc({"halves": torch.linspace(1, 0, 9)}, 80.0),
        plot.fsc(torch.linspace(1, 0, 9), 80.0, threshold=0.5),
        plot.fsc(torch.ones(9), 80.0),
        plot.views(rotation * torch.linalg.det(rotation)[:, None, None]),
        plot.losses({"ipi": [2.0, 1.0], "pip": [1.0, 0.5]}),
    ]
    for figure in figures:
        assert isinstance(figure, Figure) and figure._repr_png_().startswith(b"\x89PNG")
    said = [figures[i].axes[0].get_legend().get_texts()[0].get_text() for i in (3, 4, 5)]
    assert said == ["halves (0.143 at 11.7 A)", "FSC (0.5 at 20.0 A)", "FSC (0.143 at 10.0 A or better)"]


def test_a_model_that_nobody_knows_is_refused() -> None:
    config = ace_em.AceConfig(encoder="vit", decoder="gauss")
    with pytest.raises(ValueError, match="no decoder is called 'gauss'; expected one of voxel, fouriernet"):
        build_decoder(16, 12.0, config)
    with pytest.raises(ValueError, match="no encoder is called 'vit'; expected one of fourier, resnet"):
        build_encoder(None, 12.0, config)  # type: ignore[arg-type]
