"""``ace-em reconstruct`` on input that is wrong: exit code 2, one line that says what and where, and nothing written."""

import bz2
import gzip
import io
import os
import re
from collections.abc import Callable
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch

from ace_em import cli
from ace_em.config import RunConfig
from ace_em.data import preprocess, survey
from ace_em.data.convert import convert
from ace_em.data.particles import Particles
from ace_em.errors import option
from ace_em.io.cryosparc import load_fields, save_fields
from ace_em.io.mrc import write_volume
from ace_em.io.star import numeric_column, read_particle_star
from ace_em.run.convergence import Verdict
from ace_em.run.plan import announce, make_plan
from ace_em.run.reporter import Mode, Reporter

N, BOX = 120, 16
Result = tuple[int, str, str]
COLUMNS = {
    "rlnImageName": "1@a.mrcs",
    "rlnDefocusU": "15000",
    "rlnDefocusV": "14500",
    "rlnDefocusAngle": "30",
    "rlnVoltage": "300",
    "rlnSphericalAberration": "2.7",
    "rlnAmplitudeContrast": "0.1",
    "rlnPixelSize": "8",
}
# so short that a check which is missing shows as a wrong exit code and not as a long wait
TINY = ["--ace.steps", 1, "--ace.batch", 8, "--ace.fourier.width", 8, "--ace.fourier.depth", 1, "--search.ab_initio_rounds", 1]
TINY += ["--search.max_rounds", 1, "--refine.max_rounds", 1, "--starts", 1, "--threads", 1, "--search.spacing", 4]
TINY += ["--predict.steps", 1]


