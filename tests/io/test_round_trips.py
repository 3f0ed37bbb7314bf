"""A trip through the other format: fields come back by uid with every bit, columns with their values, and what changed is new."""

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ace_em.data.particles import star_poses
from ace_em.errors import InputError
from ace_em.io.cryosparc import load_fields, read_cryosparc, save_fields
from ace_em.io.particle_table import (
    ParticleTable,
    image_paths,
    numeric_column,
    origin_px,
    pixel_sizes,
    read_particle_table,
    write_particle_table,
)
from ace_em.io.star import with_defocus_offset

Fields = dict[str, np.ndarray]
Make = Callable[..., Fields]
FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def same_bits(a: Fields, b: Fields) -> bool:
    if list(a) != list(b):
        return False
    return all(
        a[name].dtype == b[name].dtype and a[name].shape == b[name].shape and a[name].tobytes() == b[name].tobytes() for name in a
    )


def through(folder: Path, table: ParticleTable, *suffixes: str, original: Path | None = None) -> ParticleTable:
    """The table written to and read from files of these suffixes, one after the other; ``original`` as passthrough of a STAR."""
    for i, suffix in enumerate(suffixes):
        path = folder / f"step{i}{suffix}"
        write_particle_table(path, table)
        table = read_particle_table(path, [original] if original is not None and suffix == ".star" else [])
    return table


# --- fields --------------------------------------------------------------------------------------------------------------------


@st.composite
def odd_fields(draw: st.DrawFn, n: int) -> Fields:
    """Fields of every kind, with every bit pattern: NaN with a payload, -0, bytes that are no text, blanks, quotes."""
    types = ["<f4", "<f8", ">f4", "<f2", "<u4", "<i8", "u1", "?", "<c8", "S5", "<U3"]
    fields: Fields = {}
    for i in range(draw(st.integers(0, 4))):
        dtype, shape = np.dtype(draw(st.sampled_from(types))), draw(st.sampled_from([(), (1,), (2,), (2, 2)]))
        count = n * int(np.prod(shape, dtype=int))
        if dtype.kind in "SU":
            texts = st.sampled_from(["", " ", "a b", "'\"#", "nan", "None", "_x", "\u00e9", ";", "<NA>"])
            values = draw(st.lists(texts, min_size=count, max_size=count))
            flat = np.array([v.encode() for v in values] if dtype.kind == "S" else values, dtype=dtype)
        elif dtype.kind == "b":
            flat = np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)), dtype=bool)
        else:
            size = count * dtype.itemsize
            flat = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), dtype=dtype)
        name = draw(st.sampled_from(["alignments2D/x", "odd name/\u00e9", "a", "pick_stats/power"])) + str(i)
        fields[name] = flat.reshape((n, *shape))
    return fields


@FEW
@given(st.data())
def test_every_bit_of_the_fields_comes_back(make_fields: Make, tmp_path: Path, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 5))
    fields = make_fields(n, seed=data.draw(st.integers(0, 99)), poses=data.draw(st.booleans()))
    fields["ctf/exp_group_id"] = np.array(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)), dtype="<u4")
    for name in ("alignments3D/shift", "ctf/phase_shift_rad", "blob/sign"):
        if data.draw(st.booleans()):
            fields.pop(name, None)
    extra = data.draw(odd_fields(n))
    names = data.draw(st.permutations([*fields, *extra]))
    fields = {name: (fields | extra)[name] for name in names}
    save_fields(tmp_path / "a.cs", fields)
    table = read_cryosparc(tmp_path / "a.cs")
    through(tmp_path, table, ".cs")
    assert same_bits(load_fields(tmp_path / "step0.cs"), fields)
    # a STAR file says which particle is whose, the file that it came from the rest
    through(tmp_path, table, ".star", ".star", ".cs", original=tmp_path / "a.cs")
    assert same_bits(load_fields(tmp_path / "step2.cs"), fields)
    assert "cryosparc" not in (tmp_path / "step1.star").read_text()


