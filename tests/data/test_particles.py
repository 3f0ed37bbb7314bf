"""Particles open from both RELION formats, find their stacks, and refuse what would spoil a run later."""

import os
import pickle
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch

from ace_em.config import SimulationConfig
from ace_em.data.particles import Particles
from ace_em.errors import InputError
from ace_em.simulation.write import simulate

SHARED = Path(__file__).parents[2] / "../shared/data"
PARTICLE_STARS = sorted(SHARED.glob("particles/*/*.star"))
needs_shared = pytest.mark.skipif(not PARTICLE_STARS, reason=f"{SHARED} is absent")

BOX = 16
CTF = {
    "rlnDefocusU": "15000.5",
    "rlnDefocusV": "14000.0",
    "rlnDefocusAngle": "30.0",
    "rlnVoltage": "300",
    "rlnSphericalAberration": "2.7",
    "rlnAmplitudeContrast": "0.1",
}


def images(n: int, seed: int = 0, box: int = BOX) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, box, box)).astype(np.float32)


def write_stack(path: Path, data: np.ndarray) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(data)
    return data


def loop(name: str, rows: list[dict[str, str]]) -> str:
    lines = [f"data_{name}", "", "loop_", *(f"_{column} #{i + 1}" for i, column in enumerate(rows[0]))]
    return "\n".join(lines + [" ".join(row.values()) for row in rows]) + "\n\n"


def write_30(path: Path, names: list[str], extra: dict[str, str] | None = None, drop: tuple[str, ...] = ()) -> Path:
    """A RELION 3.0 file, 2.5 Angstrom per pixel."""
    row = CTF | {"rlnMagnification": "20000", "rlnDetectorPixelSize": "5"} | (extra or {})
    row = {key: value for key, value in row.items() if key not in drop}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(loop("", [{"rlnImageName": name} | row for name in names]))
    return path


def write_31(path: Path, names: list[str], groups: list[dict[str, str]], extra: dict[str, str] | None = None) -> Path:
    """A RELION 3.1 file; particles take the optics groups in turn."""
    optics = [
        {"rlnOpticsGroup": str(i + 1), "rlnImagePixelSize": "2.0", "rlnImageSize": str(BOX)} | g for i, g in enumerate(groups)
    ]
    rows = [{"rlnImageName": n, "rlnOpticsGroup": str(i % len(groups) + 1)} | CTF | (extra or {}) for i, n in enumerate(names)]
    for row in rows:
        del row["rlnVoltage"]
    path.write_text(loop("optics", optics) + loop("particles", rows))
    return path


def test_relion30(tmp_path: Path) -> None:
    data = write_stack(tmp_path / "a.mrcs", images(3))
    particles = Particles.open(write_30(tmp_path / "p.star", ["000003@a.mrcs", "1@a.mrcs"]))
    assert (len(particles), len(particles), particles.box) == (2, 2, BOX)
    assert particles.pixel_size_angstrom == pytest.approx(2.5)
    assert particles.image_names == ("000003@a.mrcs", "1@a.mrcs")
    assert np.array_equal(particles.images(slice(None)), data[[2, 0]])
    ctf = particles.ctf
    assert ctf.defocus_u_angstrom.dtype == torch.float32 and ctf.defocus_u_angstrom.tolist() == [15000.5, 15000.5]
    assert ctf.defocus_v_angstrom.tolist() == [14000.0] * 2 and ctf.defocus_angle_deg.tolist() == [30.0] * 2
    assert ctf.amplitude_contrast.tolist() == pytest.approx([0.1] * 2) and ctf.phase_shift_deg.tolist() == [0.0, 0.0]
    assert ctf.voltage_kv.tolist() == [300.0] * 2 and ctf.spherical_aberration_mm.tolist() == pytest.approx([2.7] * 2)
    assert particles.poses() is None and particles.half_sets() is None


