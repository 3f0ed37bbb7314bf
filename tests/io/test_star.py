"""STAR tables keep every string, know both RELION formats, and refuse with one line that names file, row and column."""

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ace_em.errors import InputError
from ace_em.io.star import ParticleTable, numeric_column, read_particle_star, with_poses, write_star

SHARED = Path(__file__).parents[2] / "../shared/data"
STAR_FILES = sorted(
    [*SHARED.glob("metadata/*.star"), *SHARED.glob("metadata/odd_star/*.star"), *SHARED.glob("particles/*/*.star")]
)
needs_shared = pytest.mark.skipif(not STAR_FILES, reason=f"{SHARED} is absent")

RELION31 = """
# version 30001

data_optics

loop_
_rlnOpticsGroup #1
_rlnOpticsGroupName #2
_rlnVoltage #3
_rlnImagePixelSize #4
1 opticsGroup1 300.000000 1.2340
2 opticsGroup2 200.000000 1.2340

# version 30001

data_particles

loop_
_rlnImageName #1
_rlnDefocusU #2 [a comment]
_rlnOpticsGroup #3
_rlnOriginX #4
_rlnOriginXAngst #5
_rlnComment #6
000001@a.mrcs  01.50e4  2  7 -0.500000 "two words"
000002@a.mrcs 15000.10  1  7  1.500000 NaN
"""
RELION30 = """data_images
loop_
_rlnImageName
_rlnVoltage
_rlnOriginX
_rlnOriginY
_rlnAnglePsi
1@b.mrcs 300 1.0 2.0 33
"""


def star(tmp_path: Path, text: str, name: str = "p.star") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def same(a: ParticleTable, b: ParticleTable) -> bool:
    optics = (a.optics is None) == (b.optics is None) and (a.optics is None or a.optics.equals(b.optics))
    return optics and a.particles.equals(b.particles) and list(a.others) == list(b.others)


def test_strings_are_exact_and_survive_writing(tmp_path: Path) -> None:
    table = read_particle_star(star(tmp_path, RELION31))
    assert list(table.particles["rlnDefocusU"]) == ["01.50e4", "15000.10"]
    assert list(table.particles["rlnComment"]) == ["two words", "NaN"]
    assert table.optics is not None and list(table.optics["rlnImagePixelSize"]) == ["1.2340", "1.2340"]
    write_star(tmp_path / "out.star", table)
    assert same(read_particle_star(tmp_path / "out.star"), table)
    write_star(tmp_path / "again.star", table)
    assert (tmp_path / "out.star").read_bytes() == (tmp_path / "again.star").read_bytes()
    # two writes within one second would agree even if the first line carried the time
    assert (tmp_path / "out.star").read_text().startswith("# Created by ace-em\n\n")


def test_missing_value_spellings_are_kept_in_order(tmp_path: Path) -> None:
    text = "data_\nloop_\n_rlnImageName\n_a\n_b\n1@x nan <NA>\n2@x ok NaN # nan\n3@x <NA> ok\n"
    particles = read_particle_star(star(tmp_path, text)).particles
    assert particles.to_numpy().tolist() == [["1@x", "nan", "<NA>"], ["2@x", "ok", "NaN"], ["3@x", "<NA>", "ok"]]


def test_quoted_empty_string_is_no_short_row(tmp_path: Path) -> None:
    text = 'data_\nloop_\n_rlnImageName\n_rlnGroupName\n1@x ""\n2@x b\n'
    table = read_particle_star(star(tmp_path, text))
    assert list(table.particles["rlnGroupName"]) == ["", "b"]
    write_star(tmp_path / "out.star", table)
    assert same(read_particle_star(tmp_path / "out.star"), table)
    with pytest.raises(InputError, match="line 7: 1 value, expected 2 for the columns of data_"):
        read_particle_star(star(tmp_path, text + "3@x\n"))


def test_relion30_one_row(tmp_path: Path) -> None:
    table = read_particle_star(star(tmp_path, RELION30))
    assert table.optics is None and len(table) == 1 and table.particle_block == "images"
    assert numeric_column(table, "rlnVoltage").tolist() == [300.0]


