"""cryoSPARC's conventions against formulas and programs from outside, and what is read, joined, changed and refused."""

import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from ace_em.data.particles import Particles, ctf_parameters, pixel_size_of, star_poses
from ace_em.errors import InputError
from ace_em.io.cryosparc import load_fields, read_cryosparc, save_fields, write_cryosparc
from ace_em.io.mrc import StackWriter, read_volume
from ace_em.io.particle_table import ignored_aberrations, not_in_the_model, numeric_column
from ace_em.io.star import with_poses, write_star

SHARED = Path(__file__).parents[2] / "../shared/data"
SEVEN = SHARED / "particles/empiar10076_7"
needs_shared = pytest.mark.skipif(not SEVEN.exists(), reason=f"{SHARED} is absent")
Fields = dict[str, np.ndarray]
Make = Callable[..., Fields]


def saved(path: Path, fields: Fields) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_fields(path, fields)
    return path


# --- conventions --------------------------------------------------------------------------------------------------------------


def cryodrgn_from_csparc(pose: np.ndarray) -> np.ndarray:
    """cryodrgn/commands/parse_pose_csparc.py: Rodrigues' formula (lie_tools.expmap), then the transpose."""
    angle = np.linalg.norm(pose)
    x, y, z = pose / angle
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return (np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k).T


def cryodrgn_from_relion(rot: float, tilt: float, psi: float) -> np.ndarray:
    """cryodrgn/utils.py, R_from_relion: Ry Rb Ra, with the sign of four elements turned."""
    a, b, y = np.deg2rad([rot, tilt, psi])
    ra = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    rb = np.array([[np.cos(b), 0, -np.sin(b)], [0, 1, 0], [np.sin(b), 0, np.cos(b)]])
    ry = np.array([[np.cos(y), -np.sin(y), 0], [np.sin(y), np.cos(y), 0], [0, 0, 1]])
    done = ry @ rb @ ra
    for i, j in ((0, 1), (1, 0), (1, 2), (2, 1)):
        done[i, j] *= -1
    return done