def test_relion31_voltage_differs_among_groups(tmp_path: Path) -> None:
    write_stack(tmp_path / "a.mrcs", images(3))
    groups = [{"rlnVoltage": "300"}, {"rlnVoltage": "200"}]
    extra = {"rlnPhaseShift": "90.0", "rlnRandomSubset": "2"}
    particles = Particles.open(write_31(tmp_path / "p.star", ["1@a.mrcs", "2@a.mrcs", "3@a.mrcs"], groups, extra))
    assert particles.pixel_size_angstrom == 2.0
    assert particles.ctf.voltage_kv.tolist() == [300.0, 200.0, 300.0]
    assert particles.ctf.phase_shift_deg.tolist() == [90.0] * 3
    halves = particles.half_sets()
    assert halves is not None and halves.tolist() == [2, 2, 2]


def test_images_come_in_the_order_asked_for(tmp_path: Path) -> None:
    a, b = write_stack(tmp_path / "a.mrcs", images(4, 1)), write_stack(tmp_path / "b.mrcs", images(4, 2))
    names = ["4@a.mrcs", "2@b.mrcs", "1@a.mrcs", "3@b.mrcs", "2@a.mrcs"]
    truth = np.stack([a[3], b[1], a[0], b[2], a[1]])
    particles = Particles.open(write_30(tmp_path / "p.star", names))
    for rows in (np.array([3, 0, 0, 4, 1, 2]), slice(1, 4), np.array([-1]), np.array([True, False, True, False, False])):
        found = particles.images(rows)
        assert found.dtype == np.float32 and np.array_equal(found, truth[rows])
    assert particles.images(np.array([], dtype=int)).shape == (0, BOX, BOX)


@pytest.mark.parametrize("dtype", ["float16", "int8", "int16", "uint16"])
def test_stored_types(tmp_path: Path, dtype: str) -> None:
    data = write_stack(tmp_path / "a.mrcs", (images(2) * 10 + 40).astype(dtype))
    found = Particles.open(write_30(tmp_path / "p.star", ["1@a.mrcs", "2@a.mrcs"])).images(slice(None))
    assert found.dtype == np.float32 and np.array_equal(found, data.astype(np.float32))


def test_pickled_copy_reads_again_and_carries_no_images(tmp_path: Path) -> None:
    data = write_stack(tmp_path / "a.mrcs", images(60))
    particles = Particles.open(write_30(tmp_path / "p.star", ["1@a.mrcs", "2@a.mrcs"]))
    particles.images(slice(None))
    pickled = pickle.dumps(particles)
    assert len(pickled) < data.nbytes / 4
    assert np.array_equal(pickle.loads(pickled).images(slice(None)), data[:2])


@pytest.mark.parametrize("where", ["star", "parent", "root", "cwd", "absolute"])
def test_stack_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    folder = {"star": project / "Refine3D/job7", "parent": project}.get(where, elsewhere)
    data = write_stack(folder / "Extract/job3/a.mrcs", images(1))
    name = "1@" + (str(folder / "Extract/job3/a.mrcs") if where == "absolute" else "Extract/job3/a.mrcs")
    star = write_30(project / "Refine3D/job7/run_data.star", [name])
    monkeypatch.chdir(elsewhere if where == "cwd" else tmp_path)
    root = elsewhere if where == "root" else None
    # a relative path to the STAR file must do as well
    particles = Particles.open(os.path.relpath(star), project_root=root)
    assert np.array_equal(particles.images(slice(None)), data)


def test_given_root_goes_first(tmp_path: Path) -> None:
    write_stack(tmp_path / "a.mrcs", images(1, 1))
    data = write_stack(tmp_path / "root/a.mrcs", images(1, 2))
    particles = Particles.open(write_30(tmp_path / "p.star", ["1@a.mrcs"]), tmp_path / "root")
    assert np.array_equal(particles.images(slice(None)), data)


def test_missing_stack_lists_the_places(tmp_path: Path) -> None:
    write_stack(tmp_path / "b.mrcs", images(1))
    star = write_30(tmp_path / "sub/p.star", ["1@b.mrcs", "1@no/a.mrcs"])
    with pytest.raises(InputError, match=r"p\.star: row 2, column rlnImageName: images no/a\.mrcs not found; tried") as caught:
        Particles.open(star, tmp_path / "root")
    for folder in (tmp_path / "root", tmp_path / "sub", tmp_path):
        assert str(folder / "no/a.mrcs") in str(caught.value)


