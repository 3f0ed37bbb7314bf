"""Maps and stacks in every byte order and type we claim, and refusals that say what is wrong."""

import tracemalloc
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from ace_em.errors import InputError
from ace_em.io.mrc import StackWriter, read_images, read_volume, stack_shape, write_volume

SHARED = Path(__file__).parents[2] / "../shared/data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is absent")


def read_stack(path: Path) -> np.ndarray:
    """Every image."""
    return read_images(path, np.arange(stack_shape(path)[0]))


def numbered(shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def write_raw(path: Path, data: np.ndarray, byte_order: str = "<", axes: tuple[int, int, int] = (1, 2, 3)) -> None:
    """An MRC file with ``data`` as it lies in the file: sections, rows, columns."""
    with mrcfile.new(path) as file:
        file.set_data(data)
        file.voxel_size = 2.0
        file.header.mapc, file.header.mapr, file.header.maps = axes
        header = file.header.copy()
    if byte_order == ">":
        raw = header.astype(header.dtype.newbyteorder(">"))
        raw.machst[:] = (0x11, 0x11, 0, 0)
        path.write_bytes(raw.tobytes() + data.astype(data.dtype.newbyteorder(">")).tobytes())


@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["int8", "int16", "uint16", "float16", "float32"])
def test_stack_of_every_type_and_byte_order(tmp_path: Path, dtype: str, byte_order: str) -> None:
    data = numbered((3, 5, 7), dtype)
    write_raw(tmp_path / "a.mrcs", data, byte_order)
    stack = read_stack(tmp_path / "a.mrcs")
    assert stack.dtype == np.float32
    assert stack_shape(tmp_path / "a.mrcs") == stack.shape == (3, 5, 7)
    assert np.array_equal(stack, data.astype(np.float32))
    some = read_images(tmp_path / "a.mrcs", np.array([0, 2]))
    assert np.array_equal(some, data[[0, 2]].astype(np.float32))


@pytest.mark.parametrize(("stamp", "flags", "unsigned"), [(1146047817, 0, True), (1146047817, 1, False), (0, 0, False)])
@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_bytes_are_signed_unless_imod_says_otherwise(
    tmp_path: Path, stamp: int, flags: int, unsigned: bool, byte_order: str
) -> None:
    path, data = tmp_path / "a.mrcs", np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    write_raw(path, data.view(np.int8), byte_order)
    # words 39 and 40 of the header
    raw = path.read_bytes()
    path.write_bytes(raw[:152] + np.array([stamp, flags]).astype(f"{byte_order}i4").tobytes() + raw[160:])
    assert np.array_equal(read_stack(path), data if unsigned else data.view(np.int8))


@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_a_stack_of_mirrored_images_is_refused(tmp_path: Path, byte_order: str) -> None:
    write_raw(tmp_path / "a.mrcs", numbered((2, 4, 4)), byte_order, axes=(2, 1, 3))
    with pytest.raises(InputError, match=r"a\.mrcs: axis order \(MAPC, MAPR, MAPS\) is \[2, 1, 3\], expected images"):
        stack_shape(tmp_path / "a.mrcs")
    write_raw(tmp_path / "old.mrcs", numbered((2, 4, 4)), byte_order, axes=(0, 0, 0))
    assert stack_shape(tmp_path / "old.mrcs") == (2, 4, 4)


def test_extended_header_is_skipped(tmp_path: Path) -> None:
    data = numbered((2, 4, 4))
    with mrcfile.new(tmp_path / "a.mrc", data=data) as file:
        file.set_extended_header(np.frombuffer(b"x" * 96, dtype="V1"))
    assert np.array_equal(read_stack(tmp_path / "a.mrc"), data)


def test_single_image_is_a_stack_of_one(tmp_path: Path) -> None:
    write_raw(tmp_path / "one.mrc", numbered((6, 6)))
    assert read_stack(tmp_path / "one.mrc").shape == (1, 6, 6)


@pytest.mark.parametrize("axes", [(1, 2, 3), (3, 1, 2), (2, 3, 1), (3, 2, 1), (2, 1, 3)])
@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_volume_axis_order(tmp_path: Path, axes: tuple[int, int, int], byte_order: str) -> None:
    zyx = numbered((3, 4, 5))
    length = {1: 5, 2: 4, 3: 3}
    # filled voxel by voxel from the definition: column, row and section run along the axes named by MAPC, MAPR, MAPS
    in_file = np.empty((length[axes[2]], length[axes[1]], length[axes[0]]), dtype=np.float32)
    for section, row, column in np.ndindex(in_file.shape):
        at = dict(zip(axes, (column, row, section), strict=True))
        in_file[section, row, column] = zyx[at[3], at[2], at[1]]
    write_raw(tmp_path / "a.map", in_file, byte_order, axes)
    volume, _ = read_volume(tmp_path / "a.map")
    assert volume.dtype == np.float32 and volume.flags.c_contiguous
    assert np.array_equal(volume, zyx)


def test_volume_round_trip_is_deterministic(tmp_path: Path) -> None:
    data = numbered((4, 4, 4))
    for name in ("a.mrc", "b.mrc"):
        write_volume(tmp_path / name, data, 1.35)
    volume, pixel_size = read_volume(tmp_path / "a.mrc")
    assert np.array_equal(volume, data) and pixel_size == pytest.approx(1.35)
    assert (tmp_path / "a.mrc").read_bytes() == (tmp_path / "b.mrc").read_bytes()
    with mrcfile.open(tmp_path / "a.mrc") as file:
        assert file.is_volume() and file.header.nlabl == 0 and file.header.origin.tolist() == (0, 0, 0)
    assert mrcfile.validate(tmp_path / "a.mrc")


