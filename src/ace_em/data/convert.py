"""``ace-em convert``: RELION STAR and cryoSPARC .cs into each other, from the metadata alone."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ace_em.data.particles import find_images
from ace_em.errors import InputError
from ace_em.io.cryosparc_columns import columns_left_out
from ace_em.io.mrc import stack_shape
from ace_em.io.particle_table import (
    ParticleTable,
    ignored_aberrations,
    is_cryosparc,
    numeric_column,
    parse_image_name,
    pixel_sizes,
    read_particle_table,
    write_particle_table,
)


def convert(
    source: Path,
    target: Path,
    passthrough: Sequence[Path] = (),
    overwrite: bool = False,
    say: Callable[[str], None] = print,
    box: int = 0,
    contrast: str = "",
) -> None:
    """Write the particles of ``source`` to ``target``, each a .star or a .cs file, and say in one line what was written.

    Parameters
    ----------
    passthrough : cryoSPARC files with the fields that ``source`` lacks, as in ``read_particle_table``.
    box : pixels per image edge, for a STAR file that does not say and whose images are not there.
    contrast : "white" or "black" protein in the images of a STAR file, which does not say; "" is white, as RELION wants it.
    """
    for path in (source, target):
        if path.suffix.lower() not in (".star", ".cs"):
            raise InputError(f"{path}: expected a name that ends in .star or .cs")
    if target.resolve() in {path.resolve() for path in (source, *passthrough)}:
        raise InputError(f"{target}: is a file to convert; give another name")
    if target.exists() and not (overwrite and target.is_file()):
        raise InputError(f"{target}: {'exists already; --overwrite replaces it' if target.is_file() else 'is not a file'}")
    if not target.absolute().parent.is_dir():
        raise InputError(f"{target.parent}: no such folder")
    if box and not 16 <= box <= 1 << 16:
        raise InputError(f"--box {box}: expected 16 to 65536 pixels")
    table = read_particle_table(source, passthrough)
    if contrast and not (is_cryosparc(target) and table.cryosparc is None):
        raise InputError(f"--contrast {contrast}: expected only where a .cs file is made of a STAR file that has no blob/sign")
    if is_cryosparc(target) and table.cryosparc is None:
        box = _box(table, box)
    # before anything is written, for it reads columns that a conversion may not
    summary = _summary(table, target)
    try:
        write_particle_table(target, table, box, sign=-1.0 if contrast == "black" else 1.0)
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror})") from error
    say(f"{target}: {summary}")


def _box(table: ParticleTable, box: int) -> int:
    """Image edge: of the option, or from the first image's file where the table does not say; 0 where that is not there."""
    if table.has_column("rlnImageSize"):
        sizes = numeric_column(table, "rlnImageSize")
        if box and (sizes != box).any():
            row = int((sizes != box).argmax())
            raise InputError(f"--box {box}: {table.cell(row, 'rlnImageSize')} says {sizes[row]:g}")
        return box
    if box:
        return box
    _, path = parse_image_name(table, 0, str(table.particles["rlnImageName"].iloc[0]))
    try:
        return stack_shape(find_images(table, 0, path, None))[2]
    except InputError:
        return 0


def _summary(table: ParticleTable, target: Path) -> str:
    poses = all(table.has_column(name) for name in ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"))
    halves = "no half-sets"
    if table.has_column("rlnRandomSubset"):
        half = numeric_column(table, "rlnRandomSubset")
        halves = f"half-sets of {(half == 1).sum()} and {(half == 2).sum()}"
    try:
        sizes = np.unique(np.round(pixel_sizes(table), 4))
        pixel = " to ".join(f"{size:g}" for size in dict.fromkeys((sizes[0], sizes[-1]))) + " A/pixel"
    except InputError:
        pixel = "pixel size unknown"
    parts = [f"{len(table)} particles", "with poses" if poses else "without poses", halves, pixel]
    if not is_cryosparc(target) and table.particles["rlnImageName"].str.endswith(".mrc").any():
        parts.append("stacks named .mrc, which RELION opens only as .mrcs")
    sign = (table.cryosparc or {}).get("blob/sign")
    if not is_cryosparc(target) and sign is not None and (sign < 0).all():
        parts.append("protein black (blob/sign -1), which RELION wants inverted")
    if is_cryosparc(target) and table.cryosparc is None and "csUid" in table.particles:
        parts.append("blob/sign and what no column says are guesses: give the .cs file it came from with --passthrough")
    left = _left_out(table, target)
    if left:
        more = f" and {len(left) - 4} more" if len(left) > 4 else ""
        parts.append(f"left out: {', '.join(left[:4])}{more}")
    return ", ".join(parts)


def _left_out(table: ParticleTable, target: Path) -> list[str]:
    """What the target has no place for: columns of RELION, aberrations first; of cryoSPARC's many fields the aberrations."""
    aberrations = ignored_aberrations(table)
    if not is_cryosparc(target):
        return [name for name in aberrations if name.startswith("ctf/")]
    left = columns_left_out(table)
    return sorted(left, key=lambda name: name not in aberrations)