def test_name_without_index_is_one_image(tmp_path: Path) -> None:
    data = write_stack(tmp_path / "one.mrc", images(1)[0])
    assert np.array_equal(Particles.open(write_30(tmp_path / "p.star", ["one.mrc"])).images(slice(None))[0], data)
    write_stack(tmp_path / "two.mrcs", images(2))
    with pytest.raises(InputError, match=r"row 1, column rlnImageName: two\.mrcs has no index, but .*two\.mrcs contains 2"):
        Particles.open(write_30(tmp_path / "q.star", ["two.mrcs"]))


@pytest.mark.parametrize("name", ["0@a.mrcs", "-1@a.mrcs", "x@a.mrcs", "1.5@a.mrcs", "@a.mrcs", "1@"])
def test_bad_index(tmp_path: Path, name: str) -> None:
    write_stack(tmp_path / "a.mrcs", images(2))
    with pytest.raises(InputError, match=r"p\.star: row 2, column rlnImageName.*expected index@path"):
        Particles.open(write_30(tmp_path / "p.star", ["1@a.mrcs", name]))


def test_stack_shorter_than_the_table_and_truncated(tmp_path: Path) -> None:
    write_stack(tmp_path / "a.mrcs", images(2))
    star = write_30(tmp_path / "p.star", ["1@a.mrcs", "2@a.mrcs", "3@a.mrcs"])
    with pytest.raises(InputError, match=r"p\.star: row 3, column rlnImageName: image 3 of .*a\.mrcs, which contains 2"):
        Particles.open(star)
    (tmp_path / "a.mrcs").write_bytes((tmp_path / "a.mrcs").read_bytes()[:-1])
    with pytest.raises(InputError, match=r"a\.mrcs: truncated"):
        Particles.open(star)


def test_boxes(tmp_path: Path) -> None:
    write_stack(tmp_path / "a.mrcs", images(2))
    write_stack(tmp_path / "b.mrcs", images(2, box=18))
    write_stack(tmp_path / "wide.mrcs", np.zeros((2, 60, 64), dtype=np.float32))
    write_stack(tmp_path / "small.mrcs", images(2, box=15))
    for names, message in (
        (["1@wide.mrcs"], r"non-square 64 x 60 in .*wide\.mrcs"),
        (["1@a.mrcs", "1@b.mrcs"], r"b\.mrcs: images of 18 x 18 pixels, but .*a\.mrcs has 16 x 16"),
        (["1@small.mrcs"], "expected at least 16"),
    ):
        with pytest.raises(InputError, match=message):
            Particles.open(write_30(tmp_path / "p.star", names))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, "constant"])
def test_bad_image_is_named_when_read(tmp_path: Path, value: float | str) -> None:
    data = images(5)
    if value == "constant":
        data[3] = 7.0
    else:
        data[3, 2, 1] = value
    write_stack_unchecked(tmp_path / "a.mrcs", data)
    particles = Particles.open(write_30(tmp_path / "p.star", [f"{i}@a.mrcs" for i in (5, 4, 3)]))
    assert np.array_equal(particles.images(np.array([0, 2])), data[[4, 2]])
    message = "is constant" if value == "constant" else "NaN or infinite"
    with pytest.raises(InputError, match=rf"a\.mrcs: image 4 .*{message}.* \(row 2 of .*p\.star; --exclude can omit it"):
        particles.images(slice(None))


def write_stack_unchecked(path: Path, data: np.ndarray) -> None:
    """mrcfile warns at NaN when it fills the header, so the data are put in after it."""
    write_stack(path, np.zeros_like(data))
    path.write_bytes(path.read_bytes()[:1024] + data.tobytes())