def test_a_star_file_that_was_reordered_and_thinned_finds_its_own(make_fields: Make, tmp_path: Path) -> None:
    fields = make_fields(20)
    fields["ctf/exp_group_id"] = np.arange(20, dtype="<u4") % 4
    save_fields(tmp_path / "a.cs", fields)
    write_particle_table(tmp_path / "a.star", read_cryosparc(tmp_path / "a.cs"))
    # as another program does it: rows left out and moved, and numbers printed anew
    lines = (tmp_path / "a.star").read_text().splitlines()
    rows = [i for i, line in enumerate(lines) if "@J1/imported" in line]
    keep = np.random.default_rng(0).permutation(20)[:7]
    text = "\n".join([*lines[: rows[0]], *(lines[rows[i]] for i in keep), *lines[rows[-1] + 1 :]])
    (tmp_path / "b.star").write_text(text.replace("\t300.0\t", "\t300.000000\t"))
    write_particle_table(tmp_path / "b.cs", read_particle_table(tmp_path / "b.star", [tmp_path / "a.cs"]))
    assert same_bits(load_fields(tmp_path / "b.cs"), {name: values[keep] for name, values in fields.items()})


def test_original_fields_in_several_files(make_fields: Make, tmp_path: Path) -> None:
    fields = make_fields(9)
    save_fields(tmp_path / "a.cs", fields)
    write_particle_table(tmp_path / "a.star", read_cryosparc(tmp_path / "a.cs"))
    own = {name: values for name, values in fields.items() if name == "uid" or name.startswith("alignments3D/")}
    moved = np.random.default_rng(0).permutation(9)
    save_fields(tmp_path / "own.cs", own)
    save_fields(tmp_path / "rest.cs", {name: v[moved] for name, v in fields.items() if name == "uid" or name not in own})
    table = read_particle_table(tmp_path / "a.star", [tmp_path / "own.cs", tmp_path / "rest.cs"])
    write_particle_table(tmp_path / "b.cs", table)
    found = load_fields(tmp_path / "b.cs")
    assert set(found) == set(fields) and same_bits({name: found[name] for name in fields}, fields)
    # of a job's file the passthrough file beside it is found
    (tmp_path / "own.cs").rename(tmp_path / "J2_003_particles.cs")
    with pytest.raises(
        InputError, match=r"J2_003_particles\.cs: has no blob/\.\.\. and ctf/\.\.\. fields; give the job's passthrough"
    ):
        read_particle_table(tmp_path / "a.star", [tmp_path / "J2_003_particles.cs"])
    (tmp_path / "rest.cs").rename(tmp_path / "J2_passthrough_particles.cs")
    write_particle_table(tmp_path / "b.cs", read_particle_table(tmp_path / "a.star", [tmp_path / "J2_003_particles.cs"]))
    assert same_bits(load_fields(tmp_path / "b.cs"), found)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("_csUid", "_noUid", r"a\.star: no column csUid: particles cannot be matched with .*a\.cs"),
        ("UID", "nonsense", r"a\.star: a csUid that is not a number: particles cannot be matched with .*a\.cs"),
        ("UID", "9" * 30, r"a\.star: a csUid that is not a number"),
        ("UID", "9" * 5000, r"a\.star: a csUid that is not a number"),
        ("UID", "77", r"a\.cs: lacks 1 of 4 particles of .*a\.star, such as uid 77 of row 3"),
    ],
)
def test_a_star_file_of_other_particles(make_fields: Make, tmp_path: Path, old: str, new: str, message: str) -> None:
    fields = make_fields(4)
    save_fields(tmp_path / "a.cs", fields)
    write_particle_table(tmp_path / "a.star", read_cryosparc(tmp_path / "a.cs"))
    text = (tmp_path / "a.star").read_text()
    (tmp_path / "a.star").write_text(text.replace(str(fields["uid"][2]) if old == "UID" else old, new))
    with pytest.raises(InputError, match=message):
        read_particle_table(tmp_path / "a.star", [tmp_path / "a.cs"])


