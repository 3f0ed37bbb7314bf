"""ace-em convert: what it writes, what it says in its one line, and what it refuses."""

from collections.abc import Callable
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from ace_em import cli
from ace_em.data.convert import convert
from ace_em.errors import InputError
from ace_em.io.cryosparc import load_fields, save_fields
from ace_em.io.particle_table import read_particle_table

STAR = """data_particles
loop_
_rlnImageName
_rlnVoltage
_rlnDefocusU
_rlnDefocusV
_rlnDefocusAngle
_rlnSphericalAberration
_rlnAmplitudeContrast
_rlnPixelSize
_rlnImageSize
_rlnBeamTiltX
_rlnRandomSubset
1@a.mrcs 300 15000.5 14000.0 30 2.7 0.1 1.25 64 0.5 1
2@a.mrcs 300 15000.5 14000.0 30 2.7 0.1 1.25 64 0.0 2
3@a.mrcs 300 15000.5 14000.0 30 2.7 0.1 1.25 64 0.0 2
"""


def star(tmp_path: Path, *drop: str) -> Path:
    """The file above without some columns."""
    lines = STAR.splitlines()
    names = [line[1:] for line in lines if line.startswith("_")]
    rows = [line.split() for line in lines if "@" in line]
    kept = [name for name in names if name not in drop]
    text = ["data_particles", "loop_", *(f"_{name}" for name in kept)]
    text += [" ".join(value for name, value in zip(names, row, strict=True) if name in kept) for row in rows]
    path = tmp_path / "p.star"
    path.write_text("\n".join(text) + "\n")
    return path


def said(source: Path, target: Path, **options: object) -> str:
    lines: list[str] = []
    convert(source, target, say=lines.append, **options)  # type: ignore[arg-type]
    assert len(lines) == 1 and "\n" not in lines[0]
    return lines[0]


def test_the_line_it_says(tmp_path: Path) -> None:
    source, there, back = star(tmp_path), tmp_path / "p.cs", tmp_path / "q.star"
    want = "3 particles, without poses, half-sets of 1 and 2, 1.25 A/pixel"
    assert said(source, there) == f"{there}: {want}, dropped: rlnBeamTiltX"
    assert said(there, back) == f"{back}: {want}"
    assert said(source, tmp_path / "r.star") == f"{tmp_path / 'r.star'}: {want}"
    assert said(there, tmp_path / "r.cs") == f"{tmp_path / 'r.cs'}: {want}"
    assert (tmp_path / "r.cs").read_bytes() == there.read_bytes()
    defaults = "blob/sign and fields without a column have default values: give the original .cs file with --passthrough"
    assert said(back, tmp_path / "s.cs") == f"{tmp_path / 's.cs'}: {want}, {defaults}"
    fields = load_fields(there)
    fields["ctf/tilt_A"][1, 0], fields["blob/sign"][:] = 0.1, -1
    save_fields(tmp_path / "tilted.cs", fields)
    black = "protein is black (blob/sign -1), but RELION expects white"
    assert said(tmp_path / "tilted.cs", back, overwrite=True) == f"{back}: {want}, {black}, dropped: ctf/tilt_A"
    assert said(back, tmp_path / "s.cs", overwrite=True, passthrough=[tmp_path / "tilted.cs"]) == f"{tmp_path / 's.cs'}: {want}"
    assert (tmp_path / "s.cs").read_bytes() == (tmp_path / "tilted.cs").read_bytes()


def test_columns_without_a_field_are_counted_aberrations_first(tmp_path: Path) -> None:
    source = star(tmp_path, "rlnRandomSubset")
    names = [f"rlnOwn{i}" for i in range(6)]
    text = source.read_text().replace("_rlnBeamTiltX", "\n".join([*(f"_{name}" for name in names), "_rlnBeamTiltX"]))
    source.write_text(text.replace(" 64 ", " 64 a b c d e f "))
    dropped = "dropped: rlnBeamTiltX, rlnOwn0, rlnOwn1, rlnOwn2 and 3 more"
    assert (
        said(source, tmp_path / "p.cs")
        == f"{tmp_path / 'p.cs'}: 3 particles, without poses, no half-sets, 1.25 A/pixel, {dropped}"
    )


def test_what_no_file_says_is_left_open(tmp_path: Path) -> None:
    source = star(tmp_path, "rlnPixelSize", "rlnRandomSubset")
    assert said(source, tmp_path / "q.star").endswith("3 particles, without poses, no half-sets, pixel size unknown")
    source.write_text(source.read_text().replace(".mrcs", ".mrc"))
    assert said(source, tmp_path / "q2.star").endswith("stacks are named .mrc, but RELION reads stacks only as .mrcs")


def test_image_size_from_the_option_the_table_or_the_images(tmp_path: Path) -> None:
    source = star(tmp_path, "rlnImageSize")
    with pytest.raises(
        InputError, match=r"p\.star: no image size: expected the column rlnImageSize, readable images, or the option --box"
    ):
        convert(source, tmp_path / "p.cs")
    assert not (tmp_path / "p.cs").exists()
    convert(source, tmp_path / "p.cs", box=48)
    assert (load_fields(tmp_path / "p.cs")["blob/shape"] == 48).all()
    with mrcfile.new(tmp_path / "a.mrcs") as file:
        file.set_data(np.zeros((3, 32, 32), np.float32))
    convert(source, tmp_path / "p.cs", overwrite=True)
    assert (load_fields(tmp_path / "p.cs")["blob/shape"] == 32).all()
    convert(star(tmp_path), tmp_path / "p.cs", overwrite=True)
    assert (load_fields(tmp_path / "p.cs")["blob/shape"] == 64).all()
    with pytest.raises(InputError, match=r"--box 32: .*p\.star: row 1, column rlnImageSize is 64"):
        convert(star(tmp_path), tmp_path / "p.cs", overwrite=True, box=32)