def test_all_missing_ctf_columns_are_listed(tmp_path: Path) -> None:
    write_stack(tmp_path / "a.mrcs", images(1))
    star = write_30(tmp_path / "p.star", ["1@a.mrcs"], drop=("rlnDefocusV", "rlnVoltage"))
    with pytest.raises(InputError, match=r"p\.star: no CTF: missing columns rlnDefocusV, rlnVoltage$"):
        Particles.open(star)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([{"rlnImagePixelSize": "2.0"}, {"rlnImagePixelSize": "2.1"}], "pixel sizes from 2 to 2.1"),
        ([{"rlnImageSize": "16"}, {"rlnImageSize": "18"}], "rlnImageSize from 16 to 18"),
        ([{"rlnImageSize": "32"}], "rlnImageSize is 32, but the images have 16"),
        ([{"rlnImagePixelSize": "0"}], "pixel size 0 Angstrom"),
        ([{"rlnImagePixelSize": "nan"}], "rlnImagePixelSize: 'nan'"),
    ],
)
def test_optics_groups_that_do_not_fit(tmp_path: Path, groups: list[dict[str, str]], message: str) -> None:
    write_stack(tmp_path / "a.mrcs", images(2))
    with pytest.raises(InputError, match=message):
        Particles.open(write_31(tmp_path / "p.star", ["1@a.mrcs", "2@a.mrcs"], [{"rlnVoltage": "300"} | g for g in groups]))


def test_unused_optics_group_may_differ(tmp_path: Path) -> None:
    write_stack(tmp_path / "a.mrcs", images(2))
    groups = [{"rlnVoltage": "300"}, {"rlnVoltage": "300", "rlnImagePixelSize": "9", "rlnImageSize": "99"}]
    assert Particles.open(write_31(tmp_path / "p.star", ["1@a.mrcs"], groups)).pixel_size_angstrom == 2.0


def test_pixel_size_columns(tmp_path: Path) -> None:
    write_stack(tmp_path / "a.mrcs", images(1))
    drop = ("rlnMagnification", "rlnDetectorPixelSize")
    star = write_30(tmp_path / "p.star", ["1@a.mrcs"], {"rlnPixelSize": "1.75"}, drop)
    assert Particles.open(star).pixel_size_angstrom == 1.75
    with pytest.raises(InputError, match="no pixel size"):
        Particles.open(write_30(tmp_path / "p.star", ["1@a.mrcs"], drop=drop))
    with pytest.raises(InputError, match="rlnMagnification: 0, expected above 0"):
        Particles.open(write_30(tmp_path / "p.star", ["1@a.mrcs"], {"rlnMagnification": "0"}))


def set_header_pixel_size(path: Path, x: float, y: float | None = None) -> None:
    with mrcfile.open(path, "r+") as file:
        file.voxel_size = (x, x if y is None else y, 1)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("size", [5.0, 2.47, 2.53, 0.25])
def test_header_of_another_pixel_size(tmp_path: Path, size: float, told: bool) -> None:
    """Of every stack, not of the first alone; and the table's is used."""
    for name in ("a.mrcs", "b.mrcs", "c.mrcs"):
        write_stack(tmp_path / name, images(1))
    set_header_pixel_size(tmp_path / "a.mrcs", 2.5)
    set_header_pixel_size(tmp_path / "b.mrcs", size if told else 2.5)
    particles = Particles.open(write_30(tmp_path / "p.star", ["1@a.mrcs", "1@b.mrcs", "1@c.mrcs"]))
    assert particles.pixel_size_angstrom == pytest.approx(2.5)
    assert particles.header_pixel_sizes == pytest.approx((2.5, size if told else 2.5, None))
    wanted = (tmp_path / "b.mrcs", pytest.approx(size)) if told else None
    assert particles.stack_of_another_pixel_size == wanted


@pytest.mark.parametrize(
    "size", [(0, 0), (1, 1), (2.49, 2.49), (2.52, 2.52), (5, 0), (5, 6), (-5, -5), (1e-10, 1e-10), (1e4, 1e4)]
)
def test_header_that_was_never_set_or_agrees(tmp_path: Path, size: tuple[float, float]) -> None:
    write_stack(tmp_path / "a.mrcs", images(1))
    set_header_pixel_size(tmp_path / "a.mrcs", *size)
    assert Particles.open(write_30(tmp_path / "p.star", ["1@a.mrcs"])).stack_of_another_pixel_size is None