def test_block_that_is_not_a_loop(tmp_path: Path) -> None:
    text = "data_general\n_rlnNote hello\n\ndata_optics\n_rlnOpticsGroup 1\n_rlnVoltage 200.0\n\n"
    text += "data_particles\n_rlnImageName 1@c.mrcs\n_rlnOpticsGroup 1\n"
    table = read_particle_star(star(tmp_path, text))
    assert numeric_column(table, "rlnVoltage").tolist() == [200.0]
    assert table.others == {"general": {"rlnNote": "hello"}}
    write_star(tmp_path / "out.star", table)
    assert same(read_particle_star(tmp_path / "out.star"), table)


@pytest.mark.parametrize("text", [RELION30, RELION31])
@pytest.mark.parametrize("end", ["\r", "\r\n", "mixed"])
def test_line_ends_of_any_system(tmp_path: Path, text: str, end: str) -> None:
    wanted = read_particle_star(star(tmp_path, text))
    ends = {"mixed": ("\n", "\r", "\r\n")}.get(end, (end,))
    lines = text.split("\n")
    content = "".join(line + ends[i % len(ends)] for i, line in enumerate(lines))
    (tmp_path / "p.star").write_bytes(content.encode())
    assert same(read_particle_star(tmp_path / "p.star"), wanted)
    # a row cut short is named by its line, as every editor counts it
    number, row = next((n, line) for n, line in enumerate(lines, start=1) if "@" in line)
    (tmp_path / "p.star").write_bytes(content.replace(row, row.split()[0]).encode())
    with pytest.raises(InputError, match=rf"p\.star: line {number}: 1 value, expected"):
        read_particle_star(tmp_path / "p.star")


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "p.star").write_bytes(b"\xef\xbb\xbf" + RELION30.encode())
    assert same(read_particle_star(tmp_path / "p.star"), read_particle_star(star(tmp_path, RELION30)))


@pytest.mark.parametrize(
    ("row", "values"),
    [
        ("1@o'brien.mrcs 5#6", ["1@o'brien.mrcs", "5#6"]),
        ('"1@a b.mrcs" \'two words\' # "a comment"', ["1@a b.mrcs", "two words"]),
        ("'1@it's' \"x\"y\"", ["1@it's", 'x"y']),
        ('1@a "#1 of 2"', ["1@a", "#1 of 2"]),
        ('"_a" "data_x"', ["_a", "data_x"]),
        ('"data_x" "loop_"', ["data_x", "loop_"]),
        ("1@a\u00a0b.mrcs \u00e9", ["1@a\u00a0b.mrcs", "\u00e9"]),
        ("\t1@a  \t  ; # it's a \"comment", ["1@a", ";"]),
    ],
)
def test_quotation_marks_number_signs_and_comments(tmp_path: Path, row: str, values: list[str]) -> None:
    table = read_particle_star(star(tmp_path, f"data_\nloop_\n_rlnImageName #1 it's\n_rlnNote #2\n{row}\n2@b c\n"))
    assert table.particles.to_numpy().tolist() == [values, ["2@b", "c"]]
    write_star(tmp_path / "out.star", table)
    assert same(read_particle_star(tmp_path / "out.star"), table)


TEXT = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=6) | st.text("ab'\"# \t_;$", max_size=6)
TEXT |= st.sampled_from(["data_", "loop_", "_x", "nan", "<NA>", "None", "\ufeff"])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cells=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4), note=TEXT)
def test_any_text_is_written_and_read_again_or_refused(tmp_path: Path, cells: list[tuple[str, str]], note: str) -> None:
    frame = pd.DataFrame(cells, columns=["rlnNote", "rlnImageName"], dtype=str)
    others = {} if re.search("'[ \t]", note) and re.search('"[ \t]', note) else {"general": {"rlnNote": note}}
    table = ParticleTable(tmp_path / "p.star", None, frame, others)
    both = [row for row, pair in enumerate(cells) if any(re.search("'[ \t]", c) and re.search('"[ \t]', c) for c in pair)]
    if both:
        with pytest.raises(InputError, match=rf"row {both[0] + 1}, column|row \d+, column rlnImageName"):
            write_star(tmp_path / "out.star", table)
        return
    write_star(tmp_path / "out.star", table)
    back = read_particle_star(tmp_path / "out.star")
    assert back.particles.to_numpy().tolist() == frame.to_numpy().tolist() and back.others == others


