"""Readers given noise and spoilt files: what is wrong is an InputError, never another exception, and never a hang.

``ACE_EM_FUZZ_EXAMPLES=5000 pytest tests/io/test_fuzz.py`` looks longer.
"""

import io
import os
import re
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ace_em.data.particles import ctf_parameters, pixel_size_of, star_poses
from ace_em.errors import InputError
from ace_em.io.mrc import read_images, read_volume, stack_shape
from ace_em.io.particle_table import read_particle_table

EXAMPLES = int(os.environ.get("ACE_EM_FUZZ_EXAMPLES", "30"))
fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    print_blob=True,
    derandomize=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)
STAR = b"""
# version 30001

data_optics

loop_
_rlnOpticsGroup #1
_rlnVoltage #2
_rlnSphericalAberration #3
_rlnAmplitudeContrast #4
_rlnImagePixelSize #5
1 300 2.7 0.1 1.5

data_particles

loop_
_rlnImageName #1
_rlnDefocusU #2
_rlnDefocusV #3
_rlnDefocusAngle #4
_rlnAngleRot #5
_rlnAngleTilt #6
_rlnAnglePsi #7
_rlnOpticsGroup #8
1@a.mrcs 15000 14500 30 1 2 3 1
2@a.mrcs 15000 14500 30 1 2 3 1
"3@b c.mrcs" 15000 nan 30 1 2 3 1
"""
# what the format gives a meaning to
STAR_WORDS = [
    *(b"data_", b"loop_", b"_rlnImageName", b"_rlnOpticsGroup", b"\n", b"\n\n", b" ", b"\t", b"#", b"'", b'"', b";", b"\n;\n"),
    *(b"\0", b"\xff", b"\xef\xbb\xbf", b"\r", b"\x0b", b"\x1c", b"\xc2\x85", b"nan", b"<NA>", b"1e999", b"save_", b"stop_", b"$"),
]


def cs_bytes() -> bytes:
    n = 4
    columns: dict[str, tuple[str, object]] = {
        "uid": ("<u8", range(n)),
        "blob/path": ("S20", [b">J1/a.mrc"] * n),
        "blob/idx": ("<u4", range(n)),
        "blob/psize_A": ("<f4", 1.5),
        "ctf/df1_A": ("<f4", 15000),
        "ctf/df2_A": ("<f4", 14500),
        "ctf/df_angle_rad": ("<f4", 0.5),
        "ctf/accel_kv": ("<f4", 300),
        "ctf/cs_mm": ("<f4", 2.7),
        "ctf/amp_contrast": ("<f4", 0.1),
        "ctf/phase_shift_rad": ("<f4", 0),
    }
    plain = [(name, kind) for name, (kind, _) in columns.items()]
    records = np.zeros(n, dtype=[*plain, ("blob/shape", "<u4", (2,)), ("alignments3D/pose", "<f4", (3,))])
    for name, (_, values) in columns.items():
        records[name] = values
    records["blob/shape"] = 16
    file = io.BytesIO()
    np.save(file, records)
    return file.getvalue()


def mrc_bytes(shape: tuple[int, ...] = (3, 16, 16), kind: str = "float32") -> bytes:
    header = np.zeros(1, dtype=mrcfile.dtypes.HEADER_DTYPE)[0]
    header["nz"], header["ny"], header["nx"] = header["mz"], header["my"], header["mx"] = shape
    header["mode"] = {"float32": 2, "int16": 1, "int8": 0}[kind]
    header["mapc"], header["mapr"], header["maps"] = 1, 2, 3
    header["map"], header["machst"], header["cella"] = b"MAP ", (0x44, 0x44, 0, 0), tuple(2.0 * n for n in shape[::-1])
    data = np.random.default_rng(0).integers(-99, 99, shape).astype(kind)
    return header.tobytes() + data.tobytes()


CS, STACK, VOLUME = cs_bytes(), mrc_bytes(), mrc_bytes((16, 16, 16), "int16")