def test_contrast_that_no_star_file_says(tmp_path: Path) -> None:
    def quietly(source: Path, target: Path, contrast: str = "") -> bytes:
        convert(source, target, overwrite=True, contrast=contrast, say=lambda line: None)
        return target.read_bytes()

    source, there, back = star(tmp_path), tmp_path / "p.cs", tmp_path / "q.star"
    for contrast, sign in (("", 1), ("white", 1), ("black", -1)):
        written = quietly(source, there, contrast)
        assert (load_fields(there)["blob/sign"] == sign).all()
        assert quietly(there, tmp_path / "r.cs") == written
        # a STAR file does not say it: it is told again, or read from the file that it came from
        quietly(there, back)
        convert(back, tmp_path / "r.cs", [there], overwrite=True, say=lambda line: None)
        assert (tmp_path / "r.cs").read_bytes() == written
        quietly(back, tmp_path / "r.cs", contrast)
        assert (load_fields(tmp_path / "r.cs")["blob/sign"] == sign).all()
    for target in (tmp_path / "s.cs", tmp_path / "s.star"):
        with pytest.raises(InputError, match="--contrast black: expected only for"):
            convert(there, target, contrast="black")
    assert not (tmp_path / "s.cs").exists() and not (tmp_path / "s.star").exists()


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        ("rlnPixelSize", "no pixel size: expected rlnImagePixelSize"),
        ("rlnVoltage", "no CTF: missing columns rlnVoltage"),
        ("rlnImageName", "no particles"),
    ],
)
def test_what_a_cs_file_needs(tmp_path: Path, drop: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        convert(star(tmp_path, drop), tmp_path / "p.cs")
    assert not (tmp_path / "p.cs").exists()


def test_targets_that_are_refused(tmp_path: Path) -> None:
    source = star(tmp_path)
    (tmp_path / "old.cs").write_bytes(b"old")
    (tmp_path / "folder.cs").mkdir()
    (tmp_path / "link.star").symlink_to(source)
    for target, message in {
        "old.cs": "exists already; --overwrite replaces it",
        "p.star": "is an input file",
        "link.star": "is an input file",
        "p.txt": "expected a name that ends in .star or .cs",
        "none/p.cs": "no such folder",
    }.items():
        with pytest.raises(InputError, match=message):
            convert(source, tmp_path / target)
    for target, message in {"folder.cs": "is not a file", "p.star": "is an input file"}.items():
        with pytest.raises(InputError, match=message):
            convert(source, tmp_path / target, overwrite=True)
    with pytest.raises(InputError, match="is an input file"):
        convert(source, tmp_path / "old.cs", passthrough=[tmp_path / "old.cs"], overwrite=True)
    assert (tmp_path / "old.cs").read_bytes() == b"old"
    convert(source, tmp_path / "old.cs", overwrite=True)
    assert len(load_fields(tmp_path / "old.cs")["uid"]) == 3


def test_a_row_that_is_wrong_is_named_and_nothing_written(tmp_path: Path) -> None:
    source = star(tmp_path)
    for old, new, message in (
        ("2@a.mrcs 300 15000.5", "2@a.mrcs 300 nan", "row 2, column rlnDefocusU: 'nan'"),
        ("0.0 2\n3@", "0.0 3\n3@", "row 2, column rlnRandomSubset: 3, expected 1 or 2"),
        ("2@a.mrcs", "0@a.mrcs", "row 2, column rlnImageName: '0@a.mrcs'"),
    ):
        source.write_text(STAR.replace(old, new))
        with pytest.raises(InputError, match=message):
            convert(source, tmp_path / "p.cs")
        assert not list(tmp_path.glob("*.cs")) and not list(tmp_path.glob(".*"))


def test_command_line(make_run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    source = star(tmp_path, "rlnImageSize")
    assert make_run("convert", source, tmp_path / "p.cs", "--box", "32")[0] == 0
    code, out, err = make_run("convert", source, tmp_path / "p.cs", "--box", "32")
    assert code == 2 and out == "" and err == f"ace-em convert: {tmp_path / 'p.cs'}: exists already; --overwrite replaces it\n"
    code, out, err = make_run("convert", tmp_path / "p.cs", source, "--overwrite")
    assert (code, err) == (0, "") and out.startswith(f"{source}: 3 particles")
    fields = load_fields(tmp_path / "p.cs")
    for part, names in {"a": ["uid", "blob"], "b": ["uid", "ctf"], "own": ["uid", "alignments3D"]}.items():
        save_fields(tmp_path / f"{part}.cs", {name: v for name, v in fields.items() if name.split("/")[0] in names})
    passthrough = ["--passthrough", tmp_path / "a.cs", "--passthrough", tmp_path / "b.cs"]
    code, out, err = make_run("convert", tmp_path / "own.cs", tmp_path / "joined.star", *passthrough)
    assert (code, err) == (0, "") and len(read_particle_table(tmp_path / "joined.star")) == 3


@pytest.fixture
def make_run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command line: exit code, standard output, standard error."""

    def run(*args: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main([str(a) for a in args])
        captured = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, captured.out, captured.err

    return run