def test_poses_are_those_that_cryodrgn_reads_from_either_format(make_fields: Make, tmp_path: Path) -> None:
    fields = make_fields(40)
    # the poles of RELION's angles too: turns about z, and by pi about x
    fields["alignments3D/pose"][:4] = [[0, 0, 1.2], [0, 0, -3], [np.pi, 0, 0], [1e-4, 0, 0]]
    table = read_cryosparc(saved(tmp_path / "p.cs", fields))
    angles = [numeric_column(table, name) for name in ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")]
    for i, pose in enumerate(fields["alignments3D/pose"].astype(float)):
        by_relion = cryodrgn_from_relion(*(angle[i] for angle in angles))
        np.testing.assert_allclose(by_relion, cryodrgn_from_csparc(pose), atol=2e-7)
    # their translations: shift / D of one, origin / D of the other
    origin = np.stack([numeric_column(table, f"rlnOrigin{axis}Angst") for axis in "XY"], axis=1)
    np.testing.assert_allclose(origin / 2.69, fields["alignments3D/shift"], atol=1e-6)
    # ours is the transpose of cryoDRGN's rotation, RELION's too, and is scipy's
    pose = star_poses(table, pixel_size_of(table))
    assert pose is not None
    np.testing.assert_allclose(pose.rotation, Rotation.from_rotvec(fields["alignments3D/pose"]).as_matrix(), atol=1e-6)
    # content moves by minus the origin, in pixels of the images: half as large as those of the alignment
    np.testing.assert_allclose(pose.shift_px.flip(1), -2 * fields["alignments3D/shift"], rtol=1e-5, atol=1e-5)


@needs_shared
def test_star_and_cs_of_the_same_images_agree() -> None:
    star, cs = Particles.open(SEVEN / "empiar_10076_7.star"), Particles.open(SEVEN / "empiar_10076_7.cs")
    for name, values in vars(star.ctf).items():
        torch.testing.assert_close(getattr(cs.ctf, name), values, rtol=1e-6, atol=1e-5)
    assert cs.pixel_size_angstrom == pytest.approx(star.pixel_size_angstrom, rel=1e-6)
    assert np.array_equal(star.images(slice(None)), cs.images(slice(None)))
    assert star.sign_on_disk is None and cs.sign_on_disk == -1 and cs.half_sets() is None


@pytest.mark.relion
def test_relion_reconstructs_from_a_converted_file(make_fields: Make, tmp_path: Path) -> None:
    from ace_em.maths.half_plane import HalfPlane
    from ace_em.metrics.fsc import fourier_shell_correlation
    from ace_em.physics.imaging import shift_phase
    from ace_em.simulation.density import density_map, project_atoms
    from ace_em.simulation.structure import Atoms

    box, n, pixel, generator = 32, 800, 2.5, torch.Generator().manual_seed(0)
    position = torch.randn(100, 3, generator=generator, dtype=torch.float64).clamp(-2, 2) * torch.tensor([9.0, 7.0, 5.0])
    atoms = Atoms(position, torch.ones(100, dtype=torch.float64))
    fields = make_fields(n)
    fields["blob/path"], fields["blob/shape"] = np.array([b">J1/imported/a.mrcs"] * n), np.full((n, 2), box, "<u4")
    fields["blob/psize_A"], fields["alignments3D/psize_A"] = np.full((2, n), pixel, "<f4")
    turns = Rotation.random(n, rng=0)
    fields["alignments3D/pose"], fields["alignments3D/shift"][:] = (
        turns.as_rotvec().astype("<f4"),
        fields["alignments3D/shift"] / 4,
    )
    plane, rotation = HalfPlane.within(box), torch.tensor(turns.as_matrix())
    shift = torch.tensor(-fields["alignments3D/shift"][:, ::-1].copy())
    images = plane.to_image(plane.gather(project_atoms(atoms, rotation, box, pixel, 7.0)) * shift_phase(plane, shift))
    (tmp_path / "P/J1/imported").mkdir(parents=True)
    with StackWriter(tmp_path / "P/J1/imported/a.mrcs", tuple(images.shape), pixel) as writer:
        writer.write(images.numpy().astype(np.float32))
    particles = Particles.open(saved(tmp_path / "P/J5/p.cs", fields))
    # the project's folder is above the file's, as cryoSPARC has it
    assert particles.stack_paths == (tmp_path / "P/J1/imported/a.mrcs",) and particles.sign_on_disk == -1
    write_star(tmp_path / "P/p.star", particles.table)
    done = subprocess.run(
        ["relion_reconstruct", "--i", "p.star", "--o", "map.mrc"], cwd=tmp_path / "P", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    volume = torch.tensor(read_volume(tmp_path / "P/map.mrc")[0])
    truth = density_map(atoms, box, pixel, 7.0)
    assert fourier_shell_correlation(volume, truth)[1:13].min() > 0.95
    assert fourier_shell_correlation(volume, truth.flip(0).roll(1, 0))[6:13].max() < 0.7


def test_every_mapped_field(make_fields: Make, tmp_path: Path) -> None:
    fields = make_fields(3) | {
        "ctf/phase_shift_rad": np.full(3, np.pi / 2, "<f4"),
        "location/micrograph_path": np.array([b">J1/imported/m.mrc"] * 3),
        "location/micrograph_shape": np.array([[3000, 4000]] * 3, "<u4"),
        "location/center_x_frac": np.array([0, 0.25, 1], "<f4"),
        "location/center_y_frac": np.array([0, 0.25, 1], "<f4"),
        "alignments3D/class": np.array([0, 1, 4], "<u4"),
    }
    table = read_cryosparc(saved(tmp_path / "p.cs", fields))
    cells = table.particles.to_dict("list")
    assert cells["rlnImageName"] == [f"00000{i + 1}@J1/imported/{i}.mrc" for i in range(3)]
    assert cells["rlnRandomSubset"] == ["1", "2", "1"] and cells["rlnClassNumber"] == ["1", "2", "5"]
    assert cells["csUid"] == [str(uid) for uid in fields["uid"]]
    # the lower left corner is RELION's last row
    assert (
        cells["rlnCoordinateX"] == ["0.0000", "1000.0000", "4000.0000"]
        and cells["rlnMicrographName"] == ["J1/imported/m.mrc"] * 3
    )
    assert cells["rlnCoordinateY"] == ["3000.0000", "2250.0000", "0.0000"]
    ctf = ctf_parameters(table)
    assert np.array_equal(ctf.defocus_u_angstrom, fields["ctf/df1_A"]) and np.array_equal(ctf.voltage_kv, fields["ctf/accel_kv"])
    np.testing.assert_allclose(ctf.defocus_angle_deg, np.rad2deg(fields["ctf/df_angle_rad"]), rtol=1e-6)
    assert ctf.phase_shift_deg.tolist() == pytest.approx([90] * 3)
    assert table.optics is not None and table.optics.to_dict("records") == [
        {
            "rlnOpticsGroup": "1", "rlnOpticsGroupName": "exp_group_23", "rlnVoltage": "300.0", "rlnSphericalAberration": "2.7",
            "rlnAmplitudeContrast": "0.1", "rlnImagePixelSize": "1.3450001", "rlnImageSize": "64", "rlnImageDimensionality": "2",
        }
    ]  # fmt: skip


def test_optics_groups_differ_where_their_values_do(make_fields: Make, tmp_path: Path) -> None:
    fields = make_fields(5, poses=False)
    fields["ctf/exp_group_id"] = np.array([7, 7, 2, 2, 2], "<u4")
    fields["ctf/accel_kv"] = np.array([300, 300, 300, 200, 200], "<f4")
    table = read_cryosparc(saved(tmp_path / "p.cs", fields))
    assert table.optics is not None and table.optics["rlnOpticsGroupName"].tolist() == [
        "exp_group_2",
        "exp_group_2_2",
        "exp_group_7",
    ]
    assert table.particles["rlnOpticsGroup"].tolist() == ["3", "3", "2", "1", "1"]
    assert numeric_column(table, "rlnVoltage").tolist() == [300, 300, 300, 200, 200]


def test_two_dimensional_alignments_are_no_poses_and_one_half_is_no_half_set(make_fields: Make, tmp_path: Path) -> None:
    fields = make_fields(4)
    fields["alignments3D/split"][:] = 1
    table = read_cryosparc(saved(tmp_path / "a.cs", fields))
    assert "rlnRandomSubset" not in table.particles and star_poses(table, 1.0) is not None
    fields = make_fields(4, poses=False) | {
        "alignments2D/pose": np.ones(4, "<f4"),
        "alignments3D_multi/pose": np.ones((4, 2, 3), "<f4"),
    }
    table = read_cryosparc(saved(tmp_path / "b.cs", fields))
    assert not any("Angle" in name and "Defocus" not in name for name in table.particles)


def test_aberrations_that_are_not_zero_are_named(make_fields: Make, tmp_path: Path) -> None:
    fields = make_fields(3)
    assert ignored_aberrations(read_cryosparc(saved(tmp_path / "a.cs", fields))) == []
    fields["ctf/tilt_A"][1, 0] = 0.1
    table = read_cryosparc(saved(tmp_path / "b.cs", fields))
    assert ignored_aberrations(table) == ["ctf/tilt_A"]
    optics = table.optics.assign(rlnBeamTiltX="0.000", rlnBeamTiltY="-0.1", rlnOddZernike="[0,0,0]", rlnEvenZernike="[0,1e-3]")
    optics = optics.assign(rlnMagMat00="1.000", rlnMagMat01="0.000", rlnMagMat11="1.01")
    found = ignored_aberrations(replace(table, optics=optics, cryosparc=None))
    assert found == ["rlnBeamTiltY", "rlnEvenZernike", "rlnMagMat11"]
    # converted, but not in the CTF here
    assert not_in_the_model(read_cryosparc(saved(tmp_path / "c.cs", fields))) == ["ctf/tilt_A"]
    fields["ctf/bfactor"][:], fields["ctf/scale"][1] = 40, 0.9
    table = read_cryosparc(saved(tmp_path / "d.cs", fields))
    assert not_in_the_model(table) == ["ctf/tilt_A", "ctf/bfactor", "ctf/scale"] and ignored_aberrations(table) == ["ctf/tilt_A"]


# --- cryoSPARC's own library --------------------------------------------------------------------------------------------------


def test_cryosparc_tools_reads_what_is_written_and_its_stream_is_read(make_fields: Make, tmp_path: Path) -> None:
    from cryosparc.dataset import CSDAT_FORMAT, Dataset

    fields = make_fields(9)
    theirs = Dataset.load(saved(tmp_path / "p.cs", fields))
    assert list(theirs) == list(fields)
    for name in fields:
        want = [value.decode() for value in fields[name]] if fields[name].dtype.kind == "S" else fields[name]
        assert np.array_equal(theirs[name], want), name
    theirs.save(tmp_path / "stream.cs", format=CSDAT_FORMAT)
    assert (tmp_path / "stream.cs").read_bytes()[:6] == b"\x95CSDAT"
    assert read_cryosparc(tmp_path / "stream.cs").particles.equals(read_cryosparc(tmp_path / "p.cs").particles)
    # a file of ours that it saves again is the same file
    table = replace(read_cryosparc(tmp_path / "p.cs"), cryosparc=None)
    write_cryosparc(tmp_path / "new.cs", table)
    Dataset.load(tmp_path / "new.cs").save(tmp_path / "again.cs")
    assert (tmp_path / "again.cs").read_bytes() == (tmp_path / "new.cs").read_bytes()


def test_a_damaged_stream_is_refused_though_it_ends_cryosparc_tools(make_fields: Make, tmp_path: Path) -> None:
    from cryosparc.dataset import CSDAT_FORMAT, Dataset

    Dataset.load(saved(tmp_path / "p.cs", make_fields(2000))).save(tmp_path / "stream.cs", format=CSDAT_FORMAT)
    whole = (tmp_path / "stream.cs").read_bytes()
    codes = []
    for size in (900, len(whole) // 2):
        (tmp_path / "cut.cs").write_bytes(whole[:size])
        code = "import sys; from cryosparc.dataset import Dataset; Dataset.load(sys.argv[1])"
        codes.append(subprocess.run([sys.executable, "-c", code, tmp_path / "cut.cs"], capture_output=True).returncode)
        with pytest.raises(InputError, match=r"cut\.cs: damaged or truncated"):
            read_cryosparc(tmp_path / "cut.cs")
    # in version 5.0.3 the second is a segmentation fault, which is what the process of its own is for
    assert all(codes)


def test_a_stream_without_cryosparc_tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "cryosparc.dataset", None)
    (tmp_path / "p.cs").write_bytes(b"\x95CSDAT1234")
    with pytest.raises(
        InputError, match=r"p\.cs: reading cryoSPARC files needs cryosparc-tools: pip install 'ace-em\[cryosparc\]'"
    ):
        read_cryosparc(tmp_path / "p.cs")


# --- passthrough files --------------------------------------------------------------------------------------------------------


def split_in_two(fields: Fields, rows: np.ndarray) -> tuple[Fields, Fields]:
    """What a job writes (poses) and what it passes through (images and CTF, here of ``rows``)."""
    own = {name: values for name, values in fields.items() if name == "uid" or name.startswith("alignments3D/")}
    return own, {name: values[rows] for name, values in fields.items() if name == "uid" or name not in own}


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("cryosparc_P1_J2_003_particles.cs", "cryosparc_P1_J2_passthrough_particles.cs"),
        ("P1_J2_003_particles.cs", "P1_J2_passthrough_particles_class_0.cs"),
        ("J2_003_particles.cs", "J2_passthrough_particles.cs"),
    ],
)
def test_passthrough_is_joined_by_uid(make_fields: Make, tmp_path: Path, name: str, other: str) -> None:
    fields, rows = make_fields(12), np.random.default_rng(1).permutation(12)
    own, passed = split_in_two(make_fields(12), rows)
    own = {field: values[:8] for field, values in own.items()}
    passed["alignments3D/class"] = np.full(12, 9, "<u4")  # of an earlier job: the file's own wins
    passthrough = saved(tmp_path / "elsewhere" / other, passed)
    main = saved(tmp_path / "J2" / name, own)
    with pytest.raises(InputError, match=r"has no blob/\.\.\. and ctf/\.\.\. fields; give the job's passthrough file"):
        read_cryosparc(main)
    table = read_cryosparc(main, [passthrough])
    assert table.cryosparc is not None and set(table.cryosparc) == set(fields)
    assert all(np.array_equal(table.cryosparc[field], fields[field][:8]) for field in fields)
    # beside the file it is found without being named; one of another job, or of other particles, is not taken
    saved(tmp_path / "J2" / other.replace("J2", "J3"), passed)
    saved(
        tmp_path / "J2" / other.replace("passthrough", "a_passthrough"), {field: values[:4] for field, values in passed.items()}
    )
    with pytest.raises(InputError, match=r"has no blob.*\(in the same folder, .*a_passthrough.*\.cs: lacks"):
        read_cryosparc(main)
    saved(tmp_path / "J2" / other, passed)
    assert read_cryosparc(main).particles.equals(table.particles)