@pytest.fixture
def reconstruct(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """``ace-em reconstruct`` in a folder that holds a good p.star and a.mrcs. The report, most of a tiny run, is left empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ace_em.report.page.write_report", lambda run: Path(run, "report.html").write_text(""))
    write_stack(images())
    write_star()

    def run(*args: object) -> Result:
        with pytest.raises(SystemExit) as ended:
            cli.main([str(a) for a in ("reconstruct", *args)])
        captured = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, captured.out, captured.err

    return run


def images() -> np.ndarray:
    """Noise, with a white blob in the middle."""
    y, x = np.mgrid[:BOX, :BOX] - BOX // 2
    noise = np.random.default_rng(0).normal(size=(N, BOX, BOX))
    return (noise + 3 * np.exp(-(x**2 + y**2) / 18)).astype(np.float32)


def write_stack(data: np.ndarray, name: str = "a.mrcs") -> None:
    with mrcfile.new(name, overwrite=True) as file:
        file.set_data(np.zeros_like(data))
    # put in after the header is made: mrcfile warns at NaN
    Path(name).write_bytes(Path(name).read_bytes()[:1024] + data.tobytes())


def write_star(n: int = N, drop: tuple[str, ...] = (), change: dict[int, dict[str, str]] | None = None) -> None:
    """A table of n particles; ``change`` has other values for some rows, counted from 1."""
    rows = [COLUMNS | {"rlnImageName": f"{i}@a.mrcs"} | (change or {}).get(i, {}) for i in range(1, n + 1)]
    names = [name for name in COLUMNS if name not in drop]
    lines = ["data_", "", "loop_", *(f"_{name}" for name in names), *(" ".join(row[name] for name in names) for row in rows)]
    Path("p.star").write_text("\n".join(lines) + "\n")


def announced(path: str, mode: Mode = "text") -> str:
    """What a run says of its particles before anything long starts."""
    config, out = RunConfig(threads=1, device="cpu"), io.StringIO()
    announce(make_plan(Particles.open(path), config), config, Reporter(stream=out, mode=mode))
    return out.getvalue()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")}


def assert_refused(result: Result, words: list[str]) -> None:
    code, _, err = result
    assert code == 2, err
    assert len(err.splitlines()) == 1 and err.startswith("ace-em reconstruct: ") and "Traceback" not in err
    for word in words:
        assert word in err


def spoilt_images(change: Callable[[np.ndarray], None]) -> Callable[[], None]:
    def write() -> None:
        data = images()
        change(data)
        write_stack(data)

    return write


def nan_image(data: np.ndarray) -> None:
    data[41, 3, 5] = np.nan


def constant_image(data: np.ndarray) -> None:
    data[41] = 4.0


def inf_image(data: np.ndarray) -> None:
    data[41, 3, 5] = -np.inf


def masked_image(data: np.ndarray) -> None:
    y, x = np.ogrid[-8:8, -8:8]
    data[41, x**2 + y**2 > 64] = 0


def with_column(name: str, value: str) -> Callable[[], None]:
    def write() -> None:
        write_star()
        lines = Path("p.star").read_text().replace("loop_\n", f"loop_\n_{name}\n").splitlines()
        Path("p.star").write_text("\n".join(f"{value} {line}" if "@" in line else line for line in lines) + "\n")

    return write


def every_row(**values: str) -> Callable[[], None]:
    return lambda: write_star(change=dict.fromkeys(range(1, N + 1), values))


def compressed(pack: Callable[[bytes], bytes], suffix: str) -> Callable[[], None]:
    def write() -> None:
        Path(f"a.mrcs{suffix}").write_bytes(pack(Path("a.mrcs").read_bytes()))
        if suffix:
            write_star(change={i: {"rlnImageName": f"{i}@a.mrcs{suffix}"} for i in range(1, N + 1)})

    return write


def mixed_boxes() -> None:
    write_stack(np.random.default_rng(0).normal(size=(2, 18, 18)).astype(np.float32), "b.mrcs")
    write_star(change={5: {"rlnImageName": "1@b.mrcs"}})


def no_such_group() -> None:
    write_star()
    rows = [
        f"{line} {2 if line.startswith('7@') else 1}" if "@" in line else line for line in Path("p.star").read_text().split("\n")
    ]
    body = "\n".join(rows).replace("data_\n", "data_particles\n").replace("_rlnPixelSize", "_rlnPixelSize\n_rlnOpticsGroup")
    Path("p.star").write_text("data_optics\n\nloop_\n_rlnOpticsGroup\n_rlnImagePixelSize\n1 8\n\n" + body)


def longer() -> None:
    Path("a.mrcs").write_bytes(Path("a.mrcs").read_bytes() + bytes(1024))


def swapped_axes() -> None:
    raw = bytearray(Path("a.mrcs").read_bytes())
    # MAPC, MAPR: words 17 and 18 of the header
    raw[64:72] = np.array([2, 1], dtype="<i4").tobytes()
    Path("a.mrcs").write_bytes(raw)


NOT_ANGSTROM = ["p.star", "rlnDefocusU", "expected Angstrom"]
BAD_FILES: dict[str, tuple[Callable[[], object], list[str]]] = {
    "missing": (lambda: Path("p.star").unlink(), ["p.star", "no such file"]),
    "folder": (lambda: (Path("p.star").unlink(), Path("p.star").mkdir()), ["p.star", "not a file"]),
    "empty": (lambda: Path("p.star").write_text(""), ["p.star", "not a STAR file"]),
    "prose": (lambda: Path("p.star").write_text("Dear user,\nthis is no table.\n"), ["p.star", "not a STAR file"]),
    "binary": (lambda: Path("p.star").write_bytes(bytes(range(256)) * 9), ["p.star", "not a STAR file"]),
    "image stack": (lambda: Path("p.star").write_bytes(Path("a.mrcs").read_bytes()), ["p.star", "not a STAR file"]),
    "no particles": (lambda: write_star(drop=("rlnImageName",)), ["p.star", "rlnImageName", "rlnDefocusU"]),
    "no rows": (lambda: write_star(0), ["p.star", "no rows"]),
    "stack missing": (lambda: Path("a.mrcs").unlink(), ["p.star: row 1", "a.mrcs", "not found"]),
    "stack short": (lambda: write_star(N + 2), ["p.star", f"row {N + 1}", "a.mrcs", f"contains {N}"]),
    "stack truncated": (lambda: Path("a.mrcs").write_bytes(Path("a.mrcs").read_bytes()[:-4]), ["a.mrcs", "truncated"]),
    "stack is no MRC": (lambda: Path("a.mrcs").write_text("hello " * 400), ["a.mrcs", "not an MRC file"]),
    "non-square": (lambda: write_stack(images()[:, :, :-2]), ["a.mrcs", "14 x 16", "square"]),
    "too small a box": (lambda: write_stack(images()[:, :14, :14]), ["a.mrcs", "14 x 14", "16"]),
    "NaN image": (spoilt_images(nan_image), ["a.mrcs", "image 42", "NaN", "row 42 of p.star", "--exclude"]),
    "constant image": (spoilt_images(constant_image), ["a.mrcs", "image 42", "constant"]),
    "no CTF": (lambda: write_star(drop=("rlnDefocusV", "rlnVoltage")), ["p.star", "rlnDefocusV", "rlnVoltage"]),
    "no pixel size": (lambda: write_star(drop=("rlnPixelSize",)), ["p.star", "pixel size", "rlnImagePixelSize"]),
    "word for a number": (lambda: write_star(change={7: {"rlnDefocusU": "deep"}}), ["p.star", "row 7", "rlnDefocusU", "deep"]),
    "NaN in the table": (lambda: write_star(change={7: {"rlnDefocusU": "nan"}}), ["p.star", "row 7", "rlnDefocusU", "nan"]),
    "bad image name": (lambda: write_star(change={9: {"rlnImageName": "0@a.mrcs"}}), ["p.star", "row 9", "0@a.mrcs", "from 1"]),
    "inf image": (spoilt_images(inf_image), ["a.mrcs", "image 42", "infinite"]),
    "gzip": (compressed(gzip.compress, ".gz"), ["a.mrcs.gz", "compressed (gzip)", "decompress"]),
    "bzip2": (compressed(bz2.compress, ".bz2"), ["a.mrcs.bz2", "compressed (bzip2)", "decompress"]),
    "gzip under an MRC name": (compressed(gzip.compress, ""), ["a.mrcs", "compressed (gzip)", "decompress"]),
    "longer than its header": (longer, ["a.mrcs", "longer than its header", "found"]),
    "mixed image sizes": (mixed_boxes, ["b.mrcs", "18 x 18", "a.mrcs", "16 x 16"]),
    "mixed pixel sizes": (lambda: write_star(change={7: {"rlnPixelSize": "9"}}), ["p.star", "from 8 to 9", "row 7 has 9"]),
    "pixel size of zero": (every_row(rlnPixelSize="0"), ["p.star", "pixel size 0", "above 0"]),
    "negative pixel size": (every_row(rlnPixelSize="-8"), ["p.star", "pixel size -8", "above 0"]),
    "defocus in micrometre": (every_row(rlnDefocusU="1.5", rlnDefocusV="1.4"), [*NOT_ANGSTROM, "1.5"]),
    "defocus in metre": (every_row(rlnDefocusU="1.5e-6", rlnDefocusV="1.4e-6"), [*NOT_ANGSTROM, "1.5e-06"]),
    "defocus in picometre": (every_row(rlnDefocusU="1500000", rlnDefocusV="1400000"), [*NOT_ANGSTROM, "1.5e+06"]),
    "defocus 0 for all": (every_row(rlnDefocusU="0", rlnDefocusV="0"), [*NOT_ANGSTROM, "median 0 "]),
    "defocus negative": (
        every_row(rlnDefocusU="-15000", rlnDefocusV="-14500"),
        ["p.star", "rlnDefocusU", "-15000", "change the sign"],
    ),
    "missing optics group": (no_such_group, ["p.star", "row 7", "optics group 2", "data_optics"]),
    "same image twice": (lambda: write_star(change={9: {"rlnImageName": "004@./a.mrcs"}}), ["p.star", "row 9", "row 4", "once"]),
    "another drive": (
        lambda: write_star(change={3: {"rlnImageName": "3@/not/here/a.mrcs"}}),
        ["p.star", "/not/here/a.mrcs not found", "tried", "--project"],
    ),
    "huge values": (spoilt_images(lambda data: data.__setitem__((41, 3, 5), 1e30)), ["a.mrcs", "image 42", "values beyond"]),
    "masked images": (spoilt_images(masked_image), ["a.mrcs", "image 42", "outside the inscribed circle", "unmasked"]),
    "pixel size in nanometre": (every_row(rlnPixelSize="0.001"), ["p.star", "pixel size 0.001", "Angstrom"]),
    "one defocus in micrometre": (
        lambda: write_star(change={7: {"rlnDefocusV": "1.5"}}),
        ["p.star", "row 7", "rlnDefocusV", "1.5", "Angstrom"],
    ),
    "voltage in volt": (every_row(rlnVoltage="300000"), ["p.star", "row 1", "rlnVoltage", "300000", "kV"]),
    "voltage of zero": (every_row(rlnVoltage="0"), ["p.star", "row 1", "rlnVoltage: 0", "kV"]),
    "aberration in Angstrom": (every_row(rlnSphericalAberration="2.7e7"), ["p.star", "rlnSphericalAberration", "mm"]),
    "contrast in per cent": (every_row(rlnAmplitudeContrast="10"), ["p.star", "rlnAmplitudeContrast: 10", "fraction"]),
    "premultiplied images": (
        with_column("rlnCtfDataAreCtfPremultiplied", "1"),
        ["p.star", "row 1", "rlnCtfDataAreCtfPremultiplied", "multiplied by their CTF"],
    ),
    "phase-flipped images": (with_column("rlnCtfDataArePhaseFlipped", "1"), ["p.star", "rlnCtfDataArePhaseFlipped", "extracted"]),
    "sub-tomograms": (with_column("rlnImageDimensionality", "3"), ["p.star", "rlnImageDimensionality: 3", "images"]),
    "mirrored images": (swapped_axes, ["a.mrcs", "[2, 1, 3]", "rows along x"]),
    "long row": (lambda: write_star(change={7: {"rlnVoltage": "300 200"}}), ["p.star: line 18", "9 values", "expected 8"]),
    "short row": (lambda: write_star(change={7: {"rlnVoltage": ""}}), ["p.star: line 18", "7 values", "expected 8"]),
    "two blocks of one name": (
        lambda: Path("p.star").write_text(2 * Path("p.star").read_text().replace("data_", "data_particles")),
        ["p.star", "two blocks data_particles"],
    ),
    "second loop_": (
        lambda: Path("p.star").write_text(Path("p.star").read_text() + "\nloop_\n_rlnVoltage\n300\n"),
        ["p.star: line", "loop_"],
    ),
    "quotation mark not closed": (
        lambda: write_star(change={7: {"rlnImageName": '"7@a.mrcs'}}),
        ["p.star: line 18", "unclosed quotation mark"],
    ),
    "block without columns": (
        lambda: Path("p.star").write_text("data_particles\n"),
        ["p.star", "block data_particles is empty", "expected loop_"],
    ),
    "loop_ left out": (
        lambda: Path("p.star").write_text(Path("p.star").read_text().replace("loop_\n", "")),
        ["p.star: line 3", "_rlnImageName", "0 values", "expected 1 (or loop_ before"],
    ),
    "half-set 3": (with_column("rlnRandomSubset", "3"), ["p.star", "row 1", "rlnRandomSubset: 3", "1 or 2"]),
    "1 particle": (lambda: write_star(1), ["p.star", "1 particles", "at least 100"]),
    "10 particles": (lambda: write_star(10), ["p.star", "10 particles", "at least 100"]),
    "too few particles": (lambda: write_star(99), ["p.star", "99 particles", "at least 100"]),
}


@pytest.mark.parametrize("case", list(BAD_FILES))
def test_bad_files(reconstruct: Callable[..., Result], tmp_path: Path, case: str) -> None:
    spoil, words = BAD_FILES[case]
    spoil()
    before = contents(tmp_path)
    assert_refused(reconstruct("p.star", "-o", "run", *TINY), words)
    assert contents(tmp_path) == before


def test_bad_image_that_the_survey_does_not_look_at(
    reconstruct: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "SURVEYED", 30)
    monkeypatch.setattr(survey, "SURVEYED_OF_GROUP", 30)
    surveyed: list[int] = []
    original = survey.normalise

    def counted(data: torch.Tensor, sign: float, common_sd: float | None = None) -> torch.Tensor:
        surveyed.append(len(data))
        return original(data, sign, common_sd)

    monkeypatch.setattr(survey, "normalise", counted)
    unseen = np.random.default_rng(0).permutation(N)[30:]  # the survey takes the first of these
    data = images()
    data[unseen[0], 2, 2] = np.inf
    write_stack(data)
    before = contents(tmp_path)
    assert_refused(reconstruct("p.star", "-o", "run", *TINY), ["a.mrcs", f"image {unseen[0] + 1} ", "NaN or infinite"])
    assert surveyed == [30]  # it was found after the survey
    assert contents(tmp_path) == before


def test_a_cs_file_whose_names_no_star_file_can_hold(reconstruct: Callable[..., Result], tmp_path: Path) -> None:
    """poses.star is written at the end: it is refused at the beginning."""
    convert(Path("p.star"), Path("p.cs"), say=lambda line: None)
    Path("o\x01neil").mkdir()
    Path("a.mrcs").rename("o\x01neil/a.mrcs")
    fields = load_fields("p.cs")
    save_fields("p.cs", fields | {"blob/path": np.array([b"o\x01neil/a.mrcs"] * N)})
    before = contents(tmp_path)
    assert_refused(reconstruct("p.cs", "-o", "run", *TINY), ["p.cs: row 1, field blob/path", "neil/a.mrcs", "STAR file"])
    assert contents(tmp_path) == before


def test_contrast_that_is_not_clear_from_the_images_is_the_files(reconstruct: Callable[..., Result], tmp_path: Path) -> None:
    write_stack(np.random.default_rng(0).normal(size=(N, BOX, BOX)).astype(np.float32))
    convert(Path("p.star"), Path("p.cs"), contrast="black", say=lambda line: None)
    told = announced("p.cs")
    assert "protein is black (from the file, z = " in told and "set --contrast" not in told
    told = announced("p.star")
    assert "(measured, z = " in told and "set --contrast" in told


def test_half_sets_too_uneven_for_half_maps(reconstruct: Callable[..., Result]) -> None:
    with_column("rlnRandomSubset", "1")()
    text = Path("p.star").read_text()
    Path("p.star").write_text(text.replace("1 1@", "2 1@").replace("1 2@", "2 2@"))
    code, out, _ = reconstruct("p.star", "-o", "run", *TINY)
    assert code == 3 and f"rlnRandomSubset has {N - 2} and 2 particles, too uneven" in out
    halves = numeric_column(read_particle_star("run/poses.star"), "rlnRandomSubset")
    assert abs((halves == 1).sum() - N / 2) <= 1


def test_a_disk_without_room_for_the_later_boxes(
    reconstruct: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 5000

    monkeypatch.setattr("ace_em.data.coefficients.shutil.disk_usage", lambda folder: Usage)
    before = contents(tmp_path)
    scratch = ["GiB of scratch space needed", "0.0 GiB are free", "--scratch"]
    assert_refused(reconstruct("p.star", "-o", "run", *TINY, "--memory", 1e-6), scratch)
    assert contents(tmp_path) == before


BAD_OPTIONS: dict[str, tuple[list[object], list[str]]] = {
    "final box too large": (["--final-box", 17], ["--final-box 17", "16"]),
    "final box too small": (["--final-box", 8], ["--final-box 8", "16"]),
    "contrast": (["--contrast", "purple"], ["contrast", "purple", "auto", "white", "black"]),
    "device": (["--device", "gpu"], ["device", "gpu", "cuda"]),
    "precision": (["--precision", "nonsense"], ["precision", "nonsense", "32-true"]),
    "encoder": (["--ace.encoder", "foo"], ["ace.encoder", "foo", "resnet"]),
    "symmetric loss": (["--ace.symmetric_loss", "foo"], ["--ace.symmetric-loss", "foo", "half-turn"]),
    "point group": (["--symmetry", "Q7"], ["--symmetry Q7", "C1", "D1", "T, O, I"]),
    "symmetry of stage 1": (["--symmetry", "D2", "--stages", "ace"], ["--symmetry D2", "--stages all"]),
    "pseudo-symmetry": (["--relax-symmetry", "Q7"], ["--relax-symmetry Q7", "C1", "D1", "T, O, I"]),
    "pseudo-symmetry beside symmetry": (["--symmetry", "C3", "--relax-symmetry", "C3"], ["--relax-symmetry C3", "--symmetry C1"]),
    "pseudo-symmetry of stage 1": (["--relax-symmetry", "C3", "--stages", "ace"], ["--relax-symmetry C3", "--stages all"]),
    "schedule": (["--ace.schedule", "foo"], ["ace.schedule", "foo", "cosine"]),
}


@pytest.mark.parametrize("case", list(BAD_OPTIONS))
def test_bad_options(reconstruct: Callable[..., Result], tmp_path: Path, case: str) -> None:
    args, words = BAD_OPTIONS[case]
    before = contents(tmp_path)
    assert_refused(reconstruct("p.star", "-o", "run", *TINY, *args), words)
    assert contents(tmp_path) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_device_that_is_not_there(reconstruct: Callable[..., Result], tmp_path: Path) -> None:
    before = contents(tmp_path)
    assert_refused(reconstruct("p.star", "-o", "run", *TINY, "--device", "cuda"), ["--device cuda", "cpu"])
    assert contents(tmp_path) == before


UNCHECKED: dict[str, list[object]] = {
    "starts": ["--starts", 0],
    "threads": ["--threads", -3],
    "memory": ["--memory", -1],
    "scratch": ["--scratch", "nowhere"],
    "project": ["--project", "nowhere"],
    "particles": ["--max_particles", -1],
    "diameter": ["--diameter", -5],
    "seed": ["--seed", -1],
    "batch": ["--ace.batch", 0],
    "hypotheses": ["--ace.hypotheses", 0],
    "depth": ["--ace.fourier.depth", 0],
    "bound of shifts": ["--ace.max_shift", 0],
    "band of the encoder": ["--ace.fourier.band", 0],
    "rate": ["--ace.lr_encoder", 0],
    "march": ["--ace.march", 2],
    "local steps": ["--search.local_steps", 0],
    "grid of shifts": ["--search.shift", -1],
    "refinement steps": ["--refine.local_steps", 0],
    "defocus range": ["--refine.defocus_range", 0],
    "defocus prior": ["--refine.defocus_sd", 0],
    "lesson": ["--predict.steps", -1],
    "lent images": ["--predict.images", 0],
    "rate of the lesson": ["--predict.lr", 0],
    "encoder's answers": ["--predict.hypotheses", 0],
    "bands of answers": ["--predict.bands", "[0.0]"],
    "steps": ["--ace.steps", -1],
    "spacing": ["--search.spacing", 0],
    "label kernel": ["--ace.label_kernel", 6],
    "milestones": ["--ace.milestones", "[1.5]"],
    "preset": ["--preset", "ours"],
    "pip warm-up": ["--ace.pip_warmup_steps", -1],
    "exploring rounds": ["--search.ab_initio_rounds", 0],
    "held out": ["--search.held_out", 5],
    "candidates": ["--search.top_k", 0],
    "shared band": ["--search.shared_band", 1.5],
    "step of shifts": ["--search.shift_step", 0],
    "search rounds": ["--search.max_rounds", 0],
    "refinement rounds": ["--refine.max_rounds", 0],
}


@pytest.mark.filterwarnings("ignore:.*(degrees of freedom|zero-element).*:UserWarning")
@pytest.mark.parametrize("case", list(UNCHECKED))
def test_values_that_make_no_run(reconstruct: Callable[..., Result], tmp_path: Path, case: str) -> None:
    before = contents(tmp_path)
    name = option(str(UNCHECKED[case][0]).removeprefix("--"))
    assert_refused(reconstruct("p.star", "-o", "run", *TINY, *UNCHECKED[case]), [name, str(UNCHECKED[case][1])])
    assert contents(tmp_path) == before


def folder_with(path: str, name: str, text: str) -> None:
    Path(path).mkdir()
    Path(path, name).write_text(text)


BAD_PLACES: dict[str, tuple[Callable[[], object], list[object], list[str]]] = {
    "not empty": (lambda: folder_with("run", "notes.txt", "mine"), [], ["run", "not empty", "--overwrite"]),
    "holds a run": (lambda: folder_with("run", "metrics.jsonl", "{}\n"), [], ["run", "not empty", "--overwrite"]),
    "no run to overwrite": (lambda: folder_with("run", "notes.txt", "mine"), ["--overwrite"], ["run", "contains no run"]),
    "file": (lambda: Path("run").write_text("mine"), [], ["run", "is a file"]),
    "file, overwrite": (lambda: Path("run").write_text("mine"), ["--overwrite"], ["run", "is a file"]),
}


@pytest.mark.parametrize("case", list(BAD_PLACES))
def test_bad_places(reconstruct: Callable[..., Result], tmp_path: Path, case: str) -> None:
    prepare, args, words = BAD_PLACES[case]
    prepare()
    before = contents(tmp_path)
    assert_refused(reconstruct("p.star", "-o", "run", *TINY, *args), words)
    assert contents(tmp_path) == before


def test_output_that_is_the_input(reconstruct: Callable[..., Result], tmp_path: Path) -> None:
    before = contents(tmp_path)
    for place, words in ((".", ["not empty"]), ("p.star", ["p.star", "is a file"])):
        assert_refused(reconstruct("p.star", "-o", place, *TINY), words)
        assert_refused(reconstruct("p.star", "-o", place, *TINY, "--overwrite"), words[:-1])
    assert contents(tmp_path) == before


def test_read_only_place(reconstruct: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("locked").mkdir(mode=0o555)
    if getattr(os, "geteuid", lambda: 1)() == 0:
        # root may write anywhere: what anyone else would be told
        access = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked" and access(path, mode))
    assert_refused(reconstruct("p.star", "-o", "locked/run", *TINY), ["locked", "not a writable folder"])


def test_mask_of_another_size(reconstruct: Callable[..., Result], capsys: pytest.CaptureFixture[str]) -> None:
    for name, box in (("a", 16), ("mask", 18)):
        write_volume(f"{name}.mrc", np.random.default_rng(0).normal(size=(box,) * 3), 2.0)
    with pytest.raises(SystemExit) as ended:
        cli.main(["fsc", "a.mrc", "a.mrc", "--mask", "mask.mrc"])
    err = capsys.readouterr().err
    assert ended.value.code == 2 and len(err.splitlines()) == 1 and "mask.mrc: box 18" in err and "box 16" in err


@pytest.mark.parametrize("kind", ["i1", "<i2", "<u2", "<f2", ">i2", ">f2", ">f4"])
def test_stored_types_are_read(reconstruct: Callable[..., Result], kind: str) -> None:
    data = (images() * 10).clip(0, 127).astype(kind)
    write_stack(data.astype(np.float32))
    header = np.frombuffer(Path("a.mrcs").read_bytes()[:1024], dtype=mrcfile.dtypes.HEADER_DTYPE).copy()
    header["mode"] = {"i1": 0, "i2": 1, "f4": 2, "u2": 6, "f2": 12}[kind[-2:]]
    if kind.startswith(">"):
        header["machst"] = (0x11, 0x11, 0, 0)
        header = header.astype(header.dtype.newbyteorder(">"))
    Path("a.mrcs").write_bytes(header.tobytes() + data.tobytes())
    assert np.array_equal(Particles.open("p.star").images(slice(None)), data.astype(np.float32))


@pytest.mark.parametrize("box", [33, 37])
def test_odd_and_prime_boxes(reconstruct: Callable[..., Result], box: int) -> None:
    y, x = np.mgrid[:box, :box] - box // 2
    blob = 3 * np.exp(-(x**2 + y**2) / 30)
    write_stack((np.random.default_rng(0).normal(size=(N, box, box)) + blob).astype(np.float32))
    plan = make_plan(Particles.open("p.star"), RunConfig(threads=1, device="cpu"))
    assert plan.particles.box == box and plan.boxes[-1] == box and plan.working_box <= box
    for working in (plan.working_box, box):
        images_ft = preprocess.read_stack(plan.particles, plan.look, working).images(slice(None))
        assert len(images_ft) == N and bool(torch.isfinite(torch.view_as_real(images_ft)).all())


def test_kind_of_file_behind_the_image_names(reconstruct: Callable[..., Result]) -> None:
    Path("a.mrcs").rename("a.mrc")
    write_star(N + 10, change={i: {"rlnImageName": f"{i:06d}@a.mrc:mrcs"} for i in range(1, N + 11)})
    bad = [f"{i}@a.mrc" for i in range(N + 1, N + 11)]
    Path("bad.star").write_text("data_\nloop_\n_rlnImageName\n" + "\n".join(bad) + "\n")
    code, _, err = reconstruct("p.star", "-o", "run", *TINY, "--exclude", "bad.star")
    assert (code, err) == (3, "")
    names = read_particle_star("run/poses.star").particles["rlnImageName"]
    assert list(names) == [f"{i:06d}@a.mrc:mrcs" for i in range(1, N + 1)]


def test_table_with_carriage_returns_alone(reconstruct: Callable[..., Result]) -> None:
    wanted = read_particle_star("p.star")
    Path("p.star").write_bytes(Path("p.star").read_bytes().replace(b"\n", b"\r"))
    particles = Particles.open("p.star")
    assert particles.table.particles.equals(wanted.particles) and np.array_equal(particles.images(slice(None)), images())


@pytest.mark.parametrize("quiet", [False, True])
def test_header_of_another_pixel_size_is_told(reconstruct: Callable[..., Result], quiet: bool) -> None:
    def told() -> list[str]:
        lines = announced("p.star", "quiet" if quiet else "text").splitlines()
        return [line.partition("] ")[2] for line in lines if "A/px" in line and "header" in line]

    assert told() == []
    for size, word in ((5.0, "5"), (8.1, "8.1")):
        with mrcfile.open("a.mrcs", "r+") as file:
            file.voxel_size = size
        (line,) = told()
        assert line.startswith("pixel size 8 A/px in p.star, but ")
        assert line.endswith("a.mrcs: using 8") and f"but {word} in the header of " in line
    for size in (8.0, 8.05, 1.0, 0.0):
        with mrcfile.open("a.mrcs", "r+") as file:
            file.voxel_size = size
        assert told() == []


def test_every_row_of_the_table_has_a_test() -> None:
    text = (Path(__file__).parents[2] / "docs/bad-input.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| Input")]
    cases = {"test_bad_files": BAD_FILES, "test_bad_options": BAD_OPTIONS, "test_bad_places": BAD_PLACES}
    named = set()
    for row in rows:
        found = re.findall(r"`(test_\w+)(?:\[(.+?)\])?`", row)
        assert found, row
        for name, case in found:
            assert callable(globals().get(name)), row
            assert not case or case in cases[name], row
            named.add((name, case))
    assert {("test_bad_files", case) for case in BAD_FILES} <= named


def test_bad_place_is_found_before_the_images_are_read(reconstruct: Callable[..., Result], tmp_path: Path) -> None:
    folder_with("run", "notes.txt", "mine")
    spoilt_images(nan_image)()
    assert_refused(reconstruct("p.star", "-o", "run", *TINY), ["not empty"])


def test_folder_below_a_file(reconstruct: Callable[..., Result], tmp_path: Path) -> None:
    Path("notes.txt").write_text("mine")
    before = contents(tmp_path)
    assert_refused(reconstruct("p.star", "-o", "notes.txt/run", *TINY), ["notes.txt/run"])
    assert contents(tmp_path) == before


def test_overwrite_spares_a_folder_that_only_has_some_config(reconstruct: Callable[..., Result], tmp_path: Path) -> None:
    folder_with("project", "config.yaml", "language: english\n")
    Path("project/thesis.txt").write_text("years of work")
    reconstruct("p.star", "-o", "project", *TINY, "--overwrite")
    assert Path("project/thesis.txt").exists()


def test_overwrite_does_not_delete_its_own_input(reconstruct: Callable[..., Result], tmp_path: Path) -> None:
    folder_with("run", "metrics.jsonl", "{}\n")
    for name in ("p.star", "a.mrcs"):
        Path(name).rename(Path("run", name))
    before = contents(tmp_path)
    reconstruct("run/p.star", "-o", "run", *TINY, "--overwrite")
    assert {name: data for name, data in contents(tmp_path).items() if name in before and "metrics" not in name} == {
        name: data for name, data in before.items() if "metrics" not in name
    }


def test_bad_input_spares_the_run_to_be_overwritten(reconstruct: Callable[..., Result], tmp_path: Path) -> None:
    folder_with("run", "metrics.jsonl", "{}\n")
    spoilt_images(nan_image)()
    before = contents(tmp_path)
    assert_refused(reconstruct("p.star", "-o", "run", *TINY, "--overwrite"), ["image 42"])
    assert contents(tmp_path) == before


def test_images_of_noise_alone(reconstruct: Callable[..., Result], tmp_path: Path) -> None:
    write_stack(np.random.default_rng(5).normal(size=(N, 16, 16)).astype(np.float32))
    code, out, err = reconstruct("p.star", "-o", "run", *TINY)
    assert (code, err) == (3, "")
    assert "not converged" in out and "all pose probabilities are written as 0 and there is no confident.star" in out


def test_defocus_in_nanometre_is_asked_about(reconstruct: Callable[..., Result], tmp_path: Path) -> None:
    write_star(change=dict.fromkeys(range(1, N + 1), {"rlnDefocusU": "1500", "rlnDefocusV": "1450"}))
    assert "median defocus is only 1500 A: is the column in nanometres?" in announced("p.star", "quiet")


def test_resume_of_nothing_says_so(reconstruct: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    """And begins a run, which need not be carried out here."""
    monkeypatch.setattr("ace_em.run.pipeline.run_stages", lambda *begun: Verdict(False, "not run"))
    code, out, err = reconstruct("p.star", "-o", "run", *TINY, "--resume")
    assert (code, err) == (3, "") and "run: no run there to resume" in out
    assert Path("run/config.yaml").exists() and Path("run/metrics.jsonl").exists()


def test_good_input_passes_and_is_left_as_it_was(reconstruct: Callable[..., Result], tmp_path: Path) -> None:
    """The refusals above come from what was spoilt; and a run changes nothing but its own folder."""
    before = contents(tmp_path)
    code, _, err = reconstruct("p.star", "-o", "new/run", *TINY)
    # noise with a blob makes no map to be trusted
    assert (code, err) == (3, "")
    after = contents(tmp_path)
    assert {name: after.get(name) for name in before} == before
    assert all(name in before or name.startswith("new") for name in after)
    # an earlier run is replaced when told to, and what else is in its folder stays
    Path("new/run/notes.txt").write_text("mine")
    Path("new/run/evaluation.json").write_text("{}")
    assert reconstruct("p.star", "-o", "new/run", *TINY, "--overwrite")[0] == 3
    assert set(contents(tmp_path)) == set(after) | {"new/run/notes.txt"}
