"""``ace-em simulate``: consistent output files, and no files on bad input."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch

from ace_em import cli
from ace_em.config import SimulationConfig
from ace_em.data.particles import Particles
from ace_em.io.mrc import read_images, read_volume, stack_shape, write_volume
from ace_em.io.star import numeric_column, read_particle_star, write_star
from ace_em.maths.fourier import fourier_resize, resize
from ace_em.metrics.fsc import fourier_shell_correlation
from ace_em.simulation.dataset import clean_images, specimen_from_atoms
from ace_em.simulation.structure import read_structure
from ace_em.simulation.write import simulate

STRUCTURE = Path(__file__).parents[2] / "examples/data/5nrl_every10th_atom.npz"
CONFIG = SimulationConfig(n=8, box=32, pixel_size=17.0, resolution=40.0, snr_db=0.0, seed=5)
FILES = ("particles.mrcs", "particles.star", "truth.star", "volume.mrc")
POSE_COLUMNS = ["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst"]
Result = tuple[int, str, str]


def read_stack(path: Path) -> np.ndarray:
    """All images."""
    return read_images(path, np.arange(stack_shape(path)[0]))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "deep/sim"
    simulate(STRUCTURE, out, CONFIG)
    return out


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """``ace-em simulate`` of a tiny set, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(structure: object, *args: object) -> Result:
        tiny = ("--n", 8, "--box", 32, "--pixel-size", 17, "--resolution", 40, "--snr-db", 0, "--seed", 5)
        with pytest.raises(SystemExit) as ended:
            cli.main([str(a) for a in ("simulate", structure, "-o", "sim", *tiny, *args)])
        captured = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, captured.out, captured.err

    return run


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_simulate_writes_four_files(made: Path) -> None:
    assert set(content(made)) == set(FILES)
    assert read_stack(made / "particles.mrcs").shape == (8, 32, 32)
    volume, pixel_size = read_volume(made / "volume.mrc")
    assert volume.shape == (32, 32, 32) and pixel_size == pytest.approx(17.0)


def test_particles_star_has_no_poses(made: Path) -> None:
    hidden, truth = read_particle_star(made / "particles.star"), read_particle_star(made / "truth.star")
    assert not any(name.startswith(("rlnAngle", "rlnOrigin", "rlnRandom")) for name in hidden.particles)
    assert list(truth.particles) == list(hidden.particles) + POSE_COLUMNS
    assert truth.particles[list(hidden.particles)].equals(hidden.particles)
    assert hidden.optics is not None and truth.optics is not None and truth.optics.equals(hidden.optics)
    assert list(numeric_column(hidden, "rlnImageSize")) == [32] * 8
    assert Particles.open(made / "particles.star").poses() is None


def test_command_matches_the_function_and_the_seed_is_used(command: Callable[..., Result], made: Path) -> None:
    code, out, err = command(STRUCTURE)
    assert (code, err) == (0, "") and "sim/particles.star" in out and "sim/truth.star" in out
    first = content(Path("sim"))
    assert first == content(made)
    assert command(STRUCTURE, "--seed", 6)[0] == 2 and content(Path("sim")) == first
    command(STRUCTURE, "--seed", 6, "--overwrite")
    second = content(Path("sim"))
    assert {name for name in FILES if second[name] != first[name]} == {"particles.mrcs", "particles.star", "truth.star"}


def test_truth_explains_the_images(tmp_path: Path) -> None:
    """Images simulated from the poses and CTFs in truth.star equal the stack up to scale."""
    config = dataclasses.replace(CONFIG, snr_db=200.0)
    simulate(STRUCTURE, tmp_path, config)
    truth = Particles.open(tmp_path / "truth.star")
    pose = truth.poses()
    assert pose is not None and pose.shift_px.abs().max() > 0.5
    specimen = specimen_from_atoms(read_structure(STRUCTURE), config)
    clean = clean_images(specimen, pose, truth.ctf, config)
    images = torch.from_numpy(truth.images(slice(None)))
    scale = (images * clean).sum() / clean.square().sum()
    assert (images - scale * clean).square().mean().sqrt() < 1e-4 * images.std()
    volume, _ = read_volume(tmp_path / "volume.mrc")
    assert torch.equal(torch.from_numpy(volume), specimen.volume)


def test_poses_from_a_star_file(command: Callable[..., Result], made: Path) -> None:
    """Row by row, repeated if there are fewer; origins are kept in Angstrom."""
    assert command(STRUCTURE, "--poses", made / "truth.star", "--n", 11, "--pixel-size", 20, "--seed", 9)[0] == 0
    given, found = read_particle_star(made / "truth.star"), read_particle_star("sim/truth.star")
    for name in POSE_COLUMNS:
        expected = numeric_column(given, name)[np.arange(11) % 8]
        np.testing.assert_allclose(numeric_column(found, name), expected, atol=2e-4)
    # the CTFs still follow the seed
    assert abs(numeric_column(found, "rlnDefocusU")[:8] - numeric_column(given, "rlnDefocusU")).min() > 1


