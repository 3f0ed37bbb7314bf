"""Checks of a particle table before any image is read: units of the CTF columns, processed images, image size."""

import numpy as np

from ace_em.errors import InputError
from ace_em.io.particle_table import ParticleTable, numeric_column

# range of the median defocus in Angstrom; other values are in micrometres (1.5), metres (1.5e-6) or picometres, or unset
_DEFOCUS_ANGSTROM = (100.0, 200_000.0)
# smaller defocus values cannot be measured: the row is in micrometres
_LEAST_DEFOCUS_ANGSTROM = 10.0
# column: minimum, maximum, unit
_MICROSCOPE = {
    "rlnVoltage": (10.0, 5000.0, "kV"),
    "rlnSphericalAberration": (-10.0, 100.0, "mm"),
    "rlnAmplitudeContrast": (0.0, 1.0, "(a fraction)"),
}


def check_values(table: ParticleTable) -> None:
    """Raise InputError for values in the wrong unit and for images that were processed after extraction."""
    _check_defocus(table)
    _check_microscope(table)
    _refuse_processed(table)


def _check_defocus(table: ParticleTable) -> None:
    """Raise InputError for a defocus in the wrong unit or with the wrong sign: later stages would not detect it."""
    low, high = _DEFOCUS_ANGSTROM
    for name in ("rlnDefocusU", "rlnDefocusV"):
        values = numeric_column(table, name)
        typical, median = float(np.median(np.abs(values))), float(np.median(values))
        found = f"{table.path}: {table.column_name(name)}: median {median:g} (row {table.row_number(0)} has {values[0]:g})"
        if not low <= typical <= high:
            raise InputError(f"{found}, expected Angstrom, {low:g} to {high:,.0f}; 1.5 micrometres are 15000")
        if median < 0:
            raise InputError(f"{found}, underfocus must be positive; change the sign of the column")
        near_0 = np.abs(values) < _LEAST_DEFOCUS_ANGSTROM
        if near_0.any():
            row = int(near_0.argmax())
            raise InputError(f"{table.cell(row, name)}: {values[row]:g}, expected Angstrom as in the other rows")


def _check_microscope(table: ParticleTable) -> None:
    """Raise InputError for values in the wrong unit, such as volts, or amplitude contrast in per cent."""
    for name, (low, high, unit) in _MICROSCOPE.items():
        values = numeric_column(table, name)
        bad = (values < low) | (values > high)
        if bad.any():
            row = int(bad.argmax())
            raise InputError(f"{table.cell(row, name)}: {values[row]:g}, expected {low:g} to {high:g} {unit}")


def _refuse_processed(table: ParticleTable) -> None:
    """Raise InputError for phase-flipped or CTF-multiplied images: the CTF would be corrected twice."""
    expected = {
        "rlnCtfDataAreCtfPremultiplied": (0, "images are multiplied by their CTF; expected them as extracted"),
        "rlnCtfDataArePhaseFlipped": (0, "images are phase-flipped; expected them as extracted"),
        "rlnImageDimensionality": (2, "expected 2-D images"),
    }
    for name, (required, message) in expected.items():
        if table.has_column(name):
            values = numeric_column(table, name)
            if (values != required).any():
                row = int((values != required).argmax())
                raise InputError(f"{table.cell(row, name)}: {values[row]:g}: {message}")


def check_image_size(table: ParticleTable, box: int) -> None:
    """Raise InputError if rlnImageSize is not ``box`` for all particles."""
    if not table.has_column("rlnImageSize"):
        return
    sizes = np.unique(numeric_column(table, "rlnImageSize"))
    found = f"{table.path}: {table.column_name('rlnImageSize')}"
    if len(sizes) > 1:
        raise InputError(f"{found} from {sizes[0]:g} to {sizes[-1]:g}, expected one for all particles")
    if sizes[0] != box:
        # the images were binned without updating the table: its pixel size is wrong too
        raise InputError(f"{found} is {sizes[0]:g}, but the images have {box} pixels")
