"""Structures from every format, and error messages that name the file."""

import gc
import gzip
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from ace_em.errors import InputError
from ace_em.simulation.structure import Atoms, is_structure, read_structure

# take the mark away when read_structure refuses these files
STRUCTURES = Path(__file__).parents[2] / "../shared/data/structures"

# N, C, S, a hydrogen, and a water
PDB = """\
ATOM      1  N   MET A   1      10.000   0.000   0.000  1.00  0.00           N
ATOM      2  CA  MET A   1      11.500   0.000   0.000  1.00  0.00           C
ATOM      3  SD  MET A   1      11.500   4.000  -2.000  1.00  0.00           S
ATOM      4  HA  MET A   1      12.000   0.500   0.000  1.00  0.00           H
HETATM    5  O   HOH A   2      50.000  50.000  50.000  1.00  0.00           O
END
"""
CIF = """\
data_x
loop_
_atom_site.group_PDB
_atom_site.id
_atom_site.type_symbol
_atom_site.label_atom_id
_atom_site.label_alt_id
_atom_site.label_comp_id
_atom_site.label_asym_id
_atom_site.label_seq_id
_atom_site.Cartn_x
_atom_site.Cartn_y
_atom_site.Cartn_z
_atom_site.auth_seq_id
_atom_site.auth_asym_id
ATOM 1 N N . MET A 1 10.0 0.0 0.0 1 A
ATOM 2 C CA . MET A 1 11.5 0.0 0.0 1 A
ATOM 3 S SD . MET A 1 11.5 4.0 -2.0 1 A
ATOM 4 H HA . MET A 1 12.0 0.5 0.0 1 A
HETATM 5 O O . HOH B . 50.0 50.0 50.0 2 A
"""
COORDS = np.array([[10.0, 0, 0], [11.5, 0, 0], [11.5, 4, -2], [12, 0.5, 0]])
Z = np.array([7, 6, 16, 1])


def write(path: Path) -> Path:
    """The same four atoms in the format given by the file name."""
    if path.name.endswith(".gz"):
        path.write_bytes(gzip.compress((CIF if ".cif" in path.name else PDB).encode()))
    elif path.suffix == ".npz":
        np.savez(
            path,
            coords=np.round(COORDS * 10).astype(np.int16) if "int16" in path.name else COORDS.astype(np.float32),
            Z=Z.astype(np.uint8),
        )
    else:
        path.write_text(CIF if path.suffix in (".cif", ".mmcif") else PDB)
    return path


@pytest.mark.parametrize("name", ["a.pdb", "a.ent", "a.pdb.gz", "a.cif", "a.cif.gz", "a.mmcif", "a.npz", "a-int16.npz"])
def test_every_format_gives_the_same_atoms(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name)
    assert is_structure(path)
    atoms = read_structure(path)
    # hydrogen and water left out; about the centre of mass of Z
    heavy, weight = COORDS[:3], Z[:3].astype(float)
    centre = (heavy * weight[:, None]).sum(0) / weight.sum()
    torch.testing.assert_close(atoms.position_angstrom, torch.tensor(heavy - centre), atol=1e-6, rtol=0)
    torch.testing.assert_close(atoms.weight, torch.tensor(weight))
    assert len(atoms) == 3


def test_is_structure_goes_by_the_name() -> None:
    for name in ("a.PDB", "b.cif.gz", "c.npz"):
        assert is_structure(Path(name))
    for name in ("a.mrc", "pdb", "a.star", "a.pdb.txt"):
        assert not is_structure(Path(name))


def test_least_box_contains_every_orientation() -> None:
    """With one heavy end, the centre of mass is not in the middle."""
    atoms = Atoms(torch.tensor([[-10.0, 0, 0], [90.0, 0, 0]]), torch.tensor([9.0, 1.0]))
    assert atoms.least_box_angstrom == pytest.approx(180)