def test_poses_from_a_star_file_are_those_of_the_images(command: Callable[..., Result], made: Path) -> None:
    command(STRUCTURE, "--poses", made / "truth.star", "--ctf", made / "truth.star", "--snr-db", 200)
    again, before = (read_stack(f / "particles.mrcs").reshape(8, -1) for f in (Path("sim"), made))
    correlation = np.corrcoef(again, before)[:8, 8:]
    assert (correlation.argmax(1) == np.arange(8)).all() and correlation.diagonal().min() > 0.6


def test_ctf_from_a_star_file(command: Callable[..., Result], made: Path, tmp_path: Path) -> None:
    table = read_particle_star(made / "particles.star")
    assert table.optics is not None
    two = table.optics.loc[[0, 0]].reset_index(drop=True)
    two["rlnOpticsGroup"], two["rlnVoltage"], two["rlnAmplitudeContrast"] = ["1", "2"], ["300", "200"], ["0.1", "0.07"]
    table.particles["rlnOpticsGroup"] = ["2", "1", "1", "2", "1", "1", "1", "1"]
    table.particles["rlnPhaseShift"] = [f"{10 * i}.5" for i in range(8)]
    # only columns are read: the images of the file need not exist
    write_star(tmp_path / "ctf.star", dataclasses.replace(table, optics=two))
    assert command(STRUCTURE, "--ctf", "ctf.star", "--n", 10, "--seed", 9)[0] == 0
    given, found = read_particle_star("ctf.star"), read_particle_star("sim/particles.star")
    names = ["rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnPhaseShift"]
    for name in [*names, "rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast"]:
        expected = numeric_column(given, name)[np.arange(10) % 8]
        np.testing.assert_allclose(numeric_column(found, name), expected, rtol=1e-6, err_msg=name)
    # the poses still follow the seed
    own, seeded = read_particle_star("sim/truth.star"), read_particle_star(made / "truth.star")
    assert abs(numeric_column(own, "rlnAngleRot")[:8] - numeric_column(seeded, "rlnAngleRot")).min() > 1e-3


def test_map_with_matching_box_is_used_unchanged(command: Callable[..., Result], made: Path) -> None:
    """The map of a simulated set, used as input, gives the same set."""
    assert command(made / "volume.mrc")[0] == 0
    volume, before = (read_volume(f / "volume.mrc")[0] for f in (Path("sim"), made))
    np.testing.assert_allclose(volume, before, atol=1e-5 * before.max())
    assert Path("sim/truth.star").read_bytes() == (made / "truth.star").read_bytes()
    images, expected = (read_stack(f / "particles.mrcs").reshape(8, -1) for f in (Path("sim"), made))
    for one, other in zip(images, expected, strict=True):
        assert np.corrcoef(one, other)[0, 1] > 0.999


def test_map_is_resampled_to_box_and_pixel_size(command: Callable[..., Result], made: Path, tmp_path: Path) -> None:
    volume = torch.from_numpy(read_volume(made / "volume.mrc")[0])
    # the same box of 544 A in 48 finer voxels, zero-padded to 60 voxels about the centre
    write_volume(tmp_path / "fine.mrc", resize(fourier_resize(volume, 48, 3), 60, 3).numpy(), 17.0 * 32 / 48)
    assert command("fine.mrc")[0] == 0
    found, pixel_size = read_volume("sim/volume.mrc")
    assert pixel_size == pytest.approx(17.0) and found.shape == (32, 32, 32)
    assert fourier_shell_correlation(torch.from_numpy(found), volume)[:14].min() > 0.99
    assert found.max() == pytest.approx(volume.max().item(), rel=0.02)


def bad_npz(**arrays: np.ndarray) -> Callable[[], str]:
    def write() -> str:
        np.savez("s.npz", **arrays)
        return "s.npz"

    return write


def text(name: str, body: str) -> Callable[[], str]:
    def write() -> str:
        Path(name).write_text(body)
        return name

    return write


def slab() -> str:
    write_volume("slab.mrc", np.ones((20, 32, 32), dtype=np.float32), 17.0)
    return "slab.mrc"


def nan_map() -> str:
    with mrcfile.new("nan.mrc") as file:
        file.set_data(np.zeros((32, 32, 32), dtype=np.float32))
        file.voxel_size = 17.0
    raw = Path("nan.mrc").read_bytes()
    Path("nan.mrc").write_bytes(raw[:-4] + np.float32(np.nan).tobytes())
    return "nan.mrc"


