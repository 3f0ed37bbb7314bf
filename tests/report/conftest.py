"""A small finished run, made without one: particles with poses, maps, curves and records."""

import io
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from ace_em.config import SimulationConfig
from ace_em.io.mrc import StackWriter, write_volume
from ace_em.io.star import ParticleTable, with_poses, write_star
from ace_em.physics.pose import rotmat_to_relion_angles
from ace_em.simulation.dataset import clean_images, sample_ctf, sample_poses, specimen_from_atoms
from ace_em.simulation.structure import Atoms

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

BOX, PIXEL_SIZE, N = 32, 6.0, 20


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
    for name in ("volume", "half1", "half2", "volume_sharp"):
        # a half-map that stands elsewhere looks different
        volume = specimen.volume.roll(5, 0) if name == "half1" else specimen.volume
        write_volume(run / f"{name}.mrc", volume.numpy(), PIXEL_SIZE)


def _begin(command: str, time_s: float) -> dict[str, object]:
    machine = {"platform": "Linux-6.1-x86_64", "device": "cpu", "threads": 2, "expected_s": 95, "memory_gib": 1.25}
    return {"stage": "begin", "time_s": time_s, "command": command, "versions": {"ace-em": "0.1.0", "torch": "2.13.0"}} | machine


def _metrics() -> list[dict[str, object]]:
    survey = {"stage": "survey", "time_s": 1.0, "n_particles": N, "box": BOX, "pixel_size_angstrom": PIXEL_SIZE}
    records: list[dict[str, object]] = [survey | {"contrast": "white", "contrast_z": 9.0, "diameter_angstrom": 90.0, "snr": 10.0}]
    for start in (1, 2):
        for step in (0, 50, 100):
            loss = {"image_loss": 1 - step / 200, "pip_loss": float("nan") if step == 0 else 0.1}
            records.append({"stage": "ace", "start": start, "time_s": 2.0, "step": step, "steps": 100} | loss)
        for turn in (1, 2):
            moved = {"stable": 0.5 * turn, "moved_median_deg": 20.0 / turn, "band_angstrom": 30.0, "fsc143_angstrom": 40.0}
            records.append({"stage": "ab_initio", "start": start, "time_s": 3.0, "round": turn, "explained": 0.4 * start} | moved)
        judged = {"held_out": 4, "explained": 0.43 * start, "against_null_z": 9.0 * start}
        records.append({"stage": "start", "start": start, "time_s": 3.5} | judged)
    records.append({"stage": "symmetry", "time_s": 4.0, "group": "D2", "correlation": 0.31})
    for stage, band in (("search", 40.0), ("refine", 20.0)):
        moved = {"stable": 1.0, "moved_median_deg": 0.0, "band_angstrom": band, "fsc143_angstrom": 20.0, "explained": 1.1}
        records.append({"stage": stage, "time_s": 70.0, "box": BOX, "round": 1} | moved)
    final = {"masked_resolution_angstrom": 15.5, "b_factor": -123.0, "b_factor_note": "B as fitted."}
    records.insert(0, _begin("ace-em reconstruct particles.star -o run", 0.2))
    end = {"converged": True, "resolution_angstrom": 17.5, "message": "all is well"}
    records.append({"stage": "end", "time_s": 75.0} | end | final)
    return records


