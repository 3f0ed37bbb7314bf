"""Particle tables from and to a file of either kind, chosen by its suffix."""

from collections.abc import Sequence
from pathlib import Path

from ace_em.io.particle_table import ParticleTable
from ace_em.io.star import read_particle_star, write_star

CRYOSPARC = ".cs"


def is_cryosparc(path: Path | str) -> bool:
    return Path(path).suffix.lower() == CRYOSPARC


def read_particle_table(path: Path | str, passthrough: Sequence[Path | str] = ()) -> ParticleTable:
    """Read a RELION STAR file or, by its suffix, a cryoSPARC .cs file.

    ``passthrough`` are .cs files with the fields that the file lacks, matched by uid; of a STAR file, those that it came from.
    """
    if is_cryosparc(path):
        from ace_em.io.cryosparc import read_cryosparc

        return read_cryosparc(path, passthrough)
    table = read_particle_star(path)
    if not passthrough:
        return table
    from ace_em.io.cryosparc import with_fields_of

    return with_fields_of(table, passthrough)


def write_particle_table(path: Path | str, table: ParticleTable, box: int = 0, sign: float = 1.0) -> None:
    """Write a RELION STAR file or, by its suffix, a .cs file, atomically; ``box`` and ``sign`` as in ``write_cryosparc``."""
    if is_cryosparc(path):
        from ace_em.io.cryosparc import write_cryosparc

        write_cryosparc(path, table, box, sign)
    else:
        write_star(path, table)
