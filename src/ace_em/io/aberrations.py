"""What a table says of a microscope's aberrations that neither the CTF here nor a conversion takes into account."""

import re

import numpy as np
import pandas as pd

from ace_em.io.particle_table import ParticleTable

_FIELDS = ("ctf/shift_A", "ctf/tilt_A", "ctf/trefoil_A", "ctf/tetra_A", "ctf/anisomag")
# column: the value that is no aberration
_COLUMNS = {"rlnBeamTiltX": 0, "rlnBeamTiltY": 0, "rlnOddZernike": 0, "rlnEvenZernike": 0}
_COLUMNS |= {"rlnMagMat00": 1, "rlnMagMat01": 0, "rlnMagMat10": 0, "rlnMagMat11": 1}


# of the CTF, and converted between the formats
_ENVELOPE = {"rlnCtfBfactor": 0, "rlnCtfScalefactor": 1}


def not_in_the_model(table: ParticleTable) -> list[str]:
    """What the CTF here does not take into account: aberrations, and envelope and scale where they say something."""
    envelope = (name for name, none in _ENVELOPE.items() if _holds(table, name, none))
    return ignored_aberrations(table) + [table.field_names.get(name, name) for name in envelope]


def ignored_aberrations(table: ParticleTable) -> list[str]:
    """Names of the columns, or fields of cryoSPARC, that hold an aberration which is not zero."""
    found = [name for name, none in _COLUMNS.items() if _holds(table, name, none)]
    carried = table.cryosparc or {}
    return found + [name for name in _FIELDS if name in carried and np.any(carried[name] != 0)]


def _holds(table: ParticleTable, name: str, none: int) -> bool:
    frames = [table.particles] if table.optics is None else [table.optics, table.particles]
    return any(name in frame and _differs(frame[name], none) for frame in frames)


def _differs(column: pd.Series, none: int) -> bool:
    """Whether a number in a column of numbers, or of lists of them such as ``[0,0,0]``, is another than ``none``."""
    for text in column.unique():
        for token in re.split(r"[\s,\[\]]+", text):
            try:
                if token and float(token) != none:
                    return True
            except ValueError:
                continue
    return False