def test_passthrough_that_does_not_fit(make_fields: Make, tmp_path: Path) -> None:
    own, passed = split_in_two(make_fields(6), np.array([5, 0, 1, 2]))
    main, other = saved(tmp_path / "p.cs", own), saved(tmp_path / "o.cs", passed)
    uid = own["uid"][3]
    with pytest.raises(InputError, match=rf"o\.cs: lacks 2 of 6 particles of .*p\.cs, such as uid {uid} of row 4"):
        read_cryosparc(main, [other])
    own, passed = split_in_two(make_fields(6), np.array([0, 1, 2, 3, 4, 5, 1]))
    uid = own["uid"][1]
    with pytest.raises(InputError, match=rf"o\.cs: uid {uid} is in row 2 and in row 7"):
        read_cryosparc(main, [saved(tmp_path / "o.cs", passed)])
    # half of a group is not made up for: it is named
    fields = make_fields(3)
    del fields["ctf/cs_mm"], fields["ctf/df1_A"]
    with pytest.raises(InputError, match=r"p\.cs: missing fields ctf/cs_mm, ctf/df1_A"):
        read_cryosparc(saved(tmp_path / "p.cs", fields))


def test_no_particles_at_all_can_be_written(make_fields: Make, tmp_path: Path) -> None:
    """Of a poor run none may be confident."""
    table = read_cryosparc(saved(tmp_path / "p.cs", make_fields(4))).rows(np.zeros(4, dtype=bool))
    write_star(tmp_path / "none.star", table)
    write_cryosparc(tmp_path / "none.cs", table)
    assert "data_particles" in (tmp_path / "none.star").read_text()
    records = np.load(tmp_path / "none.cs", allow_pickle=False)
    assert len(records) == 0 and "alignments3D/pose" in records.dtype.names
    with pytest.raises(InputError, match="contains no particles"):
        load_fields(tmp_path / "none.cs")


