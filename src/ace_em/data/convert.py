"""``ace-em convert``: between RELION STAR and cryoSPARC .cs files; only metadata are read."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ace_em.data.particles import find_images
from ace_em.errors import InputError
from ace_em.io.cryosparc_columns import dropped_columns
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
    """Write the particles of ``source`` to ``target`` (.star or .cs files) and report in one line what was written.

    Parameters
    ----------
    passthrough : cryoSPARC files with the fields that ``source`` lacks, as in ``read_particle_table``.
    box : pixels per image edge, for a STAR file without rlnImageSize whose images are not available.
    contrast : "white" or "black" protein in the images of a STAR file, which does not record it; "" is white, RELION's
        convention.
    """
    for path in (source, target):
        if path.suffix.lower() not in (".star", ".cs"):
            raise InputError(f"{path}: expected a name that ends in .star or .cs")
    if target.resolve() in {path.resolve() for path in (source, *passthrough)}:
        raise InputError(f"{target}: is an input file; give another name")
    if target.exists() and not (overwrite and target.is_file()):
        raise InputError(f"{target}: {'exists already; --overwrite replaces it' if target.is_file() else 'is not a file'}")
    if not target.absolute().parent.is_dir():
        raise InputError(f"{target.parent}: no such folder")
    if box and not 16 <= box <= 1 << 16:
        raise InputError(f"--box {box}: expected 16 to 65536 pixels")
    table = read_particle_table(source, passthrough)
    if contrast and not (is_cryosparc(target) and table.cryosparc is None):
        raise InputError(f"--contrast {contrast}: expected only for a STAR file without blob/sign that is converted to .cs")
    if is_cryosparc(target) and table.cryosparc is None:
        box = _box(table, box)
    # before writing: it reads columns that the conversion may not, and these can be invalid
    summary = _summary(table, target)
    try:
        write_particle_table(target, table, box, sign=-1.0 if contrast == "black" else 1.0)
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror})") from error
    say(f"{target}: {summary}")


def _box(table: ParticleTable, box: int) -> int:
    """Image edge from the option or, if the table lacks it, from the stack of the first image; 0 if that is not found."""
    if table.has_column("rlnImageSize"):
        sizes = numeric_column(table, "rlnImageSize")
        if box and (sizes != box).any():
            row = int((sizes != box).argmax())
            raise InputError(f"--box {box}: {table.cell(row, 'rlnImageSize')} is {sizes[row]:g}")
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
        parts.append("stacks are named .mrc, but RELION reads stacks only as .mrcs")
    sign = (table.cryosparc or {}).get("blob/sign")
    if not is_cryosparc(target) and sign is not None and (sign < 0).all():
        parts.append("protein is black (blob/sign -1), but RELION expects white")
    if is_cryosparc(target) and table.cryosparc is None and "csUid" in table.particles:
        parts.append("blob/sign and fields without a column have default values: give the original .cs file with --passthrough")
    dropped = _dropped(table, target)
    if dropped:
        more = f" and {len(dropped) - 4} more" if len(dropped) > 4 else ""
        parts.append(f"dropped: {', '.join(dropped[:4])}{more}")
    return ", ".join(parts)


def _dropped(table: ParticleTable, target: Path) -> list[str]:
    """What the conversion drops: RELION columns, aberrations first; of cryoSPARC's fields only the aberrations are listed."""
    aberrations = ignored_aberrations(table)
    if not is_cryosparc(target):
        return [name for name in aberrations if name.startswith("ctf/")]
    return sorted(dropped_columns(table), key=lambda name: name not in aberrations)