@pytest.mark.relion
def test_relion_reads_what_is_written(tmp_path: Path) -> None:
    optics = {"rlnOpticsGroup": "1", "rlnOpticsGroupName": "a", "rlnVoltage": "300", "rlnSphericalAberration": "2.7"}
    optics |= {"rlnAmplitudeContrast": "0.1", "rlnImagePixelSize": "1", "rlnImageSize": "64", "rlnImageDimensionality": "2"}
    notes = ["o'brien", "a#b", "two words", "", "it's 'so'", 'x"y z', "'a\"b'", "_x", "data_x"]
    # RELION itself writes no quotation marks about a number sign or an underscore at a row's beginning
    columns = {"rlnImageName": [f"{i + 1}@a b.mrcs" for i in range(len(notes))], "rlnMicrographName": notes}
    columns |= {"rlnDefocusU": ["15000"] * len(notes), "rlnOpticsGroup": ["1"] * len(notes)}
    table = ParticleTable(tmp_path / "p.star", pd.DataFrame([optics], dtype=str), pd.DataFrame(columns, dtype=str))
    write_star(tmp_path / "p.star", table)
    command = ["relion_star_handler", "--i", "p.star", "--o", "q.star", "--select", "rlnDefocusU", "--minval", "1"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    back = read_particle_star(tmp_path / "q.star").particles
    assert back["rlnMicrographName"].tolist() == notes and back["rlnImageName"].tolist() == columns["rlnImageName"]


def test_blocks_keep_their_names_and_order(tmp_path: Path) -> None:
    text = "no part of it\ndata_empty\n\ndata_particles # all\nloop_\n_rlnImageName\n1@a\n\ndata_none\nloop_\n_x\n_y\n"
    table = read_particle_star(star(tmp_path, text))
    assert list(table.others) == ["empty", "none"] and table.others["empty"] == {} and list(table.others["none"]) == ["x", "y"]
    write_star(tmp_path / "out.star", table)
    assert same(read_particle_star(tmp_path / "out.star"), table)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a STAR file"),
        (b"some plain text\nof two lines\n", "not a STAR file"),
        (b"data_\0\1\2", "not a STAR file"),
        (b"\xff\xfe data_", "not a STAR file"),
        (
            b"data_micrographs\nloop_\n_rlnMicrographName\na.mrc\n",
            "no column|no particles.*data_micrographs with rlnMicrographName",
        ),
        (b"data_\nloop_\n_rlnImageName\n_rlnVoltage\n", "data_ has no rows"),
        (b"data_\nloop_\n_rlnImageName\n_rlnVoltage\n1@x 300\n2@x\n", "line 6: 1 value, expected 2"),
        (b"data_\nloop_\n_rlnImageName\n_rlnVoltage\n1@x 300\n2@x 300 5 # 6 7\n", "line 6: 3 values, expected 2"),
        (b"data_\nloop_\n_rlnImageName\n_rlnImageName\n1@x 2@x\n", "line 4: data_ has column rlnImageName twice"),
        (b"data_\n", "no particles: block data_ is empty, expected loop_, column names and rows"),
        (b"data_\nloop_\n", "no particles: no block has a column rlnImageName"),
        (b"data_\nloop_\n1@x 300\n", "line 3: 2 values, expected 0 for the columns of data_"),
        (b"data_\n_rlnImageName\n1@x\n", "line 2: _rlnImageName of data_ has 0 values, expected 1 \\(or loop_ before"),
        (b"data_\n_rlnImageName 1@x 2\n", "line 2: _rlnImageName of data_ has 2 values, expected 1"),
        (b'data_\nloop_\n_rlnImageName\n_a\n1@x "b\n2@x c\n', 'line 5: "b: unclosed quotation mark'),
        (b"data_\n_rlnImageName \x1c 1@x\n", "line 2: contains a control character"),
        (b"data_\nloop_ x\nloop_\n", "line 2: loop_ x, expected loop_ on a line of its own"),
        (b"data_\nloop_\n_a\n1\nloop_\n_b\n2\n", "line 5: loop_ inside data_, expected one loop per block"),
        (b"data_\n_a 1\nloop_\n_b\n2\n", "line 3: loop_ inside data_"),
        (b"data_x y\n", "line 1: data_x is followed by y, expected a line of its own"),
        (b"data_x\n_a 1\n;text\n;\n", "line 3: ;text in data_x, expected loop_ or a name"),
        (b"data_x\n_a 1\n_a 2\n", "line 3: data_x has column a twice"),
        (b"data_x\n_a 1\n\ndata_y\n\ndata_x\n", "line 6: two blocks data_x, expected one"),
        (b"data_\nloop_\n_rlnImageName\n1@x\n'2@x\n", "line 5: '2@x: unclosed quotation mark"),
        (b"data_\nloop_\n_rlnImageName\n1@x\x0b2@x\n", "line 4: contains a control character"),
        (b"data_\nloop_\n_rlnImageName\n1@x\xc2\x852@x\n", "line 4: contains a control character"),
    ],
)
def test_refusals_are_one_line_naming_the_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.star"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_particle_star(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["1@a\n.mrcs", "1@a\r.mrcs", "1@a\x01.mrcs", "1@a\x85.mrcs", "1@a\u2028.mrcs", "1@' \" "])
def test_what_would_be_read_as_another_text_is_not_written(tmp_path: Path, name: str) -> None:
    table = read_particle_star(star(tmp_path, RELION31))
    table.particles.loc[1, "rlnImageName"] = name
    with pytest.raises(InputError, match="row 2, column rlnImageName: .* cannot be written to a STAR file"):
        write_star(tmp_path / "out.star", table)
    assert not (tmp_path / "out.star").exists()


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_particle_star(tmp_path / "none.star")
    with pytest.raises(InputError, match="is not a file"):
        read_particle_star(tmp_path)