def _write_fsc(run: Path, columns: dict[str, np.ndarray]) -> None:
    shells = np.arange(BOX // 2 + 1)
    frequency = shells / (BOX * PIXEL_SIZE)
    header = ",".join(["shell", "frequency_per_angstrom", "resolution_angstrom", *columns])
    rows = [
        f"{n},{f:.6f},{1 / f if f else np.inf:.4f}," + ",".join(f"{curve[n]:.4f}" for curve in columns.values())
        for n, f in enumerate(frequency)
    ]
    (run / "fsc.csv").write_text("\n".join([header, *rows]) + "\n")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder with particles and a finished run; tests copy it."""
    project = tmp_path_factory.mktemp("project")
    run = project / "run"
    run.mkdir()
    _write_particles(project, run)
    shell = np.arange(BOX // 2 + 1)
    fsc = 1 - shell / 17
    _write_fsc(
        run,
        {
            "fsc": fsc,
            "fsc_masked": fsc**0.5,
            "fsc_randomised": fsc**8,
            "fsc_corrected": 1 - (shell / 20) ** 2,
            "fsc_features": fsc - 0.1,
        },
    )
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in _metrics()))
    (run / "evaluation.json").write_text(json.dumps({"rot_median": 0.125, "within_10deg": 0.75, "fsc_truth": list(fsc / 2)}))
    (run / "config.yaml").write_text(
        f"particles: {project / 'particles.star'}\nseed: 7\nsymmetry: d2\nsearch:\n  shared_band: 4.5\n"
    )
    return project


@pytest.fixture(scope="session")
def browser() -> Iterator["Browser"]:
    """Debian's Chromium, whose 3-D graphics are made in software."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("chromium is not on the PATH")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        flags = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist", "--no-sandbox"]
        started = playwright.chromium.launch(executable_path=program, args=flags)
        yield started
        started.close()


@dataclass
class Look:
    """A page in the browser, with all that it asked for and all that the browser's console said."""

    page: "Page"
    asked: list[str]
    said: list[str]

    def colours(self) -> int:
        """How many colours the 3-D view shows: one is an empty view."""
        return len(set(self.picture().reshape(-1, 3).view("u1,u1,u1").ravel().tolist()))

    def picture(self) -> np.ndarray:
        """The 3-D view's pixels."""
        png = self.page.locator(".scene").screenshot()
        return np.ascontiguousarray(np.array(Image.open(io.BytesIO(png)).convert("RGB")))

    def changes(self, before: np.ndarray) -> np.ndarray:
        """The 3-D view's pixels once they differ from those before, or those of three seconds later."""
        for _ in range(30):
            after = self.picture()
            if not np.array_equal(before, after):
                break
            self.page.wait_for_timeout(100)
        return after


@pytest.fixture
def look(browser: "Browser") -> Iterator[Callable[..., Look]]:
    """Open an address in a window of its own."""
    contexts = []

    def opened(address: str, width: int = 1280, **settings: Any) -> Look:
        context = browser.new_context(viewport={"width": width, "height": 900}, **settings)
        contexts.append(context)
        seen = Look(context.new_page(), [], [])
        seen.page.on("request", lambda request: seen.asked.append(request.url))
        seen.page.on("console", lambda message: seen.said.append(message.text))
        seen.page.on("pageerror", lambda error: seen.said.append(str(error)))
        seen.page.goto(address)
        return seen

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A run folder of its own; its particles are found through config.yaml."""
    return Path(shutil.copytree(finished / "run", tmp_path / "run"))


@pytest.fixture
def say() -> Callable[..., None]:
    """Write status.json as a run does."""

    def write(run: Path, **values: Any) -> None:
        status = {"state": "running", "pid": 1, "host": "elsewhere", "task": "ACE training, start 1", "done": 420}
        status |= {"total": 600, "status": "band 30 A", "elapsed_s": 83.1, "expected_s": 295.0, "message": ""}
        (run / ".status.json").write_text(json.dumps(status | {"updated": time.time()} | values))
        os.replace(run / ".status.json", run / "status.json")

    return write


@pytest.fixture
def going(run: Path, say: Callable[..., None]) -> Path:
    """A run that goes on: no results yet, but a map so far."""
    (run / "half1.mrc").rename(run / "current.mrc")
    for name in ("volume.mrc", "volume_sharp.mrc", "half2.mrc", "poses.star", "fsc.csv", "evaluation.json"):
        (run / name).unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join(line for line in lines if '"end"' not in line) + "\n")
    say(run)
    return run