@pytest.mark.relion
def test_particles_that_relion_selected_come_back_with_their_fields(make_fields: Make, tmp_path: Path) -> None:
    fields = make_fields(30)
    save_fields(tmp_path / "a.cs", fields)
    write_particle_table(tmp_path / "a.star", read_cryosparc(tmp_path / "a.cs"))
    command = ["relion_star_handler", "--i", "a.star", "--o", "sel.star", "--select", "rlnDefocusU", "--minval", "14000"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    rows = np.flatnonzero(fields["ctf/df1_A"] >= 14000)
    write_particle_table(tmp_path / "b.cs", read_particle_table(tmp_path / "sel.star", [tmp_path / "a.cs"]))
    # RELION printed six decimals or five: a value that differs by no more has not changed
    assert 0 < len(rows) < 30
    assert same_bits(load_fields(tmp_path / "b.cs"), {name: values[rows] for name, values in fields.items()})


def test_a_change_in_the_star_file_changes_its_own_fields(make_fields: Make, tmp_path: Path) -> None:
    fields = make_fields(3)
    original = tmp_path / "a.cs"
    save_fields(original, fields)
    table = read_cryosparc(original)
    write_particle_table(tmp_path / "moved.cs", with_defocus_offset(table, np.array([100.0, 0, 0])))
    # the fields of the table itself are not written to
    assert table.cryosparc is not None and same_bits(table.cryosparc, fields)
    through(tmp_path, with_defocus_offset(table, np.array([100.0, 0, 0])), ".star", ".cs", original=original)
    found = load_fields(tmp_path / "step1.cs")
    assert found["ctf/df1_A"][0] == pytest.approx(fields["ctf/df1_A"][0] + 100, rel=1e-6)
    assert found["ctf/df2_A"][0] == pytest.approx(fields["ctf/df2_A"][0] + 100, rel=1e-6)
    for name in ("ctf/df1_A", "ctf/df2_A"):
        found[name][0] = fields[name][0]
    assert same_bits(found, fields)
    removed = replace(table, particles=table.particles.drop(columns=["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]))
    through(tmp_path, removed, ".star", ".cs", original=original)
    assert set(fields) - set(load_fields(tmp_path / "step1.cs")) == {"alignments3D/pose", "alignments3D/shift"}


# --- columns -------------------------------------------------------------------------------------------------------------------

NUMBER = st.floats(-1e4, 1e4).map(lambda x: f"{x:.3f}") | st.sampled_from(["1e3", "-0", "+5.", "007", "1234567.123456789"])
ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
CTF = ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast")


@FEW
@given(st.data())
def test_the_values_of_a_star_file_come_back(tmp_path: Path, data: st.DataObject) -> None:
    n, new, posed = data.draw(st.integers(1, 5)), data.draw(st.booleans()), data.draw(st.booleans())

    def column(cells: st.SearchStrategy[str]) -> list[str]:
        return data.draw(st.lists(cells, min_size=n, max_size=n))

    particles = {"rlnImageName": column(st.sampled_from(["1@a.mrcs", "000002@a b.mrcs", "01@b/o'c#.mrc", "one.mrc"]))}
    particles |= {name: column(NUMBER) for name in CTF[:3]}
    optional = ["rlnCtfBfactor", "rlnCtfScalefactor", "rlnPhaseShift", "rlnOriginX", "rlnOriginYAngst", "rlnOriginXAngst"]
    particles |= {name: column(NUMBER) for name in optional if data.draw(st.booleans())}
    if posed:
        particles |= {name: column(NUMBER) for name in ANGLES}
    if data.draw(st.booleans()):
        particles["rlnRandomSubset"] = column(st.sampled_from(["1", "2", "1.000"]))
    if data.draw(st.booleans()):
        particles["csUid"] = column(st.sampled_from(["5", "nonsense", "18446744073709551616", "9" * 5000]))
    shared = {"rlnVoltage": "300.0", "rlnSphericalAberration": "2.70", "rlnAmplitudeContrast": "0.1", "rlnImageSize": "64"}
    optics = None
    if new:
        particles["rlnOpticsGroup"] = column(st.sampled_from(["1", "3"]))
        groups = [{"rlnOpticsGroup": g, "rlnImagePixelSize": "1.0" + g} | shared for g in ("3", "1", "2")]
        optics = pd.DataFrame(groups, dtype=str)
    else:
        particles |= {name: [value] * n for name, value in shared.items()}
        particles |= {"rlnMagnification": ["31000"] * n, "rlnDetectorPixelSize": ["5"] * n}
    table = ParticleTable(tmp_path / "p.star", optics, pd.DataFrame(particles, dtype=str))
    back = through(tmp_path, table, ".cs", ".star")
    for a, b in zip(image_paths(table), image_paths(back), strict=True):
        assert a.tolist() == b.tolist()
    defaults = {"rlnCtfBfactor": 0.0, "rlnCtfScalefactor": 1.0, "rlnPhaseShift": 0.0}
    for name in (*CTF, *defaults, "rlnImageSize"):
        values = [numeric_column(t, name, defaults.get(name)) for t in (table, back)]
        np.testing.assert_allclose(values[1], values[0], rtol=2e-7, atol=1e-5)
    np.testing.assert_allclose(pixel_sizes(back), pixel_sizes(table), rtol=1e-7)
    # one half for all is no half-set
    if len(set(map(float, particles.get("rlnRandomSubset", ["1"])))) > 1:
        assert numeric_column(back, "rlnRandomSubset").tolist() == numeric_column(table, "rlnRandomSubset").tolist()
    poses = [star_poses(t, 1.0) for t in (table, back)]
    assert (poses[1] is not None) == posed
    if poses[0] is not None and poses[1] is not None:
        np.testing.assert_allclose(poses[1].rotation, poses[0].rotation, atol=2e-6)
        for axis in "XY":
            px = [origin_px(t, axis, pixel_sizes(t)) for t in (table, back)]
            np.testing.assert_allclose(px[1], px[0], rtol=2e-7, atol=1e-5)
    uid = load_fields(tmp_path / "step0.cs")["uid"]
    if "csUid" in particles:
        assert all(text != "5" or 5 in uid for text in particles["csUid"])


def test_what_cryosparc_changed_is_read(make_fields: Make, tmp_path: Path) -> None:
    save_fields(tmp_path / "made.cs", make_fields(8))
    through(tmp_path, read_cryosparc(tmp_path / "made.cs"), ".star", ".cs")
    fields = load_fields(tmp_path / "step1.cs")
    fields["ctf/df1_A"][1] = 16000.5
    fields["alignments3D/pose"][2] = [0, 0, np.deg2rad(50)]
    fields["ctf/accel_kv"][3] = 200
    save_fields(tmp_path / "b.cs", fields)
    before, after = read_particle_table(tmp_path / "step1.cs"), read_particle_table(tmp_path / "b.cs")
    assert numeric_column(after, "rlnVoltage").tolist() == [300, 300, 300, 200, 300, 300, 300, 300]
    angles = [numeric_column(after, name)[2] for name in ANGLES]
    assert (angles[0] + angles[2]) % 360 == pytest.approx(50, abs=1e-4) and angles[1] == pytest.approx(0, abs=1e-4)
    changed = before.particles.compare(after.particles).columns.get_level_values(0)
    assert set(changed) == {"rlnDefocusU", "rlnOpticsGroup", *ANGLES} and after.particles["rlnDefocusU"][1] == "16000.5"