def test_stack_writer_streams_and_is_deterministic(tmp_path: Path) -> None:
    data = np.random.default_rng(0).normal(size=(7, 6, 6)).astype(np.float32)
    for name in ("a.mrcs", "b.mrcs"):
        with StackWriter(tmp_path / name, data.shape, 3.5) as writer:
            for start in (0, 3, 6):
                writer.write(data[start : start + 3])
            assert not (tmp_path / name).exists()
    assert (tmp_path / "a.mrcs").read_bytes() == (tmp_path / "b.mrcs").read_bytes()
    assert np.array_equal(read_stack(tmp_path / "a.mrcs"), data)
    with mrcfile.open(tmp_path / "a.mrcs") as file:
        header = file.header
        assert file.is_image_stack() and header.nlabl == 0 and not any(header.label)
        assert file.voxel_size.x == pytest.approx(3.5) and header.mz == 1
        found = [float(header[name]) for name in ("dmin", "dmax", "dmean", "rms")]
    assert found == pytest.approx([data.min(), data.max(), data.mean(), data.std()], abs=1e-6)
    assert mrcfile.validate(tmp_path / "a.mrcs")


def test_stack_writer_unfinished_or_failed_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.mrcs"
    with pytest.raises(ValueError, match="1 of 2 images"), StackWriter(path, (2, 4, 4), 1.0) as writer:
        writer.write(numbered((1, 4, 4)))
    with pytest.raises(KeyboardInterrupt), StackWriter(path, (1, 4, 4), 1.0) as writer:
        writer.write(numbered((1, 4, 4)))
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="do not fit"), StackWriter(path, (1, 4, 4), 1.0) as writer:
        writer.write(numbered((2, 4, 4)))
    assert list(tmp_path.iterdir()) == []


def test_truncated_file_names_both_sizes(tmp_path: Path) -> None:
    path = tmp_path / "cut.mrcs"
    write_raw(path, numbered((3, 8, 8)))
    path.write_bytes(path.read_bytes()[:-10])
    expected = 1024 + 3 * 8 * 8 * 4
    for reader in (read_stack, read_volume, stack_shape):
        with pytest.raises(InputError, match=rf"cut\.mrcs.*{expected} bytes.*found {expected - 10} bytes"):
            reader(path)


@pytest.mark.parametrize(
    "content", [b"", b"short", b"plain text, longer than a header. " * 100, bytes(range(256)) * 20, bytes(4096)]
)
def test_not_mrc(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "junk.mrcs").write_bytes(content)
    with pytest.raises(InputError, match=r"junk\.mrcs.*not an MRC file"):
        read_stack(tmp_path / "junk.mrcs")


def test_a_file_without_a_header_is_refused_in_our_words(tmp_path: Path) -> None:
    (tmp_path / "junk.mrcs").write_bytes(b"short")
    with pytest.raises(InputError, match=r"junk\.mrcs: not an MRC file \(5 bytes, expected a header of 1024\)$"):
        stack_shape(tmp_path / "junk.mrcs")
    write_raw(tmp_path / "a.mrcs", numbered((2, 4, 4)))


@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("length", [-1, -(2**31), 129, 2**31 - 1])
def test_an_extended_header_longer_than_the_file_takes_no_memory(tmp_path: Path, length: int, byte_order: str) -> None:
    write_raw(tmp_path / "a.mrcs", numbered((2, 4, 4)), byte_order)
    raw = bytearray((tmp_path / "a.mrcs").read_bytes())
    raw[92:96] = np.array(length, dtype=f"{byte_order}i4").tobytes()
    (tmp_path / "a.mrcs").write_bytes(raw)
    said = rf"a\.mrcs: not an MRC file \(extended header of {length} bytes in a file of 1152\)"
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=said):
            stack_shape(tmp_path / "a.mrcs")
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


def test_refusals_of_missing_folder_complex_and_bad_cell(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_stack(tmp_path / "none.mrcs")
    with pytest.raises(InputError, match="is not a file"):
        read_stack(tmp_path)
    write_raw(tmp_path / "c.mrc", numbered((2, 4, 4), "complex64"))
    with pytest.raises(InputError, match="mode 4"):
        read_stack(tmp_path / "c.mrc")
    for name, cell, message in (("flat", (2, 3, 2), "expected equal edges"), ("zero", (0, 0, 0), "no pixel size")):
        path = tmp_path / f"{name}.mrc"
        with mrcfile.new(path, data=numbered((4, 4, 4))) as file:
            file.voxel_size = cell
        with pytest.raises(InputError, match=message):
            read_volume(path)


def test_volume_with_nan_is_refused(tmp_path: Path) -> None:
    data = numbered((4, 4, 4))
    write_volume(tmp_path / "a.mrc", data, 1.0)
    raw = bytearray((tmp_path / "a.mrc").read_bytes())
    raw[1024:1028] = np.float32(np.nan).tobytes()
    (tmp_path / "a.mrc").write_bytes(raw)
    with pytest.raises(InputError, match="NaN"):
        read_volume(tmp_path / "a.mrc")


@needs_shared
def test_real_maps() -> None:
    little, pixel_size = read_volume(SHARED / "maps/emd_3488.mrc")
    assert little.shape == (100, 100, 100) and pixel_size == pytest.approx(1.05, abs=1e-3)
    big, pixel_size = read_volume(SHARED / "maps/emd_2479_big_endian.map")
    assert big.shape == (80, 80, 80) and pixel_size == pytest.approx(4.36, abs=1e-3) and 0 < np.abs(big).max() < 1e3
    # a crystal's cell: its three voxel edges differ by percents
    with pytest.raises(InputError, match=r"EMD-3001\.map.*expected equal edges"):
        read_volume(SHARED / "maps/EMD-3001.map")
