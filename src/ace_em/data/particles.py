"""Particles on disk: particle table, image stacks, CTF parameters, poses and half-sets."""

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
# relative difference of pixel sizes that rounding (of a magnification) can cause; moves no CTF ring by a pixel
_PIXEL_SIZE_TOLERANCE = 1e-4
_PIXEL_SIZE_ANGSTROM = (0.05, 100.0)
# relative difference of pixel size between table and header that calibration or rounding can cause
_HEADER_TOLERANCE = 1e-2
# sums of squares of larger values overflow float32
_LARGEST_VALUE = 1e12
# field of CTFParameters: column, default value (None: the column is required)
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
    table : the particle table of the STAR or .cs file.
    image_names : N strings, ``index@path`` as in the STAR file.
    box : pixels per image edge.
    pixel_size_angstrom : of the images.
    ctf : fields of shape (N,), float32.
    stack_paths : the image files.
    stack_of_row : (N,) index into ``stack_paths``.
    index_in_stack : (N,) index of the image in its stack, from 0.
    header_pixel_sizes : Angstrom, for each of ``stack_paths``; None if not set in its header.
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
        project_root : folder that image paths are relative to. Without it, or if a stack is not found there, the folder of
            the file, its parents (one of them is the root of a RELION or cryoSPARC project) and the current folder are tried.
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
        _ = particles.sign_on_disk  # raises InputError if both signs occur
        return particles

    def __len__(self) -> int:
        return len(self.table)

    @property
    def optics_group(self) -> np.ndarray:
        """(N,) row of the optics table of each particle; 0 without optics groups."""
        optics = self.table.optics
        if optics is None or "rlnOpticsGroup" not in optics or "rlnOpticsGroup" not in self.table.particles:
            return np.zeros(len(self), dtype=np.int64)
        return optics_rows(self.table, optics)

    @property
    def sign_on_disk(self) -> float | None:
        """+1 if the protein is white in the image files, -1 if black; None for a STAR file, which does not record it."""
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
        """First stack whose header pixel size differs from the table by more than 1 %, and that size; None if none does."""
        least, most = _PIXEL_SIZE_ANGSTROM  # other values are not pixel sizes
        for path, size in zip(self.stack_paths, self.header_pixel_sizes, strict=True):
            other = size is not None and abs(size / self.pixel_size_angstrom - 1) > _HEADER_TOLERANCE
            if size is not None and other and least <= size <= most:
                return path, size
        return None

    def images(self, rows: np.ndarray | slice) -> np.ndarray:
        """Images (B, box, box), float32, of ``rows`` in the given order; grey values as in the file.

        Raises :class:`InputError` for an image with NaN or infinite values, constant or masked.
        """
        selected = np.arange(len(self))[rows]
        out = np.empty((len(selected), self.box, self.box), dtype=np.float32)
        # ascending within each file, for sequential reads
        order = np.lexsort((self.index_in_stack[selected], self.stack_of_row[selected]))
        stacks = self.stack_of_row[selected][order]
        for stack in np.unique(stacks):
            places = order[stacks == stack]
            rows_here = selected[places]
            images = read_images(self.stack_paths[stack], self.index_in_stack[rows_here])
            self._check_images(images, rows_here)
            out[places] = images
        return out

    def _check_images(self, images: np.ndarray, rows: np.ndarray) -> None:
        low, high = images.min(axis=(1, 2)), images.max(axis=(1, 2))
        outside = images[:, _outside_circle(self.box)]
        bad_images = (
            # the minimum and maximum of an image with a NaN are NaN
            (~np.isfinite(low) | ~np.isfinite(high), "contains NaN or infinite values"),
            (low == high, "is constant"),
            (np.maximum(-low, high) > _LARGEST_VALUE, f"contains values beyond {_LARGEST_VALUE:g}"),
            (
                outside.min(axis=1) == outside.max(axis=1),
                "is constant outside the inscribed circle, where noise is measured; expected unmasked images",
            ),
        )
        for bad, what in bad_images:
            if bad.any():
                row = int(rows[bad.argmax()])
                stack, image = self.stack_paths[self.stack_of_row[row]], self.index_in_stack[row] + 1
                where = f"row {self.table.row_number(row)} of {self.table.path}; --exclude can omit it"
                raise InputError(f"{stack}: image {image} {what} ({where})")

    def poses(self) -> Pose | None:
        """Poses of the table (:func:`star_poses`), shift in pixels of the images."""
        return star_poses(self.table, self.pixel_size_angstrom)

    def half_sets(self) -> np.ndarray | None:
        """Half-set of each particle, (N,) int64 of 1 and 2; None without a column rlnRandomSubset."""
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
    """(box, box) mask, true outside the inscribed circle."""
    axis = np.arange(box) - box // 2
    return np.asarray(axis[:, None] ** 2 + axis**2 > (box / 2) ** 2)


