"""RELION's image names: ``000001@path`` with an index from 1; a path alone is a file of one image."""

from ace_em.errors import InputError
from ace_em.io.particle_table import ParticleTable

# RELION and Xmipp write the file's kind behind a stack of another extension; it is no part of the path
_KINDS = (":mrcs", ":mrc")


def parse_image_name(table: ParticleTable, row: int, name: str) -> tuple[int | None, str]:
    """Index from 1 (None: the file is one image) and path of an image name; it stands at ``row``, from 0, of the table."""
    index, at, path = name.partition("@") if "@" in name else ("", "", name)
    for kind in _KINDS:
        path = path.removesuffix(kind)
    # no stack has an index of more digits, and no array could hold it
    if not path or (at and not (index.isdecimal() and len(index) < 19 and int(index) >= 1)):
        raise InputError(f"{table.cell(row, 'rlnImageName')}: {name!r}, expected index@path with an index from 1")
    return (int(index) if at else None), path