def test_numeric_column_from_particles_optics_and_default(tmp_path: Path) -> None:
    table = read_particle_star(star(tmp_path, RELION31))
    assert numeric_column(table, "rlnDefocusU").tolist() == [15000.0, 15000.10]
    assert numeric_column(table, "rlnVoltage").tolist() == [200.0, 300.0]
    assert numeric_column(table, "rlnPhaseShift", default=0.0).tolist() == [0.0, 0.0]
    with pytest.raises(InputError, match=r"p\.star.*rlnPhaseShift is missing, expected in data_particles or data_optics"):
        numeric_column(table, "rlnPhaseShift")


@pytest.mark.parametrize("value", ["abc", "nan", "NaN", "inf", "-inf", "1e999"])
def test_numeric_column_refuses_what_is_not_finite(tmp_path: Path, value: str) -> None:
    table = read_particle_star(star(tmp_path, RELION31.replace("15000.10", value)))
    with pytest.raises(InputError, match=rf"p\.star: row 2, column rlnDefocusU: '{value}'"):
        numeric_column(table, "rlnDefocusU")


def test_optics_group_that_is_absent(tmp_path: Path) -> None:
    table = read_particle_star(star(tmp_path, RELION31.replace("15000.10  1", "15000.10  5")))
    with pytest.raises(InputError, match="row 2: optics group 5 is not in data_optics"):
        numeric_column(table, "rlnVoltage")


