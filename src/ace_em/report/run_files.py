"""A run folder as the report reads it: every file may be absent or unfinished, and then it is said which."""

import csv
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import yaml
from torch import Tensor

from ace_em.data.particles import Particles
from ace_em.errors import InputError, in_words
from ace_em.io.mrc import read_volume
from ace_em.io.particle_table import parse_image_name
from ace_em.io.star import ParticleTable, numeric_column, read_particle_star
from ace_em.physics.pose import relion_angles_to_rotmat

T = TypeVar("T")
Record = dict[str, Any]


@dataclass(frozen=True)
class Curve:
    """Half-map FSC, every array (n,), shell by shell from shell 0.

    Attributes
    ----------
    fsc : inside the ball, without a mask.
    features : the same without the halves' radial means, which any arrangement of poses gives; None in older tables.
    masked, randomised, corrected : inside the mask, there with random phases, and the one corrected for the other; None where
        the table has no such column.
    """

    frequency_per_angstrom: np.ndarray
    fsc: np.ndarray
    masked: np.ndarray | None = None
    randomised: np.ndarray | None = None
    corrected: np.ndarray | None = None
    features: np.ndarray | None = None


@dataclass(frozen=True)
class Shared:
    """What the two half-sets had in common at the outset: a map cut at ``cut_angstrom``.

    Its soft edge and the outline of the ball carry agreement a few shells further, to ``reach_angstrom``, even for noise.
    """

    cut_angstrom: float
    reach_angstrom: float


@dataclass(frozen=True)
class Map:
    """A cubic map (n, n, n) in z, y, x order."""

    volume: np.ndarray
    pixel_size_angstrom: float


@dataclass(frozen=True)
class RunFiles:
    """What a run folder holds; None stands for what could not be read, and ``problems`` says why.

    Attributes
    ----------
    map, sharp : volume.mrc, and volume_sharp.mrc, which earlier versions did not write.
    so_far : current.mrc, the map of a run that has not yet written volume.mrc.
    metrics : the objects of metrics.jsonl, in order.
    config_text, config : config.yaml as it stands, and parsed (empty when it is not a mapping).
    table : poses.star without its images; ``particles`` is the same rows with their images, where these were found.
    problems : (file, what is wrong), in the order in which they were found.
    inside_only : whether links that lead out of the folder were refused.
    """

    path: Path
    map: Map | None
    sharp: Map | None
    so_far: Map | None
    curve: Curve | None
    metrics: tuple[Record, ...]
    config_text: str | None
    config: Record
    evaluation: Record | None
    table: ParticleTable | None
    particles: Particles | None
    problems: tuple[tuple[str, str], ...]
    inside_only: bool

    def readable(self, file: str) -> bool:
        """Whether a file is there and may be read."""
        return (self.path / file).is_file() and not (self.inside_only and leads_out(self.path, file))

    def stage(self, name: str) -> list[Record]:
        """The records of a stage, in the order logged."""
        return [record for record in self.metrics if record.get("stage") == name]

    @property
    def autoencoder_only(self) -> bool:
        """Whether stage 1 ran alone (``--stages ace``): no search, no refinement, no independent half-maps."""
        return self.config.get("stages") == "ace"

    @property
    def symmetry(self) -> str:
        """Name of the point group that the run imposes."""
        groups = [record.get("group") for record in self.stage("symmetry")]
        return str(groups[-1] if groups else self.config.get("symmetry", "C1")).upper()

    def problem(self, file: str) -> str | None:
        """What is wrong with a file."""
        return next((f"{name}: {what}" for name, what in self.problems if name == file), None)


def number(record: Record | None, key: str) -> float:
    """A finite number of a record, else NaN."""
    value = (record or {}).get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return math.nan
    return float(value)


def column(records: Sequence[Record], key: str) -> np.ndarray:
    """(n,) numbers of a key, NaN where it is absent."""
    return np.array([number(record, key) for record in records], dtype=np.float64)


