"""Nothing is lost: .cs -> .star -> .cs gives the same bits, .star -> .cs -> .star the same letters, other programs between."""

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ace_em.errors import InputError
from ace_em.io.cryosparc import read_cryosparc
from ace_em.io.cs.file import load_fields, save_fields
from ace_em.io.particle_table import ParticleTable, numeric_column
from ace_em.io.star import read_particle_star, with_defocus_offset, write_star
from ace_em.io.tables import read_particle_table, write_particle_table

Fields = dict[str, np.ndarray]
Make = Callable[..., Fields]
FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def same_bits(a: Fields, b: Fields) -> bool:
    if list(a) != list(b):
        return False
    return all(
        a[name].dtype == b[name].dtype and a[name].shape == b[name].shape and a[name].tobytes() == b[name].tobytes() for name in a
    )


def same_letters(a: ParticleTable, b: ParticleTable) -> bool:
    def block(x: object) -> object:
        return (list(x), x.to_numpy(dtype=object).tolist()) if isinstance(x, pd.DataFrame) else x

    others = [(name, block(x)) for name, x in a.others.items()] == [(name, block(x)) for name, x in b.others.items()]
    blocks = a.particle_block == b.particle_block and block(a.optics) == block(b.optics)
    return others and blocks and block(a.particles) == block(b.particles)


def through(folder: Path, table: ParticleTable, *suffixes: str) -> ParticleTable:
    """The table written to and read from files of these suffixes, one after the other."""
    for i, suffix in enumerate(suffixes):
        path = folder / f"step{i}{suffix}"
        write_particle_table(path, table)
        table = read_particle_table(path)
    return table


@st.composite
def odd_fields(draw: st.DrawFn, n: int) -> Fields:
    """Fields of every kind, with every bit pattern: NaN with a payload, -0, bytes that are no text, blanks, quotes."""
    types = ["<f4", "<f8", ">f4", "<f2", "<u4", "<i8", "u1", "?", "<c8", "S5", "<U3"]
    fields: Fields = {}
    for i in range(draw(st.integers(0, 4))):
        dtype, shape = np.dtype(draw(st.sampled_from(types))), draw(st.sampled_from([(), (1,), (2,), (2, 2)]))
        count = n * int(np.prod(shape, dtype=int))
        if dtype.kind in "SU":
            texts = st.sampled_from(
                ["", " ", "a b", "'\"#", "nan", "None", "_x", "data_", "%", "?", "\u00e9", ";", "x1", "<NA>", "$a"]
            )
            values = draw(st.lists(texts, min_size=count, max_size=count))
            flat = np.array([v.encode() for v in values] if dtype.kind == "S" else values, dtype=dtype)
        elif dtype.kind == "b":
            flat = np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)), dtype=bool)
        else:
            size = count * dtype.itemsize
            flat = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), dtype=dtype)
        name = draw(st.sampled_from(["alignments2D/x", "odd name/\u00e9", "a", "a_1", "pick_stats/power"])) + str(i)
        fields[name] = flat.reshape((n, *shape))
    return fields


@FEW
@given(st.data())
def test_bits_survive_a_star_file(make_fields: Make, tmp_path: Path, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 5))
    fields = make_fields(n, seed=data.draw(st.integers(0, 99)), poses=data.draw(st.booleans()))
    extra = data.draw(odd_fields(n))
    names = data.draw(st.permutations([*fields, *extra]))
    fields = {name: (fields | extra)[name] for name in names}
    save_fields(tmp_path / "a.cs", fields)
    table = read_cryosparc(tmp_path / "a.cs")
    through(tmp_path, table, ".star", ".cs")
    assert same_bits(load_fields(tmp_path / "step1.cs"), fields)
    assert same_letters(read_particle_table(tmp_path / "step0.star"), table)
    through(tmp_path, table, ".star", ".star", ".cs", ".cs")
    assert same_bits(load_fields(tmp_path / "step3.cs"), fields)


