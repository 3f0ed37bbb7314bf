"""Particle images with what is known about each: the STAR table, its stacks, CTF parameters, poses and half-sets."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from ace_em.data.validate import check_image_size, check_values
from ace_em.errors import InputError
from ace_em.io.mrc import StackHeader, read_images, stack_header
from ace_em.io.particle_table import (
    ParticleTable,
    numeric_column,
    optics_rows,
    origin_px,
    parse_image_name,
    pixel_sizes,
    read_particle_table,
)
from ace_em.physics.ctf import CTFParameters
from ace_em.physics.pose import Pose, relion_angles_to_rotmat

MIN_BOX = 16
# relative difference of pixel sizes that is rounding (of a magnification, say) and moves no CTF ring by a pixel
_PIXEL_SIZE_TOLERANCE = 1e-4
_PIXEL_SIZE_ANGSTROM = (0.05, 100.0)
# relative difference between table and header that calibration or rounding explains
_HEADER_TOLERANCE = 1e-2
# sums of squares of more leave the range of float32
_LARGEST_VALUE = 1e12
# field of CTFParameters: column, value where the column is missing (None: it must be there)
_CTF_COLUMNS: dict[str, tuple[str, float | None]] = {
    "defocus_u_angstrom": ("rlnDefocusU", None),
    "defocus_v_angstrom": ("rlnDefocusV", None),
    "defocus_angle_deg": ("rlnDefocusAngle", None),
    "voltage_kv": ("rlnVoltage", None),
    "spherical_aberration_mm": ("rlnSphericalAberration", None),
    "amplitude_contrast": ("rlnAmplitudeContrast", None),
    "phase_shift_deg": ("rlnPhaseShift", 0.0),
}


@dataclass(frozen=True)
class Particles:
    """Particle images on disk and their metadata; N particles, images of ``box`` x ``box`` pixels.

    Images are read on demand, and no file is kept open.

    Attributes
    ----------
    table : the STAR file, or the cryoSPARC file in that form.
    image_names : N strings, ``index@path`` as in the STAR file.
    box : pixels per image edge.
    pixel_size_angstrom : of the images.
    ctf : fields of shape (N,), float32.
    stack_paths : the files that hold the images.
    stack_of_row : (N,) index into ``stack_paths``.
    index_in_stack : (N,) image within its stack, counted from 0.
    header_pixel_sizes : Angstrom, for each of ``stack_paths``; None where its header was never set.
    """

    table: ParticleTable
    image_names: tuple[str, ...]
    box: int
    pixel_size_angstrom: float
    ctf: CTFParameters
    stack_paths: tuple[Path, ...]
    stack_of_row: np.ndarray
    index_in_stack: np.ndarray
    header_pixel_sizes: tuple[float | None, ...]

    @staticmethod
    def open(path: Path | str, project_root: Path | None = None, passthrough: Sequence[Path] = ()) -> "Particles":
        """Open the particles of a file and check everything that can be checked without reading the images.

        Parameters
        ----------
        path : RELION STAR file, or cryoSPARC .cs file.
        project_root : folder that image paths are relative to. Without it, or when a stack is not there, the file's
            folder, the folders above it (the root of a RELION or cryoSPARC project is one of them) and the current folder
            are tried.
        passthrough : cryoSPARC files with the fields that the .cs file lacks.
        """
        return Particles.of(read_particle_table(path, passthrough), project_root)

    @staticmethod
    def of(table: ParticleTable, project_root: Path | None = None) -> "Particles":
        """The particles of a table, checked as by :meth:`open`."""
        names = tuple(table.particles["rlnImageName"])
        stack_paths, headers, stack_of_row, index_in_stack = _locate_images(table, names, project_root)
        box = headers[0].nx
        check_image_size(table, box)
        _refuse_repeats(table, names, stack_paths, stack_of_row, index_in_stack)
        pixel_size, ctf = pixel_size_of(table), ctf_parameters(table)
        check_values(table)
        in_headers = tuple(header.pixel_size_angstrom for header in headers)
        particles = Particles(table, names, box, pixel_size, ctf, stack_paths, stack_of_row, index_in_stack, in_headers)
        _ = particles.sign_on_disk  # both signs in one file are refused
        return particles

    def __len__(self) -> int:
        return len(self.table)

    @property
    def optics_group(self) -> np.ndarray:
        """(N,) row of the optics table of each particle; 0 where there are no optics groups."""
        optics = self.table.optics
        if optics is None or "rlnOpticsGroup" not in optics or "rlnOpticsGroup" not in self.table.particles:
            return np.zeros(len(self), dtype=np.int64)
        return optics_rows(self.table, optics)

    @property
    def sign_on_disk(self) -> float | None:
        """+1 where the protein is white in the files, -1 where it is black; None for a STAR file, which does not say."""
        if self.table.cryosparc is None or "blob/sign" not in self.table.cryosparc:
            return None
        signs = np.unique(np.sign(self.table.cryosparc["blob/sign"]))
        if len(signs) > 1:
            raise InputError(
                f"{self.table.path}: field blob/sign has {signs[0]:g} and {signs[-1]:g}, expected one for all particles"
            )
        return float(signs[0]) if signs[0] in (-1, 1) else None

    @property
    def stack_of_another_pixel_size(self) -> tuple[Path, float] | None:
        """The first stack whose header gives another pixel size than the table, by more than 1 %, and that size; else None."""
        least, most = _PIXEL_SIZE_ANGSTROM  # a size beyond is no pixel's
        for path, size in zip(self.stack_paths, self.header_pixel_sizes, strict=True):
            other = size is not None and abs(size / self.pixel_size_angstrom - 1) > _HEADER_TOLERANCE
            if size is not None and other and least <= size <= most:
                return path, size
        return None

    def images(self, rows: np.ndarray | slice) -> np.ndarray:
        """Images (B, box, box), float32, of ``rows`` in the order asked for; grey values as in the file.

        An image that holds NaN or infinite values, or is constant, is an :class:`InputError`.
        """
        wanted = np.arange(len(self))[rows]
        out = np.empty((len(wanted), self.box, self.box), dtype=np.float32)
        # ascending in each file: the disk is read forwards
        order = np.lexsort((self.index_in_stack[wanted], self.stack_of_row[wanted]))
        stacks = self.stack_of_row[wanted][order]
        for stack in np.unique(stacks):
            places = order[stacks == stack]
            rows_here = wanted[places]
            images = read_images(self.stack_paths[stack], self.index_in_stack[rows_here])
            self._check_images(images, rows_here)
            out[places] = images
        return out

    def _check_images(self, images: np.ndarray, rows: np.ndarray) -> None:
        low, high = images.min(axis=(1, 2)), images.max(axis=(1, 2))
        outside = images[:, _outside_circle(self.box)]
        bad_images = (
            # minimum and maximum of an image with a NaN are NaN
            (~np.isfinite(low) | ~np.isfinite(high), "holds NaN or infinite values"),
            (low == high, "is constant"),
            (np.maximum(-low, high) > _LARGEST_VALUE, f"holds values beyond {_LARGEST_VALUE:g}"),
            (
                outside.min(axis=1) == outside.max(axis=1),
                "is constant outside of its circle, where noise is measured; expected images that are not masked",
            ),
        )
        for bad, what in bad_images:
            if bad.any():
                row = int(rows[bad.argmax()])
                stack, image = self.stack_paths[self.stack_of_row[row]], self.index_in_stack[row] + 1
                where = f"row {self.table.row_number(row)} of {self.table.path}, which --exclude can leave out"
                raise InputError(f"{stack}: image {image} {what} ({where})")

    def poses(self) -> Pose | None:
        """Poses of the STAR file (:func:`star_poses`), shift in pixels of the images."""
        return star_poses(self.table, self.pixel_size_angstrom)

    def half_sets(self) -> np.ndarray | None:
        """Half-set of each particle, (N,) int64 of 1 and 2; None where the STAR file has no rlnRandomSubset."""
        if not self.table.has_column("rlnRandomSubset"):
            return None
        values = numeric_column(self.table, "rlnRandomSubset")
        bad = np.flatnonzero((values != 1) & (values != 2))
        if len(bad):
            row = int(bad[0])
            raise InputError(f"{self.table.cell(row, 'rlnRandomSubset')}: {values[row]:g}, expected 1 or 2")
        return values.astype(np.int64)


def ctf_parameters(table: ParticleTable) -> CTFParameters:
    missing = [name for name, default in _CTF_COLUMNS.values() if default is None and not table.has_column(name)]
    if missing:
        raise InputError(f"{table.path}: no CTF: missing columns {', '.join(missing)}")
    values = {key: numeric_column(table, name, default) for key, (name, default) in _CTF_COLUMNS.items()}
    return CTFParameters(**{key: torch.from_numpy(value).float() for key, value in values.items()})


@lru_cache(maxsize=4)
def _outside_circle(box: int) -> np.ndarray:
    """(box, box) true outside of the inscribed circle."""
    axis = np.arange(box) - box // 2
    return np.asarray(axis[:, None] ** 2 + axis**2 > (box / 2) ** 2)


def pixel_size_of(table: ParticleTable) -> float:
    """The one pixel size of all particles, in Angstrom."""
    values = pixel_sizes(table)
    low, high = float(values.min()), float(values.max())
    if high / low - 1 > _PIXEL_SIZE_TOLERANCE:
        row = int((np.abs(values / values[0] - 1) > _PIXEL_SIZE_TOLERANCE / 2).argmax())
        raise InputError(
            f"{table.path}: pixel sizes from {low:g} to {high:g} Angstrom, expected one for all particles "
            f"(row {table.row_number(0)} has {values[0]:g}, row {table.row_number(row)} has {values[row]:g})"
        )
    least, most = _PIXEL_SIZE_ANGSTROM
    if not least <= values[0] <= most:
        raise InputError(f"{table.path}: pixel size {values[0]:g}, expected Angstrom, {least:g} to {most:g}")
    return float(values[0])


def find_images(table: ParticleTable, row: int, name: str, project_root: Path | None) -> Path:
    """The file of an image path, which stands at ``row``, from 0, of a table."""
    folders = [] if project_root is None else [Path(project_root)]
    folders += [*table.path.absolute().parents, Path.cwd()]
    tried = list(dict.fromkeys(folder / name for folder in folders))  # an absolute name gives itself, once
    if Path(name).is_absolute() and project_root is not None:
        # of another machine or drive: its end, the longest first, may be below the project
        parts = Path(name).parts
        tried += [project_root.joinpath(*parts[i:]) for i in range(1, len(parts))]
    for candidate in tried:
        if candidate.is_file():
            return candidate
    advice = "give the folder that holds them with --project" if project_root is None else "is --project the right folder?"
    raise InputError(f"{table.cell(row, 'rlnImageName')}: images {name} not found; tried {', '.join(map(str, tried))}; {advice}")


def _locate_images(
    table: ParticleTable, names: tuple[str, ...], root: Path | None
) -> tuple[tuple[Path, ...], tuple[StackHeader, ...], np.ndarray, np.ndarray]:
    """Open every stack's header once: stack paths, their headers, stack of each row and index from 0 of each row."""
    stacks: dict[str, int] = {}
    paths: list[Path] = []
    headers: list[StackHeader] = []
    stack_of_row = np.empty(len(names), dtype=np.int64)
    index_in_stack = np.empty(len(names), dtype=np.int64)
    for row, name in enumerate(names):
        index, file = parse_image_name(table, row, name)
        if file not in stacks:
            stacks[file] = len(paths)
            paths.append(find_images(table, row, file, root))
            headers.append(_checked_header(paths[-1], paths[0], headers[:1]))
        stack = stacks[file]
        count = headers[stack].n
        if index is None and count > 1:
            raise InputError(f"{table.cell(row, 'rlnImageName')}: {name} names no image of the {count} in {paths[stack]}")
        if index is not None and index > count:
            raise InputError(f"{table.cell(row, 'rlnImageName')}: image {index} of {paths[stack]}, which holds {count}")
        stack_of_row[row], index_in_stack[row] = stack, (index or 1) - 1
    return tuple(paths), tuple(headers), stack_of_row, index_in_stack


