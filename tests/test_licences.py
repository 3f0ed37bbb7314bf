"""Everything that users install with ace-em may be given away with it under BSD-3-Clause."""

import re
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution

import pytest
from packaging.requirements import Requirement

ALLOWED = re.compile(
    r"\b(MIT|BSD|Apache|Apache-2\.0|MPL-2\.0|Mozilla Public License 2\.0|PSF-2\.0|Python Software Foundation|ISC|Zlib|BSL-1\.0"
    r"|CC0-1\.0|Redistribution and use in source and binary forms)\b"
)
REFUSED = re.compile(r"\b(A?GPL|GPLv?\d|General Public License|Commercial|Proprietary)", re.IGNORECASE)


def licence(package: Distribution) -> str:
    """What the package says of its licence: the SPDX expression, else the classifiers, else the text."""
    said = package.metadata
    classifiers = [c for c in said.get_all("Classifier") or [] if c.startswith("License ::")]
    return said.get("License-Expression") or "; ".join(classifiers) or said.get("License") or ""


def allowed(text: str) -> bool:
    return bool(ALLOWED.search(text)) and not REFUSED.search(text)


def installed_with(name: str, extras: set[str], seen: set[str]) -> Iterator[Distribution]:
    """The package and all that it needs, with its extras."""
    if name in seen:
        return
    seen.add(name)
    try:
        package = distribution(name)
    except PackageNotFoundError:  # of another platform
        return
    yield package
    for line in package.requires or []:
        needed = Requirement(line)
        if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield from installed_with(re.sub(r"[-_.]+", "-", needed.name).lower(), needed.extras, seen)


def test_every_dependency_allows_our_licence() -> None:
    packages = list(installed_with("ace-em", {"cryosparc", "watch"}, set()))
    assert len(packages) > 30
    refused = [f"{p.metadata['Name']}: {licence(p)[:100]!r}" for p in packages if not allowed(licence(p))]
    assert not refused, "\n".join(refused)


@pytest.mark.parametrize("text", ["GPL-2.0-only", "GNU General Public License v2 (GPLv2)", "", "Proprietary"])
def test_others_are_refused(text: str) -> None:
    assert not allowed(text)