def test_every_nan_and_zero_keeps_its_bits(make_fields: Make, tmp_path: Path) -> None:
    # quiet and signalling, of either sign, with a payload; a negative zero; the smallest number
    bits = np.array([0x7FC00000, 0xFFC00000, 0x7FC00001, 0x7F800001, 0x80000000, 0x00000001, 0xFF800000], dtype="<u4")
    fields = make_fields(len(bits)) | {"a/little": bits.view("<f4"), "a/big": bits.astype(">u4").view(">f4")}
    save_fields(tmp_path / "a.cs", fields)
    through(tmp_path, read_cryosparc(tmp_path / "a.cs"), ".star", ".cs")
    assert same_bits(load_fields(tmp_path / "step1.cs"), fields)


# only what starfile itself reads as it was written: no quotation marks, no underscore at the beginning of a row
CELL = st.sampled_from(["", "a b", "nan", "NaN", "None", "0.0", "1e-5", "%", "\u00e9", "[0,0]", "<NA>", ";", "x_y"])
NUMBER = st.floats(-1e4, 1e4).map(lambda x: f"{x:.{3}f}") | st.sampled_from(["1e3", "-0", "+5.", "007", "1234567.123456789"])


@FEW
@given(st.data())
def test_letters_survive_a_cs_file(tmp_path: Path, data: st.DataObject) -> None:
    n, new = data.draw(st.integers(1, 5)), data.draw(st.booleans())

    def column(cells: st.SearchStrategy[str]) -> list[str]:
        return data.draw(st.lists(cells, min_size=n, max_size=n))

    image = st.sampled_from(["1@a.mrcs", "000002@a.mrcs", "01@b/c.mrc", "one.mrc"])
    particles = {"rlnNote": column(CELL), "rlnImageName": column(image)}
    particles |= {name: column(NUMBER) for name in ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle")}
    extra = [
        "rlnCtfBfactor",
        "rlnCtfScalefactor",
        "rlnPhaseShift",
        "rlnClassNumber",
        "rlnAngleRot",
        "rlnAngleTilt",
        "rlnAnglePsi",
    ]
    particles |= {name: column(NUMBER) for name in extra if data.draw(st.booleans())}
    origins = ["rlnOriginX", "rlnOriginYAngst", "rlnOriginXAngst", "rlnCoordinateX"]
    particles |= {name: column(NUMBER) for name in origins if data.draw(st.booleans())}
    if data.draw(st.booleans()):
        particles["rlnRandomSubset"] = column(st.sampled_from(["1", "2", "1.000"]))
    if data.draw(st.booleans()):
        particles["csUid"] = column(st.sampled_from(["5", "nonsense", "18446744073709551616"]))
    shared = {"rlnVoltage": "300.0", "rlnSphericalAberration": "2.70", "rlnAmplitudeContrast": "0.1", "rlnImageSize": "64"}
    if new:
        particles["rlnOpticsGroup"] = column(st.sampled_from(["1", "3"]))
        groups = [
            {"rlnOpticsGroup": g, "rlnMtf": data.draw(CELL), "rlnImagePixelSize": "1.0" + g} | shared for g in ("3", "1", "2")
        ]
        optics = pd.DataFrame(groups, dtype=str)
    else:
        particles |= {name: [value] * n for name, value in shared.items()}
        particles |= {"rlnMagnification": ["31000"] * n, "rlnDetectorPixelSize": ["5"] * n}
    others = {"general": {"rlnOwner": data.draw(CELL)}, "list": pd.DataFrame({"a": ["1", "2"]}, dtype=str)}
    kept = {name: block for name, block in others.items() if data.draw(st.booleans())}
    names = data.draw(st.permutations(list(particles)))
    frame = pd.DataFrame({name: particles[name] for name in names}, dtype=str)
    write_star(
        tmp_path / "a.star",
        ParticleTable(tmp_path, optics if new else None, frame, kept, data.draw(st.sampled_from(["particles", ""]))),
    )
    table = read_particle_star(tmp_path / "a.star")
    assert same_letters(through(tmp_path, table, ".cs", ".star"), table)
    back = through(tmp_path, table, ".cs", ".cs", ".star", ".star", ".cs", ".star")
    assert same_letters(back, table) and (back.optics is None) != new
    assert (tmp_path / "step4.cs").read_bytes() == (tmp_path / "step0.cs").read_bytes()


def test_a_star_file_that_was_reordered_and_thinned_finds_its_own(make_fields: Make, tmp_path: Path) -> None:
    fields = make_fields(20)
    fields["ctf/exp_group_id"] = np.arange(20, dtype="<u4") % 4
    save_fields(tmp_path / "a.cs", fields)
    through(tmp_path, read_cryosparc(tmp_path / "a.cs"), ".star")
    # as another program does it: rows of the particles alone, and numbers printed anew
    lines = (tmp_path / "step0.star").read_text().splitlines()
    rows = [i for i, line in enumerate(lines) if "@J1/imported" in line]
    keep = np.random.default_rng(0).permutation(20)[:7]
    moved = [lines[rows[i]].replace("\t300.0\t", "\t300.000000\t") for i in keep]
    (tmp_path / "b.star").write_text("\n".join([*lines[: rows[0]], *moved, *lines[rows[-1] + 1 :]]) + "\n")
    table = read_particle_table(tmp_path / "b.star")
    through(tmp_path, table, ".cs")
    found = load_fields(tmp_path / "step0.cs")
    assert found["uid"].tolist() == fields["uid"][keep].tolist()
    assert all(found[name].tobytes() == fields[name][keep].tobytes() for name in fields)
    assert same_letters(read_particle_table(tmp_path / "step0.cs"), table)


def test_blocks_that_no_longer_fit_are_left_alone(make_fields: Make, tmp_path: Path) -> None:
    fields = make_fields(4)
    save_fields(tmp_path / "a.cs", fields)
    through(tmp_path, read_cryosparc(tmp_path / "a.cs"), ".star")
    text, uid = (tmp_path / "step0.star").read_text(), str(fields["uid"][2])
    first = text.replace(uid, "77", 1)
    for changed in (first, text.replace("<f4", "<q9"), text.replace("cs_1_", "cs_x_", 1), text.replace("_csUid", "_noUid", 1)):
        (tmp_path / "b.star").write_text(changed)
        table = read_particle_table(tmp_path / "b.star")
        assert table.cryosparc is None and list(table.others) == ["cryosparc_fields", "cryosparc"]
        assert same_letters(through(tmp_path, table, ".cs", ".star"), table)
    # what is left of them, the uid, is used
    (tmp_path / "b.star").write_text(first)
    through(tmp_path, read_particle_table(tmp_path / "b.star"), ".cs")
    want = fields["uid"].copy()
    want[2] = 77
    assert load_fields(tmp_path / "step0.cs")["uid"].tolist() == want.tolist()


@pytest.mark.relion
def test_particles_that_relion_selected_come_back_with_their_fields(make_fields: Make, tmp_path: Path) -> None:
    fields = make_fields(30)
    save_fields(tmp_path / "a.cs", fields)
    through(tmp_path, read_cryosparc(tmp_path / "a.cs"), ".star")
    command = ["relion_star_handler", "--i", "step0.star", "--o", "sel.star", "--select", "rlnDefocusU", "--minval", "14000"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert "data_cryosparc" not in (tmp_path / "sel.star").read_text()
    rows = np.flatnonzero(fields["ctf/df1_A"] >= 14000)
    write_particle_table(tmp_path / "b.cs", read_particle_table(tmp_path / "sel.star", [tmp_path / "a.cs"]))
    found = load_fields(tmp_path / "b.cs")
    # RELION printed six decimals or five: a value that differs by no more has not changed
    assert 0 < len(rows) < 30 and all(found[name].tobytes() == fields[name][rows].tobytes() for name in fields)
    with pytest.raises(InputError, match=r"a\.star: no column csUid, by which to find the particles in .*a\.cs"):
        write_star(tmp_path / "a.star", ParticleTable(tmp_path, None, pd.DataFrame({"rlnImageName": ["1@a"]}, dtype=str)))
        read_particle_table(tmp_path / "a.star", [tmp_path / "a.cs"])


def star_table(n: int) -> ParticleTable:
    optics = {"rlnOpticsGroup": "1", "rlnOpticsGroupName": "first", "rlnMtfFileName": "k3.star", "rlnVoltage": "300.00"}
    optics |= {
        "rlnSphericalAberration": "2.700",
        "rlnAmplitudeContrast": "0.10",
        "rlnImagePixelSize": "1.2340",
        "rlnImageSize": "64",
    }
    columns = {
        "rlnDefocusU": "15000.10",
        "rlnDefocusV": "14000.",
        "rlnDefocusAngle": "30",
        "rlnAngleRot": "-190.0",
        "rlnAngleTilt": "-20",
    }
    columns |= {
        "rlnAnglePsi": "5.000",
        "rlnOriginXAngst": "1.50",
        "rlnOriginYAngst": "-0.5",
        "rlnOpticsGroup": "1",
        "rlnNote": "a b",
    }
    rows = [{"rlnImageName": f"{i + 1}@a.mrcs"} | columns | {"rlnRandomSubset": str(i % 2 + 1)} for i in range(n)]
    return ParticleTable(Path("p.star"), pd.DataFrame([optics], dtype=str), pd.DataFrame(rows, dtype=str))


def test_what_cryosparc_changed_changes_only_its_cells(tmp_path: Path) -> None:
    table = star_table(8)
    write_particle_table(tmp_path / "a.cs", table)
    fields = load_fields(tmp_path / "a.cs")
    order = np.array([6, 2, 5, 0])  # it also left out and moved rows
    fields = {name: values[order] for name, values in fields.items()}
    fields["ctf/df1_A"][1] = 16000.5
    fields["alignments3D/pose"][2] = [0, 0, np.deg2rad(50)]
    fields["ctf/accel_kv"][3] = 200
    fields["alignments3D/cross_cor"][:] = 3
    save_fields(tmp_path / "b.cs", fields)
    found = read_particle_table(tmp_path / "b.cs")
    want = table.rows(order).particles
    want.loc[1, "rlnDefocusU"] = "16000.5"
    want.loc[2, ["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]] = found.particles.loc[
        2, ["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]
    ]
    want.loc[3, "rlnOpticsGroup"] = "2"
    assert found.particles.drop(columns="csUid").equals(want)
    angles = [numeric_column(found, name)[2] for name in ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")]
    assert (angles[0] + angles[2]) % 360 == pytest.approx(50, abs=1e-4) and angles[1] == pytest.approx(0, abs=1e-4)
    assert found.optics is not None and table.optics is not None
    assert found.optics.iloc[[0]].equals(table.optics) and found.optics["rlnMtfFileName"].tolist() == ["k3.star"] * 2
    assert numeric_column(found, "rlnVoltage").tolist() == [300, 300, 300, 200]
    # and all that goes there and back as well
    through(tmp_path, found, ".star", ".cs")
    assert same_bits(load_fields(tmp_path / "step1.cs"), fields)


def test_a_change_of_either_side_wins_over_what_was_carried(tmp_path: Path) -> None:
    table = star_table(3)
    write_particle_table(tmp_path / "a.cs", table)
    fields = load_fields(tmp_path / "a.cs")
    fields["alignments3D/error"] += 1  # cryoSPARC has had it: its fields are carried from now on
    save_fields(tmp_path / "a.cs", fields)
    carried = read_particle_table(tmp_path / "a.cs")
    moved = with_defocus_offset(carried, np.array([100.0, 0, 0]))
    back = through(tmp_path, moved, ".cs", ".star", ".cs")
    assert load_fields(tmp_path / "step2.cs")["ctf/df1_A"].tolist() == np.float32([15100.1, 15000.1, 15000.1]).tolist()
    assert same_letters(back, moved)
    removed = replace(moved, particles=moved.particles.drop(columns=["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]))
    back = through(tmp_path, removed, ".cs")
    assert same_letters(back, removed) and "alignments3D/pose" not in load_fields(tmp_path / "step0.cs")