def _refuse_repeats(
    table: ParticleTable, names: tuple[str, ...], paths: tuple[Path, ...], stack_of_row: np.ndarray, index_in_stack: np.ndarray
) -> None:
    """The same image in both half-sets would make their maps agree by itself."""
    files: dict[Path, int] = {}
    file_of_stack = np.array([files.setdefault(path.resolve(), len(files)) for path in paths])
    stack = file_of_stack[stack_of_row]
    order = np.lexsort((index_in_stack, stack))
    repeats = np.flatnonzero((np.diff(stack[order]) == 0) & (np.diff(index_in_stack[order]) == 0))
    if len(repeats):
        # lexsort keeps the order of equals: the earlier row comes first; told is the repeat that the reader meets first
        k = repeats[order[repeats + 1].argmin()]
        first, second = int(order[k]), int(order[k + 1])
        found = f"{names[second]} is the image of row {table.row_number(first)} again ({len(repeats)} such rows)"
        raise InputError(f"{table.cell(second, 'rlnImageName')}: {found}, expected every image once")


def _checked_header(path: Path, first_path: Path, first: list[StackHeader]) -> StackHeader:
    """Header of a stack of square images as large as those of the first stack."""
    header = stack_header(path)
    nx, ny = header.nx, header.ny
    if nx != ny:
        raise InputError(f"non-square {nx} x {ny} in {path}: expected square images")
    if nx < MIN_BOX:
        raise InputError(f"{path}: images of {nx} x {nx} pixels, expected at least {MIN_BOX}")
    if first and first[0].nx != nx:
        box = first[0].nx
        raise InputError(f"{path}: images of {nx} x {nx} pixels, but {first_path} has {box} x {box}")
    return header


def star_poses(table: ParticleTable, pixel_size_angstrom: float) -> Pose | None:
    """Poses of a particle table, float32, shift in pixels of ``pixel_size_angstrom``; None where it has no angles.

    Origins that are absent count as 0. They are in Angstrom (RELION 3.1) or in pixels (3.0).
    """
    angle_names = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
    if not all(table.has_column(name) for name in angle_names):
        return None
    angles = np.stack([numeric_column(table, name) for name in angle_names], axis=-1)
    shift_px = -np.stack([origin_px(table, axis, pixel_size_angstrom) for axis in "YX"], axis=-1)
    return Pose(relion_angles_to_rotmat(torch.from_numpy(angles)).float(), torch.from_numpy(shift_px).float())
