"""A .cs file as cryoSPARC's refinements write it, of random particles."""

from collections.abc import Callable

import numpy as np
import pytest

Fields = dict[str, np.ndarray]


def cs_fields(n: int, seed: int = 0, poses: bool = True) -> Fields:
    rng = np.random.default_rng(seed)

    def column(low: float, high: float, *shape: int) -> np.ndarray:
        return rng.uniform(low, high, (n, *shape)).astype("<f4")

    constant = {
        "accel_kv": 300,
        "cs_mm": 2.7,
        "amp_contrast": 0.1,
        "phase_shift_rad": 0,
        "scale": 1,
        "scale_const": 0,
        "bfactor": 0,
    }
    fields: Fields = {
        "uid": rng.permutation(np.arange(1, n + 1, dtype="<u8") * 1234567890123457),
        "blob/path": np.array([f">J1/imported/{i % 3}.mrc" for i in range(n)], dtype="S22"),
        "blob/idx": np.arange(n, dtype="<u4"),
        "blob/shape": np.full((n, 2), 64, "<u4"),
        "blob/psize_A": np.full(n, 1.3450001, "<f4"),
        "blob/sign": np.full(n, -1, "<f4"),
        "blob/import_sig": rng.integers(0, 2**63, n, dtype="<u8"),
        "ctf/type": np.array([b"spline"] * n),
        "ctf/exp_group_id": np.full(n, 23, "<u4"),
        "ctf/df1_A": column(9e3, 2e4),
        "ctf/df2_A": column(9e3, 2e4),
        "ctf/df_angle_rad": column(-2, 5),
        "ctf/tilt_A": np.zeros((n, 2), "<f4"),
    }
    fields |= {f"ctf/{name}": np.full(n, value, "<f4") for name, value in constant.items()}
    if poses:
        fields |= {
            "alignments3D/split": np.arange(n, dtype="<u4") % 2,
            "alignments3D/shift": column(-8, 8, 2),
            "alignments3D/pose": column(-2, 2, 3),
            "alignments3D/psize_A": np.full(n, 2.69, "<f4"),
            "alignments3D/error": column(0, 1e4),
            "alignments3D/class": np.zeros(n, "<u4"),
        }
    return fields


@pytest.fixture(scope="session")
def make_fields() -> Callable[..., Fields]:
    return cs_fields