@st.composite
def spoilt(draw: st.DrawFn, whole: bytes, words: list[bytes], first: int | None = None) -> bytes:
    """A good file after a few flips, cuts, insertions, removals and copies; most of them in its ``first`` bytes."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        last = len(data) if first is None or draw(st.integers(0, 9)) == 0 else min(first, len(data))
        at = draw(st.integers(0, last))
        length = draw(st.integers(1, 16))
        match draw(st.sampled_from(["flip", "set", "cut", "insert", "remove", "copy"])):
            case "flip" if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "set":
                new = draw(st.binary(min_size=1, max_size=4) | st.sampled_from(words))
                data[at : at + len(new)] = new
            case "cut":
                del data[at:]
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=8) | st.sampled_from(words))
            case "remove":
                del data[at : at + length]
            case "copy":
                data[at:at] = data[at : at + 8 * length]
    return bytes(data)


NUMBERS = [np.array(n, dtype="<i4").tobytes() for n in (0, -1, 1, 2**31 - 1, -(2**31), 1 << 20, 101)]
NUMBERS += [np.array(x, dtype="<f4").tobytes() for x in (np.nan, np.inf, -1, 1e38, 1e-40)]
CS_WORDS = [
    *NUMBERS,
    b"\x93NUMPY",
    b"'descr'",
    b"(",
    b")",
    b"[",
    b"{",
    b"'",
    b"|O",
    b"<f8",
    b"<U3",
    b"True",
    b"99999999999",
    b"\0",
]


# what the interpreter and the libraries say
FOREIGN = re.compile(
    r"unpack|out of range|NoneType|object is not|has no attribute|subscriptable|C error|[Tt]okeniz|invalid literal|"
    r"could not convert|codec|Errno|reshape|Length mismatch|closing quotation|allow_pickle|malformed|Traceback|[a-z]Error\b"
)


def assert_own_words(error: InputError, path: Path) -> None:
    """One line that names the file and holds nothing of the exception that it comes from."""
    said = str(error)
    assert path.name in said and len(said.splitlines()) == 1
    assert not FOREIGN.search(said.replace(str(path), "")), said
    cause = error.__cause__
    if cause is not None and not isinstance(cause, InputError | OSError):
        first_line = (str(cause).splitlines() or [""])[0]
        assert not (first_line and first_line in said), said


def assert_read_or_refused(path: Path, content: bytes) -> bool:
    """Whether the content is read as particles; an InputError must be one line that names the file, in our own words."""
    path.write_bytes(content)
    try:
        table = read_particle_table(path)
    except InputError as error:
        assert_own_words(error, path)
        return False
    assert len(table) >= 1
    for look in (ctf_parameters, pixel_size_of, lambda t: star_poses(t, 1.5)):
        try:
            look(table)
        except InputError as error:
            assert_own_words(error, path)
    return True


def assert_images_read_or_refused(path: Path, content: bytes) -> bool:
    path.write_bytes(content)
    good = 0
    for read in (read_volume, lambda p: read_images(p, np.arange(min(stack_shape(p)[0], 5)))):
        try:
            read(path)
            good += 1
        except InputError as error:
            assert_own_words(error, path)
    return good > 0


@pytest.mark.parametrize(("name", "content"), [("p.star", STAR), ("p.cs", CS)])
def test_the_unspoilt_tables_are_read(tmp_path: Path, name: str, content: bytes) -> None:
    assert assert_read_or_refused(tmp_path / name, content)


def test_the_unspoilt_images_are_read(tmp_path: Path) -> None:
    assert assert_images_read_or_refused(tmp_path / "a.mrcs", STACK) and assert_images_read_or_refused(tmp_path / "a.mrc", VOLUME)


@fuzzed
@given(content=st.binary(max_size=2000).map(lambda tail: b"data_\nloop_\n_rlnImageName\n" + tail) | st.binary(max_size=200))
def test_star_of_noise(tmp_path: Path, content: bytes) -> None:
    assert_read_or_refused(tmp_path / "p.star", content)


@fuzzed
@given(content=spoilt(STAR, STAR_WORDS))
def test_star_spoilt(tmp_path: Path, content: bytes) -> None:
    assert_read_or_refused(tmp_path / "p.star", content)


@fuzzed
@given(words=st.lists(st.sampled_from([*STAR_WORDS, b"_rlnDefocusU", b"data_optics", b"1@a.mrcs", b"7"]), max_size=40))
def test_star_of_its_words(tmp_path: Path, words: list[bytes]) -> None:
    assert_read_or_refused(tmp_path / "p.star", b"data_\n" + b" ".join(words))


@fuzzed
@given(
    content=st.sampled_from([b"\x93NUMPY\x01\0", b"\x93NUMPY", b"\x95CSDAT", b""]).flatmap(lambda m: st.binary().map(m.__add__))
)
def test_cs_of_noise(tmp_path: Path, content: bytes) -> None:
    assert_read_or_refused(tmp_path / "p.cs", content)


@fuzzed
@given(content=spoilt(CS, CS_WORDS, first=CS.index(b"\n")))
def test_cs_spoilt(tmp_path: Path, content: bytes) -> None:
    assert_read_or_refused(tmp_path / "p.cs", content)


@fuzzed
@given(content=spoilt(CS, CS_WORDS))
def test_cs_spoilt_anywhere(tmp_path: Path, content: bytes) -> None:
    assert_read_or_refused(tmp_path / "p.cs", content)


@fuzzed
@given(content=st.binary(max_size=3000) | st.binary(min_size=1024, max_size=1100))
def test_mrc_of_noise(tmp_path: Path, content: bytes) -> None:
    assert_images_read_or_refused(tmp_path / "a.mrcs", content)


@fuzzed
@given(content=spoilt(STACK, NUMBERS, first=224) | spoilt(VOLUME, NUMBERS, first=224))
def test_mrc_spoilt(tmp_path: Path, content: bytes) -> None:
    assert_images_read_or_refused(tmp_path / "a.mrcs", content)


@fuzzed
@given(field=st.sampled_from(mrcfile.dtypes.HEADER_DTYPE.names[:25]), value=st.sampled_from(NUMBERS), big=st.booleans())
def test_mrc_with_another_header_field(tmp_path: Path, field: str, value: bytes, big: bool) -> None:
    offset = mrcfile.dtypes.HEADER_DTYPE.fields[field][1]
    content = bytearray(STACK)
    content[offset : offset + 4] = value[::-1] if big else value
    assert_images_read_or_refused(tmp_path / "a.mrcs", bytes(content))