BAD_STRUCTURES: dict[str, tuple[Callable[[], str], list[str]]] = {
    "missing": (lambda: "no.pdb", ["no.pdb", "no such file"]),
    "missing map": (lambda: "no.mrc", ["no.mrc", "no such file"]),
    "folder": (lambda: ".", [".", "not a file"]),
    "no npz": (text("s.npz", "prose"), ["s.npz", "coords"]),
    "other arrays": (bad_npz(positions=np.zeros((3, 3)), Z=np.full(3, 6)), ["s.npz", "positions", "coords"]),
    "lengths differ": (bad_npz(coords=np.zeros((3, 3)), Z=np.full(4, 6)), ["s.npz", "(3, 3)", "(4,)"]),
    "NaN": (bad_npz(coords=np.full((3, 3), np.nan), Z=np.full(3, 6)), ["s.npz", "NaN"]),
    "hydrogens": (bad_npz(coords=np.zeros((3, 3)), Z=np.ones(3)), ["s.npz", "no atoms"]),
    "no pdb": (text("s.pdb", "prose\n"), ["s.pdb"]),
    "no cif": (text("s.cif", "prose\n"), ["s.cif"]),
    "no map": (text("s.mrc", "prose " * 300), ["s.mrc", "not an MRC file"]),
    "other suffix": (text("s.xyz", "3\n\nC 0 0 0\n"), ["s.xyz"]),
    "not cubic": (slab, ["slab.mrc", "20 x 32 x 32", "cubic"]),
    "NaN map": (nan_map, ["nan.mrc", "NaN"]),
}


def assert_refused(result: Result, words: list[str], before: set[Path]) -> None:
    code, out, err = result
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1 and err.startswith("ace-em simulate: ")
    for word in words:
        assert word in err
    assert set(Path().rglob("*")) == before


@pytest.mark.parametrize("case", list(BAD_STRUCTURES))
def test_bad_structure(command: Callable[..., Result], case: str) -> None:
    prepare, words = BAD_STRUCTURES[case]
    structure = prepare()
    before = set(Path().rglob("*"))
    assert_refused(command(structure), words, before)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--box", 15], ["--box 15", "16 or more"]),
        (["--n", 0], ["--n 0", "1 or more"]),
        (["--pixel-size", 0], ["--pixel-size 0", "positive"]),
        (["--resolution", -1], ["--resolution -1", "positive"]),
        (["--shift-sd", -1], ["--shift-sd -1", "0 or more"]),
        (["--amplitude-contrast", 1.5], ["--amplitude-contrast 1.5", "fraction"]),
        (["--poses", "no.star"], ["no.star", "no such file"]),
        (["--ctf", "no.star"], ["no.star", "no such file"]),
        (["--ctf", STRUCTURE], [str(STRUCTURE), "not a STAR file"]),
        (["-o", "f"], ["f: cannot be created"]),
        (["-o", "f/below"], ["f/below: cannot be created"]),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) and "-" in str(value[0])[:1] else "",
)
def test_bad_options(command: Callable[..., Result], args: list[object], words: list[str]) -> None:
    Path("f").write_text("a file")
    assert_refused(command(STRUCTURE, *args), words, {Path("f")})


def test_star_without_poses(command: Callable[..., Result], made: Path) -> None:
    star = made / "particles.star"
    assert_refused(command(STRUCTURE, "--poses", star), [str(star), "rlnAngleRot"], set())


@pytest.mark.parametrize(
    "args",
    [["--voltage", 0], ["--voltage", -300], ["--snr-db", 1000000], ["--pixel-size", 2], ["--seed", 10**30]],
    ids=lambda args: " ".join(map(str, args)),
)
def test_invalid_settings_are_refused(command: Callable[..., Result], args: list[object]) -> None:
    assert_refused(command(STRUCTURE, *args), [str(args[0])[2:].replace("_", "-")], set())


def test_input_in_the_output_folder_is_unchanged(command: Callable[..., Result], made: Path) -> None:
    Path("sim").mkdir()
    Path("sim/particles.star").write_bytes((made / "truth.star").read_bytes())
    before = content(Path("sim"))
    command(STRUCTURE, "--ctf", "sim/particles.star", "--poses", "sim/particles.star")
    assert Path("sim/particles.star").read_bytes() == before["particles.star"]


def test_a_set_does_not_overwrite_its_input(command: Callable[..., Result], made: Path) -> None:
    Path("sim").mkdir()
    for name in ("volume.mrc", "truth.star"):
        Path("sim", name).write_bytes((made / name).read_bytes())
    before = content(Path("sim"))
    for args in (("sim/volume.mrc",), (STRUCTURE, "--poses", "sim/truth.star"), (STRUCTURE, "--ctf", "sim/truth.star")):
        code, _, err = command(*args, "--overwrite")
        assert code == 2 and "would be replaced" in err
    assert content(Path("sim")) == before
