"""MRC files: maps, and image stacks that are read in part and written as a stream.

Array order is z, y, x for volumes and image, y, x for stacks. Pixel sizes are in Angstrom.
"""

import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from io import BytesIO, RawIOBase
from pathlib import Path
from types import TracebackType

import mrcfile
import mrcfile.utils
import numpy as np
from mrcfile.dtypes import HEADER_DTYPE
from mrcfile.mrcfile import MrcFile
from mrcfile.mrcinterpreter import MrcInterpreter

from ace_em.errors import InputError
from ace_em.io.atomic import replace_atomically

_HEADER_BYTES = 1024
_REAL_MODES = {0: "int8", 1: "int16", 2: "float32", 6: "uint16", 12: "float16"}
# IMOD's header fields, https://bio3d.colorado.edu/imod/doc/mrc_format.txt
_IMOD_STAMP, _IMOD_SIGNED_BYTES = 1146047817, 1
# relative difference of voxel edges that rounding of the cell size in the header can cause
_CUBIC_TOLERANCE = 1e-2
# difference from 1 A/px below which the pixel size counts as never set: rounding of a cell of nx Angstrom
_NEVER_SET_TOLERANCE = 1e-4
# first bytes of compressed files
_COMPRESSED = {b"\x1f\x8b\x08": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\3\4": "zip"}


def _read_header(path: Path) -> np.recarray:
    """Read the header of an MRC file; check its byte order, mode, size and the length of the file."""
    if not path.is_file():
        raise InputError(f"{path}: {'is not a file' if path.exists() else 'no such file'}")
    try:
        with open(path, "rb") as file:
            start = file.read(_HEADER_BYTES)
        found = path.stat().st_size
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    _refuse_compressed(path, start)
    if len(start) < _HEADER_BYTES:
        raise InputError(f"{path}: not an MRC file ({found} bytes, expected a header of {_HEADER_BYTES})")
    header = _interpreted(start)
    nx, ny, nz, mode, nsymbt = (int(header[name]) for name in ("nx", "ny", "nz", "mode", "nsymbt"))
    if min(nx, ny, nz) < 1 or max(nx, ny) > 1 << 20:
        raise InputError(f"{path}: not an MRC file (header size {nx} x {ny} x {nz})")
    if not 0 <= nsymbt <= found - _HEADER_BYTES:
        what = f"extended header of {nsymbt} bytes in a file of {found}"
        raise InputError(f"{path}: not an MRC file ({what}), or one cut short")
    if mode not in _REAL_MODES:
        modes = ", ".join(f"{number} ({name})" for number, name in _REAL_MODES.items())
        raise InputError(f"{path}: MRC mode {mode}, expected one of {modes}")
    expected = _HEADER_BYTES + nsymbt + nx * ny * nz * _dtype(header).itemsize
    if found < expected:
        raise InputError(f"{path}: truncated: expected {nx} x {ny} x {nz} ({expected} bytes), found {found} bytes")
    if found > expected:
        # a wrong mode or a missing NSYMBT: grey values would be read from the wrong offset
        size = f"{nx} x {ny} x {nz} of mode {mode} after {nsymbt} bytes of extended header ({expected} bytes)"
        raise InputError(f"{path}: longer than its header implies: expected {size}, found {found} bytes")
    return header


def _interpreted(start: bytes) -> np.recarray:
    """The first 1024 bytes of a file as a header in the byte order of the file."""
    # NSYMBT is set to 0 for mrcfile, which allocates that many bytes: gigabytes in a damaged file
    size = HEADER_DTYPE.fields["nsymbt"][1]
    without = start[:size] + bytes(4) + start[size + 4 :]
    # mrcfile warns of a missing map ID or machine stamp, which many stacks lack
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        header = MrcInterpreter(BytesIO(without), permissive=True, header_only=True).header
    header.nsymbt = np.frombuffer(start[size : size + 4], dtype=header.nsymbt.dtype)[0]
    return header


def _dtype(header: np.recarray) -> np.dtype:
    """Data type of the grey values. Mode 0 is signed (MRC2014), unless IMOD's flags in the header mark it as unsigned."""
    found: np.dtype = mrcfile.utils.data_dtype_from_header(header)
    stamp, flags = np.frombuffer(header.extra2.tobytes()[40:48], dtype=np.dtype("i4").newbyteorder(header.mode.dtype.byteorder))
    imod_unsigned = stamp == _IMOD_STAMP and not flags & _IMOD_SIGNED_BYTES
    return np.dtype(np.uint8) if int(header.mode) == 0 and imod_unsigned else found


def _axis_order(path: Path, header: np.recarray) -> list[int]:
    """MAPS, MAPR, MAPC: x, y or z (1, 2, 3) for each axis of the array; 0 stands for the default 3, 2, 1."""
    order = [int(header[name]) or default for name, default in (("maps", 3), ("mapr", 2), ("mapc", 1))]
    if sorted(order) != [1, 2, 3]:
        raise InputError(f"{path}: axis order (MAPC, MAPR, MAPS) is {order[::-1]}, expected each of 1, 2, 3 once")
    return order


def _refuse_compressed(path: Path, start: bytes) -> None:
    for magic, kind in _COMPRESSED.items():
        if start.startswith(magic):
            raise InputError(f"{path}: compressed ({kind}), expected a plain MRC file; decompress it first")


def _map_data(path: Path, header: np.recarray) -> np.memmap:
    return np.memmap(
        path,
        dtype=_dtype(header),
        mode="r",
        offset=_HEADER_BYTES + int(header.nsymbt),
        shape=(int(header.nz), int(header.ny), int(header.nx)),
    )


def _voxel_size(path: Path, header: np.recarray) -> float:
    edges = [float(header.cella[axis]) / max(int(header[f"m{axis}"]), 1) for axis in "xyz"]
    if not all(np.isfinite(edges)) or min(edges) <= 0:
        raise InputError(f"{path}: no pixel size in the header (cell {header.cella} Angstrom)")
    if max(edges) / min(edges) - 1 > _CUBIC_TOLERANCE:
        raise InputError(f"{path}: voxel of {edges[0]:.4g} x {edges[1]:.4g} x {edges[2]:.4g} Angstrom, expected equal edges")
    return edges[0]


def read_volume(path: Path | str) -> tuple[np.ndarray, float]:
    """Read a map.

    Parameters
    ----------
    path : MRC or CCP4 file, either byte order, mode 0, 1, 2, 6 or 12.

    Returns
    -------
    (z, y, x) float32 array for any axis order (MAPC, MAPR, MAPS) of the file, and the pixel size in Angstrom. The
    position of the map in its cell (start, origin) is not used: the centre of a box is its index n // 2.
    """
    path = Path(path)
    header = _read_header(path)
    if int(header.ispg) >= 401:
        raise InputError(f"{path}: a stack of volumes (space group {int(header.ispg)}), expected one volume")
    order = _axis_order(path, header)
    data = _map_data(path, header).transpose([order.index(axis) for axis in (3, 2, 1)])
    # a copy, because the memory map is read-only
    volume = np.array(data, dtype=np.float32, order="C")
    if not np.isfinite(volume).all():
        raise InputError(f"{path}: the map contains NaN or infinite values")
    return volume, _voxel_size(path, header)


def write_volume(path: Path | str, volume: np.ndarray, pixel_size_angstrom: float) -> None:
    """Write a map (z, y, x) as float32, origin 0, replacing ``path`` atomically; the same input gives the same bytes."""
    if volume.ndim != 3:
        raise ValueError(f"a volume has three axes, got shape {volume.shape}")
    with replace_atomically(path) as temporary, mrcfile.new(temporary) as file:
        file.set_data(np.ascontiguousarray(volume, dtype=np.float32))
        file.set_volume()
        file.voxel_size = pixel_size_angstrom
        _clear_labels(file)


def _image_pixel_size(header: np.recarray) -> float | None:
    """Pixel size in Angstrom; None where it was never set (0, or the 1 that many programs leave) or pixels are not square."""
    if min(int(header.mx), int(header.my)) < 1:
        return None
    x, y = (float(header.cella[axis]) / int(header[f"m{axis}"]) for axis in "xy")
    if not (np.isfinite(x) and np.isfinite(y)) or min(x, y) <= 0 or max(x, y) / min(x, y) - 1 > _CUBIC_TOLERANCE:
        return None
    return None if abs(x - 1) < _NEVER_SET_TOLERANCE else x


@dataclass(frozen=True)
class StackHeader:
    """An image stack: ``n`` images of ``ny`` rows and ``nx`` columns; the pixel size is None if it was never set."""

    n: int
    ny: int
    nx: int
    pixel_size_angstrom: float | None


def stack_header(path: Path | str) -> StackHeader:
    """Header of an image stack, checked as by :func:`read_images`."""
    path = Path(path)
    header = _read_header(path)
    order = _axis_order(path, header)
    if order != [3, 2, 1]:
        # read without transposing, the images would be mirrored and the map would have the other hand
        raise InputError(f"{path}: axis order (MAPC, MAPR, MAPS) is {order[::-1]}, expected images of rows along x: 1, 2, 3")
    return StackHeader(int(header.nz), int(header.ny), int(header.nx), _image_pixel_size(header))


def stack_shape(path: Path | str) -> tuple[int, int, int]:
    """(n, y, x) of an image stack from its header."""
    header = stack_header(path)
    return header.n, header.ny, header.nx


def read_images(path: Path | str, index: np.ndarray) -> np.ndarray:
    """Read images of a stack with plain reads.

    A memory map would kill the process (SIGBUS) if the file were truncated meanwhile, and its pages count as used memory.

    Parameters
    ----------
    index : (b,) image indices from 0, ascending.

    Returns
    -------
    (b, y, x) float32; the file may have int8, int16, uint16, float16 or float32 of either byte order.
    """
    path = Path(path)
    header = _read_header(path)
    kind, ny, nx = _dtype(header), int(header.ny), int(header.nx)
    first, size = _HEADER_BYTES + int(header.nsymbt), kind.itemsize * ny * nx
    images = np.empty((len(index), ny, nx), dtype=np.float32)
    # one read per run of consecutive images
    starts = np.flatnonzero(np.diff(index, prepend=-2) != 1)
    ends = np.append(starts[1:], len(index))
    try:
        with open(path, "rb", buffering=0) as file:
            for start, end in zip(starts, ends, strict=True):
                file.seek(first + int(index[start]) * size)
                data = _read_fully(file, int(end - start) * size)
                if len(data) < (end - start) * size:
                    last = index[start] + len(data) // size + 1
                    raise InputError(f"{path}: truncated while being read: image {last} is incomplete")
                images[start:end] = np.frombuffer(data, dtype=kind).reshape(-1, ny, nx)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    return images


def _read_fully(file: RawIOBase, size: int) -> bytearray:
    """Read ``size`` bytes, fewer only at the end of the file; a single read of a large block may return less."""
    data = bytearray(size)
    view, done = memoryview(data), 0
    while done < size:
        n = file.readinto(view[done:])
        if not n:
            return data[:done]
        done += n
    return data


def _clear_labels(file: MrcFile) -> None:
    # mrcfile writes the time into the first label; equal data must give equal bytes
    file.header.label[:] = b""
    file.header.nlabl = 0


class StackWriter:
    """Context manager that writes a new stack block by block and renames it into place at the end.

    Equal images give equal bytes. Leaving the context before all images are written is an error and leaves no file.

    Parameters
    ----------
    path : the .mrcs file to write; an existing file is replaced.
    shape : (n, y, x) of the whole stack.
    pixel_size_angstrom : written to the header.
    """

    def __init__(self, path: Path | str, shape: tuple[int, int, int], pixel_size_angstrom: float) -> None:
        self.path = Path(path)
        self.shape = shape
        self.pixel_size_angstrom = pixel_size_angstrom
        self.n_written = 0
        self._min, self._max, self._sum, self._sum_squares = np.inf, -np.inf, 0.0, 0.0
        self._exit = ExitStack()

    def __enter__(self) -> "StackWriter":
        with ExitStack() as stack:
            temporary = stack.enter_context(replace_atomically(self.path))
            self._file = mrcfile.new_mmap(temporary, self.shape, mrc_mode=2)
            stack.callback(self._file.close)
            self._file.set_image_stack()
            self._file.voxel_size = self.pixel_size_angstrom
            _clear_labels(self._file)
            self._exit = stack.pop_all()
        return self

    def write(self, block: np.ndarray) -> None:
        """Append images (b, y, x), stored as float32."""
        block = np.asarray(block, dtype=np.float32)
        end = self.n_written + len(block)
        if block.shape[1:] != self.shape[1:] or end > self.shape[0]:
            raise ValueError(f"images {self.n_written} to {end} of shape {block.shape[1:]} do not fit a stack of {self.shape}")
        self._file.data[self.n_written : end] = block
        self.n_written = end
        if block.size:
            self._min = min(self._min, float(block.min()))
            self._max = max(self._max, float(block.max()))
            self._sum += float(block.sum(dtype=np.float64))
            self._sum_squares += float(np.square(block, dtype=np.float64).sum())

    def _set_statistics(self) -> None:
        # new_mmap sets the statistics of the empty array; write() accumulates the real ones
        count = float(np.prod(self.shape))
        mean = self._sum / count
        header = self._file.header
        header.dmin, header.dmax, header.dmean = self._min, self._max, mean
        header.rms = max(self._sum_squares / count - mean**2, 0.0) ** 0.5

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._exit:
            if error is not None:
                raise error
            if self.n_written != self.shape[0]:
                raise ValueError(f"{self.path}: {self.n_written} of {self.shape[0]} images were written")
            self._set_statistics()