def by_start(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records of each random start, in the order logged; under '' those of no one start."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(str(record.get("start", "")), []).append(record)
    return groups


def rotations(table: ParticleTable) -> Tensor:
    """(N, 3, 3) rotations of the table's angles."""
    angles = np.stack([numeric_column(table, f"rlnAngle{name}") for name in ("Rot", "Tilt", "Psi")], axis=-1)
    return relion_angles_to_rotmat(torch.from_numpy(angles))


def leads_out(run: Path, file: str) -> bool:
    """Whether a file of the folder is a link to a place outside of it."""
    return not (run / file).resolve().is_relative_to(run.resolve())


def read_run(run: Path, inside_only: bool = False) -> RunFiles:
    """Read a run folder, finished or not; ``inside_only`` refuses links that lead out of it."""
    if not run.is_dir():
        raise InputError(f"{run}: not a folder, expected a run of ace-em")
    problems: list[tuple[str, str]] = []

    def attempt(file: str, read: Callable[[Path], T]) -> T | None:
        try:
            if inside_only and leads_out(run, file):
                raise InputError("a link that leads out of the run folder")
            return read(run / file)
        except FileNotFoundError:
            problems.append((file, "not there"))
        except (InputError, OSError, ValueError, KeyError, yaml.YAMLError) as error:
            there = (run / file).exists()
            problems.append((file, in_words(error) if there else "not there"))
        return None

    volume = attempt("volume.mrc", read_map)
    sharp = attempt("volume_sharp.mrc", read_map) if (run / "volume_sharp.mrc").exists() else None
    so_far = attempt("current.mrc", read_map) if volume is None and (run / "current.mrc").exists() else None
    for file in ("half1.mrc", "half2.mrc"):
        if not (run / file).is_file():
            problems.append((file, "not there"))
    curve = attempt("fsc.csv", _read_curve)
    metrics, broken = attempt("metrics.jsonl", _read_metrics) or ((), None)
    if broken:
        problems.append(("metrics.jsonl", broken))
    text = attempt("config.yaml", lambda path: path.read_text(encoding="utf-8", errors="replace"))
    config = attempt("config.yaml", lambda path: yaml.safe_load(text or "")) if text is not None else None
    config = config if isinstance(config, dict) else {}
    evaluation = attempt("evaluation.json", _read_object) if (run / "evaluation.json").exists() else None
    table = attempt("poses.star", read_particle_star)
    particles = None
    if table is not None:
        try:
            particles = _open_images(run, table, config)
        except (InputError, OSError, ValueError) as error:
            problems.append(("particle images", in_words(error)))
    maps = volume, sharp, so_far
    return RunFiles(run, *maps, curve, metrics, text, config, evaluation, table, particles, tuple(problems), inside_only)


def read_map(path: Path) -> Map:
    volume, pixel_size = read_volume(path)
    if len(set(volume.shape)) != 1:
        raise InputError(f"a map of {volume.shape} voxels, expected a cube")
    return Map(volume, pixel_size)


def _read_curve(path: Path) -> Curve:
    names = ("frequency_per_angstrom", "fsc", "fsc_masked", "fsc_randomised", "fsc_corrected", "fsc_features")
    with path.open(newline="", encoding="utf-8") as file:
        table = csv.DictReader(file)
        present = [name for name in names if name in (table.fieldnames or ())]
        if present[:2] != list(names[:2]):
            raise InputError(f"expected columns {names[0]} and {names[1]}")
        # a row cut short has None where it ends
        rows = [[float(row[name] or "nan") for name in present] for row in table]
    values = np.array(rows, dtype=np.float64)
    if len(rows) < 3 or not np.isfinite(values[:, :2]).all():
        raise InputError(f"{len(rows)} shells, expected at least 3 with finite values")
    found = dict(zip(present, values.T, strict=True))
    return Curve(values[:, 0], values[:, 1], *(found.get(name) for name in names[2:]))


def _read_metrics(path: Path) -> tuple[tuple[Record, ...], str | None]:
    """The records, and what is wrong with the lines that are none."""
    records: list[Record] = []
    bad: list[int] = []
    lines = path.read_bytes().decode("utf-8", errors="replace").splitlines()
    for n, line in enumerate(lines, start=1):
        try:
            record = json.loads(line) if line.strip() else {}
        except ValueError:
            record = None
        if isinstance(record, dict):
            records.append(record)
        else:
            bad.append(n)
    if bad == [len(lines)]:
        return tuple(records), "the last line is incomplete and was left out"
    return tuple(records), f"{len(bad)} lines could not be read, the first is line {bad[0]}" if bad else None


def _read_object(path: Path) -> Record:
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise InputError("expected a JSON object")
    return value


def _open_images(run: Path, table: ParticleTable, config: Record) -> Particles:
    """The images of poses.star, whose names are relative to --project, to the input's folder or one above it, or to the run."""
    _, name = parse_image_name(table, 0, str(table.particles["rlnImageName"].iloc[0]))
    project, source = config.get("project"), config.get("particles")
    folders = [Path(project)] if isinstance(project, str) and project else []
    if isinstance(source, str):
        folders += [*Path(source).absolute().parents, *(run / source).absolute().parents]
    root = next((folder for folder in folders if (folder / name).is_file()), None)
    return Particles.open(run / "poses.star", root)