@pytest.mark.parametrize("text", [RELION30, RELION31])
def test_with_poses(tmp_path: Path, text: str) -> None:
    before = read_particle_star(star(tmp_path, text))
    n = len(before)
    angles, origin = np.array([[10.0, 20.0, -30.0], [1e-9, -1e-9, 3.0]])[:n], np.array([[2.0, -4.0], [0.5, 0.25]])[:n]
    after = with_poses(before, angles, origin, np.array([2, 1])[:n], pixel_size_angstrom=4.0)
    write_star(tmp_path / "out.star", after)
    back = read_particle_star(tmp_path / "out.star").particles
    px, angstrom = ["rlnOriginX", "rlnOriginY"], ["rlnOriginXAngst", "rlnOriginYAngst"]
    if before.optics is None:
        assert back[px].to_numpy().tolist()[0] == ["0.500000", "-1.000000"] and not set(angstrom) & set(back)
    else:
        assert back[angstrom].to_numpy().tolist() == [["2.000000", "-4.000000"], ["0.500000", "0.250000"]]
        assert not set(px) & set(back)
        assert list(back["rlnAngleTilt"]) == ["20.000000", "0.000000"]
    assert list(back["rlnRandomSubset"]) == ["2", "1"][:n]
    assert [back["rlnAngleRot"][0], back["rlnAnglePsi"][0]] == ["10.000000", "-30.000000"]
    kept = [name for name in before.particles if name in back]
    assert list(back)[: len(kept)] == kept
    untouched = [name for name in kept if "Angle" not in name and "Origin" not in name]
    assert back[untouched].equals(before.particles[untouched])
    assert "rlnAngleRot" not in before.particles


def test_with_poses_leaves_half_sets_alone_or_refuses_wrong_shapes(tmp_path: Path) -> None:
    table = read_particle_star(star(tmp_path, RELION31))
    assert "rlnRandomSubset" not in with_poses(table, np.zeros((2, 3)), np.zeros((2, 2)), None, 1.0).particles
    with pytest.raises(ValueError, match="2 particles"):
        with_poses(table, np.zeros((3, 3)), np.zeros((2, 2)), None, 1.0)


@needs_shared
@pytest.mark.parametrize("path", STAR_FILES, ids=lambda path: path.name)
def test_real_file_is_read_exactly_or_refused_in_one_line(path: Path, tmp_path: Path) -> None:
    try:
        table = read_particle_star(path)
    except InputError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        assert "_rlnImageName" not in path.read_text()
        return
    # each row of the file, split at blanks, against the table
    rows = [line.split() for line in path.read_text().splitlines()]
    width = table.particles.shape[1]
    wanted = {tuple(row) for row in rows if len(row) == width}
    assert {tuple(row) for row in table.particles.to_numpy()} <= wanted
    write_star(tmp_path / "out.star", table)
    assert same(read_particle_star(tmp_path / "out.star"), table)


def test_values_that_cannot_be_written(tmp_path: Path) -> None:
    def table(*values: str) -> ParticleTable:
        return ParticleTable(tmp_path / "p.star", None, pd.DataFrame({"rlnImageName": list(values)}, dtype=str))

    for value in ("1@a\nb.mrcs", "1@a\x01.mrcs"):
        with pytest.raises(InputError, match="row 2, column rlnImageName"):
            write_star(tmp_path / "o.star", table("1@a.mrcs", value))
    good = ParticleTable(tmp_path / "p.star", None, table("1@a.mrcs").particles)
    for block in ({"rlnNote": "a\nb"}, pd.DataFrame({"rlnNote": ["a\nb"]}, dtype=str)):
        with pytest.raises(InputError, match="data_general row 1, column rlnNote: 'a.*nb' cannot be written"):
            write_star(tmp_path / "o.star", replace(good, others={"general": block}))
    assert not (tmp_path / "o.star").exists()
    # no particle at all is no reason to refuse: nobody may be confident
    for values in ((), ("1@a.mrcs",), ("1@a.mrcs", "2@a.mrcs")):
        write_star(tmp_path / "o.star", table(*values))
        assert (tmp_path / "o.star").read_text().count("@") == len(values)
