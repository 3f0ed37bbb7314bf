"""Files that name particles: what is wrong with them is said in the user's words."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ace_em.data.select import named_rows
from ace_em.errors import InputError
from ace_em.io.particle_table import ParticleTable

TABLE = ParticleTable(Path("p.star"), None, pd.DataFrame({"rlnImageName": [f"{i}@a.mrcs" for i in range(1, 6)]}, dtype=str))


def npy(array: np.ndarray, allow_pickle: bool = True) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=allow_pickle)
    return file.getvalue()


@pytest.mark.parametrize("array", [np.array([4, 0]), np.array([True, False, False, False, True])])
def test_an_array_of_indices_or_of_one_bool_each(tmp_path: Path, array: np.ndarray) -> None:
    (tmp_path / "keep.npy").write_bytes(npy(array))
    assert sorted(named_rows(TABLE, tmp_path / "keep.npy").tolist()) == [0, 4]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1 2 3\n",
        npy(np.arange(5))[:140],
        npy(np.array([1, "a"], dtype=object)),
        npy(np.arange(5)).replace(b"'<i8'", b"(((((", 1),
        b"PK\3\4 no archive",
    ],
)
def test_what_is_no_array_is_refused_in_the_users_words(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "keep.npy").write_bytes(content)
    with pytest.raises(InputError) as caught:
        named_rows(TABLE, tmp_path / "keep.npy")
    expected = "not a NumPy array of indices, expected a file written by numpy.save"
    assert str(caught.value) == f"{tmp_path / 'keep.npy'}: {expected}"