def test_header_of_simulated_images_agrees(tmp_path: Path) -> None:
    structure = Path(__file__).parents[2] / "examples/data/5nrl_every10th_atom.npz"
    simulate(structure, tmp_path / "sim", SimulationConfig(n=4, box=32, pixel_size=17.0, resolution=40.0, seed=5))
    particles = Particles.open(tmp_path / "sim/particles.star")
    assert particles.header_pixel_sizes == pytest.approx((17.0,)) and particles.stack_of_another_pixel_size is None


def test_header_without_a_number_of_cells_says_no_pixel_size(tmp_path: Path) -> None:
    write_stack(tmp_path / "a.mrcs", images(1))
    set_header_pixel_size(tmp_path / "a.mrcs", 5.0)
    with mrcfile.open(tmp_path / "a.mrcs", "r+") as file:
        file.header.mx = file.header.my = 0
    assert Particles.open(write_30(tmp_path / "p.star", ["1@a.mrcs"])).header_pixel_sizes == (None,)


def test_header_against_the_optics_group_of_the_images(tmp_path: Path) -> None:
    write_stack(tmp_path / "a.mrcs", images(1))
    set_header_pixel_size(tmp_path / "a.mrcs", 2.0)
    groups = [{"rlnVoltage": "300"}, {"rlnVoltage": "300", "rlnImagePixelSize": "9"}]
    assert Particles.open(write_31(tmp_path / "p.star", ["1@a.mrcs"], groups)).stack_of_another_pixel_size is None


ANGLES = {"rlnAngleRot": "20", "rlnAngleTilt": "50", "rlnAnglePsi": "-70"}


def test_poses_in_angstrom_and_in_pixels(tmp_path: Path) -> None:
    write_stack(tmp_path / "a.mrcs", images(1))
    angstrom = ANGLES | {"rlnOriginXAngst": "3.0", "rlnOriginYAngst": "-5.0"}
    new = Particles.open(write_31(tmp_path / "new.star", ["1@a.mrcs"], [{"rlnVoltage": "300"}], angstrom)).poses()
    px = ANGLES | {"rlnOriginX": "3.0", "rlnOriginY": "-5.0"}
    old = Particles.open(write_30(tmp_path / "old.star", ["1@a.mrcs"], px)).poses()
    none = Particles.open(write_30(tmp_path / "none.star", ["1@a.mrcs"], ANGLES)).poses()
    assert new is not None and old is not None and none is not None
    assert new.shift_px.tolist() == [[2.5, -1.5]] and old.shift_px.tolist() == [[5.0, -3.0]]
    assert none.shift_px.tolist() == [[0.0, 0.0]]
    assert new.rotation.dtype == torch.float32 and new.rotation.shape == (1, 3, 3)
    # R = Rz(rot) Ry(tilt) Rz(psi): its last row depends on tilt and psi alone
    tilt, psi = np.deg2rad([50.0, -70.0])
    row = [-np.sin(tilt) * np.cos(psi), np.sin(tilt) * np.sin(psi), np.cos(tilt)]
    assert new.rotation[0, 2].tolist() == pytest.approx(row, abs=1e-6)


def test_half_set_that_is_neither(tmp_path: Path) -> None:
    write_stack(tmp_path / "a.mrcs", images(1))
    particles = Particles.open(write_30(tmp_path / "p.star", ["1@a.mrcs"], {"rlnRandomSubset": "3"}))
    with pytest.raises(InputError, match="row 1, column rlnRandomSubset: 3"):
        particles.half_sets()


@needs_shared
@pytest.mark.parametrize("path", PARTICLE_STARS, ids=lambda path: path.name)
def test_real_particles_open_and_read(path: Path) -> None:
    particles = Particles.open(path)
    found = particles.images(np.unique(np.linspace(0, len(particles) - 1, 20).astype(int)))
    assert found.shape[1:] == (particles.box, particles.box) and np.isfinite(found).all()
    assert 0.5 < particles.pixel_size_angstrom < 10
    # one of them has 1 A in its header and 2.806 in its table, others have 0
    assert particles.stack_of_another_pixel_size is None
    assert ((particles.ctf.defocus_u_angstrom > 1e3) & (particles.ctf.defocus_u_angstrom < 1e5)).all()