# --- changes ------------------------------------------------------------------------------------------------------------------


def test_new_poses_change_the_pose_fields_and_no_others(make_fields: Make, tmp_path: Path) -> None:
    fields, n = make_fields(40), 10
    table = read_cryosparc(saved(tmp_path / "p.cs", fields))
    angles = np.random.default_rng(1).uniform(0, 180, (40, 3))
    origin = np.random.default_rng(2).uniform(-9, 9, (40, 2))
    new = with_poses(table, angles, origin, None, pixel_size_of(table))
    # all but the first ten keep the pose they had, bit for bit
    new.particles.iloc[n:] = table.particles.iloc[n:]
    write_cryosparc(tmp_path / "n.cs", new)
    found = load_fields(tmp_path / "n.cs")
    changed = {name for name in fields if found[name].tobytes() != fields[name].tobytes()}
    assert list(found) == list(fields) and changed == {"alignments3D/pose", "alignments3D/shift"}
    for name in changed:
        assert found[name].dtype == "<f4" and found[name][n:].tobytes() == fields[name][n:].tobytes()
    back = star_poses(read_cryosparc(tmp_path / "n.cs"), 1.0)
    want = star_poses(new, 1.0)
    assert back is not None and want is not None
    torch.testing.assert_close(back.rotation, want.rotation, atol=2e-6, rtol=0)
    torch.testing.assert_close(back.shift_px, want.shift_px, atol=1e-5, rtol=0)