def bad_npz(folder: Path) -> dict[str, Path]:
    def saved(name: str, **arrays: np.ndarray) -> Path:
        np.savez(folder / name, **arrays)
        return folder / name

    good = saved("good.npz", coords=COORDS, Z=Z).read_bytes()
    cases = {
        "missing array": saved("missing.npz", xyz=COORDS, Z=Z),
        "coordinates of two columns": saved("columns.npz", coords=COORDS[:, :2], Z=Z),
        "lengths differ": saved("lengths.npz", coords=COORDS, Z=Z[:3]),
        "not numbers": saved("text.npz", coords=np.full((4, 3), "a"), Z=Z),
        "NaN": saved("nan.npz", coords=COORDS * np.nan, Z=Z),
        "only hydrogen": saved("hydrogen.npz", coords=COORDS, Z=np.ones(4, dtype=int)),
    }
    for name, content in {
        "empty": b"",
        "truncated": good[:200],
        "damaged": good[:100] + b"xxxxxxxxxx" + good[110:],
        "no zip": b"hello",
    }.items():
        cases[name] = folder / f"{name.replace(' ', '_')}.npz"
        cases[name].write_bytes(content)
    np.save(folder / "array.npy", COORDS)
    cases["an .npy by another name"] = (folder / "array.npy").rename(folder / "array.npz")
    return cases


NPZ_CASES = (
    "missing array", "only hydrogen", "no zip", "coordinates of two columns", "lengths differ", "not numbers", "NaN",
    "empty", "truncated", "damaged", "an .npy by another name",
)  # fmt: skip


def refusal(path: Path) -> str:
    """The message of the InputError, or any other exception."""
    with warnings.catch_warnings():
        # numpy leaves a bad zip open, and the exception's traceback holds it
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            read_structure(path)
            message = "was read"
        except InputError as error:
            message = str(error)
        except Exception as error:
            message = repr(error)
        gc.collect()
    return message


@pytest.mark.parametrize("what", NPZ_CASES)
def test_bad_npz_is_named(tmp_path: Path, what: str) -> None:
    path = bad_npz(tmp_path)[what]
    assert refusal(path).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("garbage.pdb", b"garbage\n"),
        ("garbage.cif", b"garbage\n"),
        ("binary.cif", bytes(range(256))),
        ("notgz.pdb.gz", b"garbage"),
        ("empty.pdb", b""),
        ("empty.cif", b""),
        ("noatoms.cif", b"data_x\n_cell.length_a 1\n"),
        ("hydrogen.pdb", PDB.splitlines()[3].encode()),
        ("water.pdb", PDB.splitlines()[4].encode()),
        ("unknown.xyz", b"1\n\nC 0 0 0\n"),
    ],
)
def test_bad_structure_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"^{tmp_path / name}: "):
        read_structure(tmp_path / name)


@pytest.mark.parametrize("kept", [0.25, 0.5, 0.75, 0.9])
def test_truncated_gz_is_named(tmp_path: Path, kept: float) -> None:
    """A truncated download must raise an error, wherever it is cut, and not return part of the atoms."""
    generator = np.random.default_rng(0)
    lines = [f"ATOM  {i:5d}  CA  ALA A{i:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00           C" for i, (x, y, z) in
             enumerate(generator.uniform(-99, 99, (400, 3)), 1)]  # fmt: skip
    whole = gzip.compress("\n".join(lines).encode())
    for extra in range(0, 40, 4):
        (tmp_path / "cut.pdb.gz").write_bytes(whole[: int(kept * len(whole)) + extra])
        with pytest.raises(InputError, match="cut.pdb.gz: "):
            read_structure(tmp_path / "cut.pdb.gz")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pdb", tmp_path):
        with pytest.raises(InputError, match=f"^{path}: no such file"):
            read_structure(path)


@pytest.mark.skipif(not STRUCTURES.is_dir(), reason=f"{STRUCTURES} is absent")
@pytest.mark.parametrize("name", ["6vyb.pdb.gz", "5ni1.cif", "5nrl.npz"])
def test_structures_of_the_papers(name: str) -> None:
    atoms = read_structure(STRUCTURES / name)
    assert len(atoms) > 3000 and atoms.position_angstrom.shape == (len(atoms), 3)
    assert 6 <= atoms.weight.min() and atoms.weight.max() < 93
    centre = (atoms.position_angstrom * atoms.weight[:, None]).sum(0) / atoms.weight.sum()
    torch.testing.assert_close(centre, torch.zeros(3, dtype=torch.float64), atol=1e-6, rtol=0)
    assert 40 < atoms.least_box_angstrom < 500
    # bonded neighbours are 1.2 to 1.6 Angstrom apart: coordinates are in Angstrom
    near = torch.cdist(atoms.position_angstrom[:500], atoms.position_angstrom)
    near = near.masked_fill(near < 1e-9, 99).min(1).values
    assert 1.1 < near.median() < 1.7
