"""Image names are read alike wherever they stand: index, path, and the kind of file that RELION and Xmipp write behind it."""

from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest

from ace_em.data.convert import convert
from ace_em.data.particles import Particles
from ace_em.data.select import named_rows
from ace_em.errors import InputError
from ace_em.io.cryosparc import load_fields
from ace_em.io.particle_table import ParticleTable, image_paths, parse_image_name, read_particle_table
from ace_em.io.star import read_particle_star, with_poses, write_star
from ace_em.report.load import read_run

COLUMNS = (
    "rlnImageName rlnVoltage rlnDefocusU rlnDefocusV rlnDefocusAngle rlnSphericalAberration rlnAmplitudeContrast rlnPixelSize"
)


def star(path: Path, names: list[str]) -> Path:
    rows = [f"{name} 300 15000 14500 30 2.7 0.1 2.5" for name in names]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["data_", "loop_", *(f"_{name}" for name in COLUMNS.split()), *rows]) + "\n")
    return path


def stack(path: Path, n: int = 3) -> np.ndarray:
    data = np.random.default_rng(0).normal(size=(n, 16, 16)).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    with mrcfile.new(path) as file:
        file.set_data(data)
    return data


def table_of(name: str) -> ParticleTable:
    return ParticleTable(Path("p.star"), None, pd.DataFrame({"rlnImageName": [name]}, dtype=str))


@pytest.mark.parametrize(
    ("name", "index", "path"),
    [
        ("000001@particles.mrcs", 1, "particles.mrcs"),
        ("000001@particles.mrc:mrcs", 1, "particles.mrc"),
        ("12@stacks/particles.stk:mrc", 12, "stacks/particles.stk"),
        ("one.img:mrc", None, "one.img"),
        ("one.mrc", None, "one.mrc"),
        # a colon elsewhere is the path's own
        ("3@/data/run:1/stack.mrcs", 3, "/data/run:1/stack.mrcs"),
        ("3@/data/run:1/stack.mrc:mrcs", 3, "/data/run:1/stack.mrc"),
        ("3@/data/run:mrcs/stack.mrcs", 3, "/data/run:mrcs/stack.mrcs"),
        ("3@stack:2", 3, "stack:2"),
        ("3@a@b.mrcs", 3, "a@b.mrcs"),
    ],
)
def test_index_and_path(name: str, index: int | None, path: str) -> None:
    assert parse_image_name(table_of(name), 0, name) == (index, path)
    paths, indices = image_paths(table_of(name))
    assert (paths.tolist(), indices.tolist()) == ([path], [(index or 1) - 1])


@pytest.mark.parametrize(
    "name", ["", "0@a.mrcs", "@a.mrcs", "1@", "1@:mrcs", "x@a.mrcs", f"{10**20}@a.mrcs", "9" * 5000 + "@a.mrcs"]
)
def test_names_that_are_none(name: str) -> None:
    for parse in (lambda: parse_image_name(table_of(name), 0, name), lambda: image_paths(table_of(name))):
        with pytest.raises(InputError, match=r"p\.star: row 1, column rlnImageName: .*expected index@path with an index from 1"):
            parse()


@pytest.mark.parametrize("file", ["particles.mrc", "run:1/particles.mrcs"])
@pytest.mark.parametrize("kind", ["", ":mrcs", ":mrc"])
def test_images_are_found_and_the_names_written_as_they_were(tmp_path: Path, file: str, kind: str) -> None:
    data = stack(tmp_path / file)
    names = [f"{i:06d}@{file}{kind}" for i in (3, 1)]
    particles = Particles.open(star(tmp_path / "p.star", names))
    assert np.array_equal(particles.images(slice(None)), data[[2, 0]])
    write_star(tmp_path / "poses.star", with_poses(particles.table, np.zeros((2, 3)), np.zeros((2, 2)), None, 2.5))
    assert list(read_particle_star(tmp_path / "poses.star").particles["rlnImageName"]) == names


def test_one_image_under_two_names_is_the_same(tmp_path: Path) -> None:
    stack(tmp_path / "a.mrc")
    with pytest.raises(InputError, match="row 2, column rlnImageName: 1@a.mrc:mrcs is the image of row 1 again"):
        Particles.open(star(tmp_path / "p.star", ["1@a.mrc", "1@a.mrc:mrcs"]))


def test_a_selection_may_name_the_kind_or_not(tmp_path: Path) -> None:
    plain = star(tmp_path / "plain.star", [f"{i}@a.mrc" for i in (1, 2, 3)])
    kind = star(tmp_path / "kind.star", [f"{i:06d}@a.mrc:mrcs" for i in (3, 2)])
    assert named_rows(read_particle_table(plain), kind).tolist() == [1, 2]
    assert named_rows(read_particle_table(kind), star(tmp_path / "one.star", ["2@./a.mrc"])).tolist() == [1]


def test_a_selection_of_cryosparc_is_by_uid(tmp_path: Path) -> None:
    source = star(tmp_path / "p.star", [f"{i}@a.mrc" for i in (1, 2, 3)])
    convert(source, tmp_path / "p.cs", box=16, say=lambda line: None)
    convert(tmp_path / "p.cs", tmp_path / "q.star", say=lambda line: None)
    # RELION extracted the particles anew: the column csUid tells which they are
    lines = (tmp_path / "q.star").read_text().replace("@a.mrc", "@b.mrcs").splitlines()
    (tmp_path / "q.star").write_text("\n".join(line for line in lines if "000001@" not in line) + "\n")
    assert named_rows(read_particle_table(tmp_path / "p.cs"), tmp_path / "q.star").tolist() == [1, 2]
    with pytest.raises(InputError, match=r"q\.star: row 1: particle 2@b\.mrcs is not in .*p\.star"):
        named_rows(read_particle_table(source), tmp_path / "q.star")


def test_to_cryosparc_and_back(tmp_path: Path) -> None:
    stack(tmp_path / "a.mrc")
    source = star(tmp_path / "p.star", [f"{i}@a.mrc:mrcs" for i in (1, 2, 3)])
    # the box comes from the images, which are found
    convert(source, tmp_path / "p.cs", say=lambda line: None)
    fields = load_fields(tmp_path / "p.cs")
    assert set(fields["blob/path"].tolist()) == {b"a.mrc"} and fields["blob/idx"].tolist() == [0, 1, 2]
    assert (fields["blob/shape"] == 16).all()
    convert(tmp_path / "p.cs", tmp_path / "q.star", say=lambda line: None)
    assert list(read_particle_star(tmp_path / "q.star").particles["rlnImageName"]) == [f"00000{i}@a.mrc" for i in (1, 2, 3)]


def test_the_report_finds_images_of_the_project(tmp_path: Path) -> None:
    data = stack(tmp_path / "project/a.mrc")
    run = star(tmp_path / "elsewhere/run/poses.star", ["2@a.mrc:mrcs"]).parent
    (run / "config.yaml").write_text(f"project: {tmp_path / 'project'}\n")
    particles = read_run(run).particles
    assert particles is not None and np.array_equal(particles.images(slice(None)), data[[1]])
