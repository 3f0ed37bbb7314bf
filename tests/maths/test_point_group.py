"""Point groups: group laws, RELION's matrices, and symmetry copies of a rotation."""

import re
import subprocess

import pytest
import roma
import torch
from torch import Tensor

from ace_em.maths import point_group as module
from ace_em.maths.point_group import generators, in_asymmetric_unit, mirrored_axes, nearest_copy, point_group
from ace_em.maths.rotations import squared_frobenius

CYCLIC = [f"C{n}" for n in range(1, 8)]
DIHEDRAL = [f"D{n}" for n in range(1, 8)]
NAMES = [*CYCLIC, *DIHEDRAL, "T", "O", "I", "I1", "I2", "I3", "I4"]
EYE = torch.eye(3, dtype=torch.float64)


def order(name: str) -> int:
    if name[0] in "CD":
        return int(name[1:]) * (2 if name[0] == "D" else 1)
    return {"T": 12, "O": 24, "I": 60}[name[0]]


def same_set(a: Tensor, b: Tensor, atol: float = 1e-9) -> bool:
    """Whether two lists of distinct matrices are the same set."""
    close = (a[:, None] - b[None]).abs().amax((-1, -2)) < atol
    return a.shape == b.shape and bool((close.sum(0) == 1).all() and (close.sum(1) == 1).all())


def random_rotations(n: int, seed: int = 0) -> Tensor:
    return roma.random_rotmat(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_laws_of_a_group(name: str) -> None:
    group = point_group(name)
    assert group.shape == (order(name), 3, 3) and group.dtype == torch.float64
    assert torch.equal(group[0], EYE)
    assert (squared_frobenius(group[1:], EYE) > 1e-3).all()
    # proper rotations
    torch.testing.assert_close(group @ group.mT, EYE.expand_as(group), atol=1e-12, rtol=0)
    torch.testing.assert_close(torch.linalg.det(group), torch.ones(len(group), dtype=torch.float64))
    # closed: multiplication by an element permutes the group, as does inversion
    assert all(same_set(g @ group, group) for g in group)
    assert same_set(group.mT, group)


@pytest.mark.parametrize("name", NAMES)
def test_generators_are_members(name: str) -> None:
    steps, group = generators(name), point_group(name)
    assert len(steps) <= 2
    assert ((steps[:, None] - group[None]).abs().amax((-1, -2)).amin(1) < 1e-9).all()


@pytest.mark.relion
@pytest.mark.parametrize("name", NAMES)
def test_matrices_match_relion(name: str) -> None:
    done = subprocess.run(
        ["relion_refine", "--print_symmetry_ops", "--sym", name], capture_output=True, text=True, timeout=60, check=True
    )
    printed = re.findall(r"R\(\d+\)=\s*((?:\S+\s+){9})", done.stdout)
    theirs = torch.tensor([[float(x) for x in matrix.split()] for matrix in printed], dtype=torch.float64).view(-1, 3, 3)
    # printed with five digits or more
    assert same_set(theirs, point_group(name), atol=1e-4)


def test_axes_match_the_docstring() -> None:
    half_z, half_x = torch.diag(torch.tensor([-1.0, -1, 1])).double(), torch.diag(torch.tensor([1.0, -1, -1])).double()
    has = {name: (half_z, half_x) for name in ("D2", "D4", "O", "I1", "I2")} | {"D3": (half_x,), "C2": (half_z,)}
    for name, members in has.items():
        assert all(((point_group(name) - g).abs().amax((-1, -2)) < 1e-9).any() for g in members), name
    assert same_set(point_group("I"), point_group("I2"))
    assert same_set(half_z @ point_group("I3") @ half_z, point_group("I4"))
    for one, other in (("I1", "I2"), ("I2", "I3"), ("I3", "I4")):
        assert not same_set(point_group(one), point_group(other))


def test_name_in_either_case() -> None:
    for name in ("c7", "d2", "t", "o", "i", "i3"):
        assert torch.equal(point_group(name), point_group(name.upper()))
    assert len(point_group("C12")) == 12 and len(point_group("D12")) == 24


@pytest.mark.parametrize(
    "name", ["", "C", "C0", "C03", "C100", "C-2", "C2.5", "D", "D0", "X", "Cs", "Ci", "C2v", "Th", "I0", "I5"]
)
def test_unknown_names(name: str) -> None:
    with pytest.raises(ValueError, match="point group") as raised:
        point_group(name)
    message = str(raised.value)
    assert repr(name) in message and "expected C1" in message and "\n" not in message


@pytest.mark.parametrize("name", NAMES)
def test_asymmetric_unit_contains_one_rotation_per_orbit(name: str) -> None:
    group, rotation = point_group(name), random_rotations(500)
    assert torch.equal(in_asymmetric_unit(group[:, None] @ rotation, group).sum(0), torch.ones(500, dtype=torch.long))


@pytest.mark.parametrize("name", ["C1", "C2", "D7", "T", "O", "I"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fraction_of_rotations_in_the_asymmetric_unit(name: str, dtype: torch.dtype) -> None:
    share = in_asymmetric_unit(random_rotations(20000, 1).to(dtype), point_group(name)).double().mean().item()
    expected = 1 / order(name)
    # five standard deviations of a binomial
    assert abs(share - expected) <= 5 * (expected * (1 - expected) / 20000) ** 0.5


def test_blocks_do_not_change_the_asymmetric_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    rotation, group = random_rotations(60).view(3, 20, 3, 3), point_group("D3")
    whole = in_asymmetric_unit(rotation, group)
    assert whole.shape == (3, 20) and whole.dtype == torch.bool
    monkeypatch.setattr(module, "BLOCK", 7)
    assert torch.equal(in_asymmetric_unit(rotation, group), whole)


@pytest.mark.parametrize("name", ["C1", "C7", "D2", "T", "O", "I"])
def test_nearest_copy(name: str) -> None:
    group, rotation, reference = point_group(name), random_rotations(40), random_rotations(40, 1)
    nearest = nearest_copy(rotation, reference, group)
    # a member of the orbit, and no other is nearer
    distance = squared_frobenius(group[:, None] @ rotation, reference)
    torch.testing.assert_close(squared_frobenius(nearest, reference), distance.amin(0))
    assert (squared_frobenius(group[:, None] @ rotation, nearest).amin(0) < 1e-18).all()
    # a symmetry copy of the reference is mapped back to it
    torch.testing.assert_close(nearest_copy(group[-1] @ reference, reference, group), reference, atol=1e-12, rtol=0)


def test_nearest_copy_broadcasts_and_keeps_the_dtype() -> None:
    group, rotation, reference = point_group("D3"), random_rotations(5).float(), random_rotations(4, 1).float()
    nearest = nearest_copy(rotation, reference[:, None], group)
    assert nearest.shape == (4, 5, 3, 3) and nearest.dtype == torch.float32
    torch.testing.assert_close(nearest[2], nearest_copy(rotation, reference[2].expand(5, 3, 3), group))


@pytest.mark.parametrize("name", NAMES)
def test_mirrored_axes(name: str) -> None:
    turn, group = mirrored_axes(name), point_group(name)
    mirror = torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))
    torch.testing.assert_close(turn @ turn.mT, EYE)
    assert torch.linalg.det(turn).item() == pytest.approx(1)
    assert same_set(turn @ mirror @ group @ mirror @ turn.T, group)
    # the rotation is needed for these groups
    assert same_set(mirror @ group @ mirror, group) == torch.equal(turn, EYE)
    assert torch.equal(turn, EYE) == (name not in ("T", "I3", "I4"))