def test_first_poses_and_half_sets_of_particles_without(make_fields: Make, tmp_path: Path) -> None:
    fields = make_fields(4, poses=False)
    table = read_cryosparc(saved(tmp_path / "p.cs", fields))
    half = np.array([1, 2, 2, 1])
    write_cryosparc(
        tmp_path / "n.cs", with_poses(table, np.full((4, 3), 30.0), np.full((4, 2), 2.69), half, pixel_size_of(table))
    )
    found = load_fields(tmp_path / "n.cs")
    assert all(found[name].tobytes() == fields[name].tobytes() for name in fields)
    assert found["alignments3D/split"].tolist() == [0, 1, 1, 0] and found["alignments3D/class_posterior"].tolist() == [1.0] * 4
    np.testing.assert_allclose(found["alignments3D/shift"], 2, rtol=1e-6)  # pixels of alignments3D/psize_A
    np.testing.assert_array_equal(found["alignments3D/psize_A"], fields["blob/psize_A"])
    rotation = Rotation.from_euler("ZYZ", [30, 30, 30], degrees=True)
    np.testing.assert_allclose(found["alignments3D/pose"], np.tile(rotation.as_rotvec(), (4, 1)), atol=1e-6)


@pytest.mark.parametrize(
    ("column", "text", "field", "value"),
    [
        ("rlnDefocusU", "12345.5", "ctf/df1_A", 12345.5),
        ("rlnPhaseShift", "90", "ctf/phase_shift_rad", np.pi / 2),
        ("rlnImageName", "7@new/folder/of/longer/name.mrcs", "blob/path", b"new/folder/of/longer/name.mrcs"),
        ("rlnRandomSubset", "1", "alignments3D/split", 0),
        ("rlnClassNumber", "3", "alignments3D/class", 2),
    ],
)
def test_a_changed_cell_changes_its_own(
    make_fields: Make, tmp_path: Path, column: str, text: str, field: str, value: object
) -> None:
    fields = make_fields(5)
    table = read_cryosparc(saved(tmp_path / "p.cs", fields))
    table.particles.loc[3, column] = text
    write_cryosparc(tmp_path / "n.cs", table)
    found = load_fields(tmp_path / "n.cs")
    assert found[field][3] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value)
    fields[field] = fields[field].astype(found[field].dtype)
    fields[field][3] = found[field][3]
    if column == "rlnImageName":
        fields["blob/idx"][3] = 6
    assert all(found[name].tobytes() == fields[name].tobytes() for name in fields)