def pixel_size_of(table: ParticleTable) -> float:
    """Pixel size in Angstrom; InputError if the particles have different ones."""
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
    """The file for an image path at ``row`` (from 0) of a table."""
    folders = [] if project_root is None else [Path(project_root)]
    folders += [*table.path.absolute().parents, Path.cwd()]
    tried = list(dict.fromkeys(folder / name for folder in folders))  # an absolute name stays as it is
    if Path(name).is_absolute() and project_root is not None:
        # an absolute path from another machine: try its last components below the project, longest first
        parts = Path(name).parts
        tried += [project_root.joinpath(*parts[i:]) for i in range(1, len(parts))]
    for candidate in tried:
        if candidate.is_file():
            return candidate
    advice = "give the project folder with --project" if project_root is None else "is --project the right folder?"
    raise InputError(f"{table.cell(row, 'rlnImageName')}: images {name} not found; tried {', '.join(map(str, tried))}; {advice}")


def _locate_images(
    table: ParticleTable, names: tuple[str, ...], root: Path | None
) -> tuple[tuple[Path, ...], tuple[StackHeader, ...], np.ndarray, np.ndarray]:
    """Read each stack's header once: paths, headers, and the stack and index (from 0) of each row."""
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
            raise InputError(f"{table.cell(row, 'rlnImageName')}: {name} has no index, but {paths[stack]} contains {count}")
        if index is not None and index > count:
            raise InputError(f"{table.cell(row, 'rlnImageName')}: image {index} of {paths[stack]}, which contains {count}")
        stack_of_row[row], index_in_stack[row] = stack, (index or 1) - 1
    return tuple(paths), tuple(headers), stack_of_row, index_in_stack


def _refuse_repeats(
    table: ParticleTable, names: tuple[str, ...], paths: tuple[Path, ...], stack_of_row: np.ndarray, index_in_stack: np.ndarray
) -> None:
    """Raise InputError for an image listed twice: in both half-sets it would correlate the half-maps."""
    files: dict[Path, int] = {}
    file_of_stack = np.array([files.setdefault(path.resolve(), len(files)) for path in paths])
    stack = file_of_stack[stack_of_row]
    order = np.lexsort((index_in_stack, stack))
    repeats = np.flatnonzero((np.diff(stack[order]) == 0) & (np.diff(index_in_stack[order]) == 0))
    if len(repeats):
        # lexsort is stable, so the earlier row comes first; report the repeat with the lowest row number
        k = repeats[order[repeats + 1].argmin()]
        first, second = int(order[k]), int(order[k + 1])
        found = f"{names[second]} is the image of row {table.row_number(first)} again ({len(repeats)} such rows)"
        raise InputError(f"{table.cell(second, 'rlnImageName')}: {found}, expected every image once")


def _checked_header(path: Path, first_path: Path, first: list[StackHeader]) -> StackHeader:
    """Header of a stack; InputError unless its images are square and as large as those of the first stack."""
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
    """Poses of a particle table, float32, shift in pixels of ``pixel_size_angstrom``; None without angles.

    Missing origins are 0. Origins are in Angstrom (RELION 3.1) or in pixels (3.0).
    """
    angle_names = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
    if not all(table.has_column(name) for name in angle_names):
        return None
    angles = np.stack([numeric_column(table, name) for name in angle_names], axis=-1)
    shift_px = -np.stack([origin_px(table, axis, pixel_size_angstrom) for axis in "YX"], axis=-1)
    return Pose(relion_angles_to_rotmat(torch.from_numpy(angles)).float(), torch.from_numpy(shift_px).float())