def test_rows_keep_their_fields_and_a_particle_taken_twice_gets_a_uid_of_its_own(make_fields: Make, tmp_path: Path) -> None:
    fields = make_fields(6)
    fields["ctf/exp_group_id"] = np.array([4, 4, 4, 9, 9, 9], "<u4")
    table = read_cryosparc(saved(tmp_path / "p.cs", fields)).rows(np.array([5, 3]))
    write_cryosparc(tmp_path / "n.cs", table)
    found = load_fields(tmp_path / "n.cs")
    assert list(found) == list(fields) and all(np.array_equal(found[name], fields[name][[5, 3]]) for name in fields)
    twice = read_cryosparc(tmp_path / "p.cs").rows(np.array([2, 2, 0]))
    write_cryosparc(tmp_path / "n.cs", twice)
    uid = load_fields(tmp_path / "n.cs")["uid"]
    assert uid[[0, 2]].tolist() == fields["uid"][[2, 0]].tolist() and uid[1] not in fields["uid"]


# --- refusals -----------------------------------------------------------------------------------------------------------------


def changed(name: str, values: np.ndarray | None) -> Callable[[Fields], None]:
    return lambda fields: fields.pop(name, None) if values is None else fields.__setitem__(name, values)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            changed("alignments3D/pose", np.ones((3, 2), "<f4")),
            r"field alignments3D/pose has type <f4 of shape \(2,\), expected .*3 per",
        ),
        (
            changed("ctf/df1_A", np.ones((3, 1), "<f4")),
            r"field ctf/df1_A has type .* expected floating-point numbers, one per particle",
        ),
        (changed("ctf/df1_A", np.array([1, np.nan, 2], "<f4")), "row 2, field ctf/df1_A: nan, expected a finite number"),
        (changed("ctf/df_angle_rad", np.array([1, 2, np.inf], "<f4")), "row 3, field ctf/df_angle_rad: inf"),
        (changed("alignments3D/shift", np.array([[1, 1], [1, np.nan], [0, 0]], "<f4")), "row 2, field alignments3D/shift"),
        (changed("blob/psize_A", np.array([1, 0, 1], "<f4")), "row 2, field blob/psize_A: 0.0, expected a finite number above 0"),
        (
            changed("blob/shape", np.array([[64, 64], [64, 60], [64, 64]], "<u4")),
            r"row 2, field blob/shape: \[64 60\], .* equal along both axes",
        ),
        (changed("alignments3D/split", np.array([0, 1, 2], "<u4")), "row 3, field alignments3D/split: 2, expected 0 or 1"),
        (changed("blob/path", np.arange(3, dtype="<u4")), "field blob/path has type <u4, expected text"),
        (changed("blob/idx", np.array([b"1"] * 3)), r"field blob/idx has type \|S1, expected integers"),
        (changed("blob/idx", None), "missing fields blob/idx"),
        (changed("uid", np.array([1, 2, 1], "<u8")), "uid 1 is in row 1 and in row 3"),
        (changed("uid", np.array([1, 2, 1], "<f8")), "field uid has type float64"),
    ],
)
def test_fields_that_are_wrong(make_fields: Make, tmp_path: Path, change: Callable[[Fields], None], message: str) -> None:
    fields = make_fields(3)
    change(fields)
    with pytest.raises(InputError, match=message) as caught:
        read_cryosparc(saved(tmp_path / "p.cs", fields))
    assert str(tmp_path / "p.cs") in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "values", "message"),
    [
        ("ctf/df1_A", [1.5, 1.6, 1.4], r"field ctf/df1_A: median 1\.5 \(row 1 has 1\.5\), expected Angstrom"),
        ("ctf/df2_A", [15000, 1.6, 14000], r"row 2, field ctf/df2_A: 1\.6, expected Angstrom"),
        ("ctf/accel_kv", [300, 300, 300000], r"row 3, field ctf/accel_kv: 300000, expected 10 to 5000 kV"),
        ("blob/path", [b"a.mrcs", b"no.mrcs", b"a.mrcs"], r"row 2, field blob/path: images no\.mrcs not found"),
        ("blob/idx", [0, 1, 7], r"row 3, field blob/path: image 8 of .*a\.mrcs, which contains 3"),
    ],
)
def test_values_that_are_wrong_are_named_as_cryosparc_names_them(
    make_fields: Make, tmp_path: Path, field: str, values: list[object], message: str
) -> None:
    fields = make_fields(3)
    with StackWriter(tmp_path / "a.mrcs", (3, 64, 64), 1.0) as stack:
        stack.write(np.random.default_rng(0).normal(size=(3, 64, 64)))
    fields |= {"blob/path": np.array([b"a.mrcs"] * 3), "blob/idx": np.arange(3, dtype="<u4")}
    Particles.open(saved(tmp_path / "good.cs", fields))
    fields[field] = np.array(values, dtype=None if field == "blob/path" else fields[field].dtype)
    with pytest.raises(InputError, match=message):
        Particles.open(saved(tmp_path / "p.cs", fields))


def numpy_file(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


GOOD = np.zeros(50, dtype=[("uid", "<u8"), ("blob/path", "S10")])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a cryoSPARC .cs file"),
        (b"data_\nloop_\n", "not a cryoSPARC .cs file"),
        (pickle.dumps({"uid": [1]}), "not a cryoSPARC .cs file"),
        (numpy_file(np.arange(3)), "no field uid"),
        (numpy_file(GOOD[["blob/path"]]), "no field uid"),
        (numpy_file(GOOD[:0]), "contains no particles"),
        (numpy_file(np.array([(1, "a")], dtype=[("uid", "<u8"), ("x", "O")])), "contains pickled Python objects"),
        (numpy_file(np.array([(1, (2,))], dtype=[("uid", "<u8"), ("x", [("y", "<u4")])])), "field x has type"),
        (numpy_file(GOOD)[:700], r"damaged or truncated \(700 bytes\), expected a complete cryoSPARC file$"),
        (numpy_file(GOOD)[:40], "damaged or truncated"),
        (numpy_file(GOOD).replace(b"'<u8'", b"(((((", 1), "damaged or truncated"),
        (numpy_file(GOOD).replace(b"(50,)", b"(9" + b"0" * 2 + b"(", 1), "damaged or truncated"),
        (b"\x95CSDAT", "damaged or truncated"),
        (b"\x95CSDAT\x05\x00\x00\x00{...}", "damaged or truncated"),
    ],
)
def test_files_that_are_wrong(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "p.cs").write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_cryosparc(tmp_path / "p.cs")
    assert str(tmp_path / "p.cs") in str(caught.value) and "\n" not in str(caught.value)


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "none.cs", "no such file"), (tmp_path, "is not a file")):
        with pytest.raises(InputError, match=message):
            read_cryosparc(path)
