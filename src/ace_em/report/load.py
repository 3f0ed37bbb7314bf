"""Reads a run folder for the report. Every file may be missing, incomplete or damaged; the report lists such files."""

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

METRICS, CONFIG, FSC, POSES, EVALUATION = "metrics.jsonl", "config.yaml", "fsc.csv", "poses.star", "evaluation.json"
MAP, SHARP, HALF1, HALF2, MASK = "volume.mrc", "volume_sharp.mrc", "half1.mrc", "half2.mrc", "mask.mrc"
MAP_SO_FAR, CONFIDENT, STATUS, STOP, REPORT = "current.mrc", "confident.star", "status.json", "stop", "report.html"
MAPS = (MAP, SHARP, HALF1, HALF2, MAP_SO_FAR)
FSC_COLUMNS = ("frequency_per_angstrom", "fsc", "fsc_masked", "fsc_randomised", "fsc_corrected", "fsc_features")

T = TypeVar("T")
Record = dict[str, Any]


@dataclass(frozen=True)
class Curve:
    """Half-map FSC from fsc.csv; every array is (n,), one value per shell from shell 0.

    Attributes
    ----------
    frequency_per_angstrom : spatial frequency of the shell, 1/Angstrom.
    fsc : inside the spherical mask.
    masked, randomised, corrected : inside the solvent mask, the same with randomised phases, and corrected by the latter; None
        without such a column.
    features : inside the spherical mask, after the radial mean of each half-map is subtracted; None in older files.
    """

    frequency_per_angstrom: np.ndarray
    fsc: np.ndarray
    masked: np.ndarray | None = None
    randomised: np.ndarray | None = None
    corrected: np.ndarray | None = None
    features: np.ndarray | None = None


@dataclass(frozen=True)
class Map:
    """A cubic map (n, n, n) in z, y, x order."""

    volume: np.ndarray
    pixel_size_angstrom: float


@dataclass(frozen=True)
class RunFiles:
    """Content of a run folder; None for a file that could not be read, with the reason in ``problems``.

    Attributes
    ----------
    map, sharp : volume.mrc and volume_sharp.mrc.
    so_far : current.mrc, read only without a volume.mrc.
    metrics : records of metrics.jsonl, in order.
    config_text, config : config.yaml as text and parsed (empty if it is not a mapping).
    table : poses.star.
    particles : the particles of poses.star with their images; None if the images were not found.
    problems : (file, reason), in the order found.
    inside_only : whether links out of the folder were refused.
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
        """Whether a file exists and may be read."""
        return (self.path / file).is_file() and not (self.inside_only and is_outside(self.path, file))

    def stage(self, name: str) -> list[Record]:
        """Records of one stage, in order."""
        return [record for record in self.metrics if record.get("stage") == name]

    def last(self, name: str) -> Record:
        """The last record of a stage, empty if there is none."""
        return (self.stage(name) or [{}])[-1]

    def setting(self, group: str, name: str) -> float:
        """A number ``group.name`` of the configuration, NaN if missing."""
        values = self.config.get(group)
        return number(values if isinstance(values, dict) else None, name)

    @property
    def autoencoder_only(self) -> bool:
        """Whether the run was limited to stage 1 (``--stages ace``): no independent half-maps."""
        return self.config.get("stages") == "ace"

    @property
    def symmetry(self) -> str:
        """Imposed point group."""
        return str(self.last("symmetry").get("group") or self.config.get("symmetry", "C1")).upper()

    @property
    def box_angstrom(self) -> float:
        """Edge of the images, NaN if unknown."""
        return number(self.last("survey"), "box") * number(self.last("survey"), "pixel_size_angstrom")

    def missing(self, file: str) -> InputError:
        """Error with the reason why a file cannot be shown."""
        return InputError(next((f"{name}: {why}" for name, why in self.problems if name == file), f"{file} is missing"))


def number(record: Record | None, key: str) -> float:
    """A finite number of a record, else NaN."""
    value = (record or {}).get(key)
    valid = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if valid else math.nan  # type: ignore[arg-type]


def column(records: Sequence[Record], key: str) -> np.ndarray:
    """(n,) numbers of a key, NaN where it is missing."""
    return np.array([number(record, key) for record in records], dtype=np.float64)


def by_start(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records of each random start, in order; records without a start are under ''."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(str(record.get("start", "")), []).append(record)
    return groups


def rotations(table: ParticleTable) -> Tensor:
    """(N, 3, 3) rotations from the angles of a particle table."""
    angles = np.stack([numeric_column(table, f"rlnAngle{name}") for name in ("Rot", "Tilt", "Psi")], axis=-1)
    return relion_angles_to_rotmat(torch.from_numpy(angles))


def is_outside(run: Path, file: str) -> bool:
    """Whether a file of the folder is a link to outside the folder."""
    return not (run / file).resolve().is_relative_to(run.resolve())


def read_run(run: Path, inside_only: bool = False) -> RunFiles:
    """Read a run folder, finished or not; ``inside_only`` refuses links out of it."""
    if not run.is_dir():
        raise InputError(f"{run}: not a folder, expected a run of ace-em")
    problems: list[tuple[str, str]] = []

    def attempt(file: str, read: Callable[[Path], T], optional: bool = False) -> T | None:
        if optional and not (run / file).exists():
            return None
        try:
            if inside_only and is_outside(run, file):
                raise InputError("a link out of the run folder")
            return read(run / file)
        except (InputError, OSError, ValueError, KeyError, yaml.YAMLError) as error:
            problems.append((file, in_words(error) if (run / file).exists() else "missing"))
        return None

    volume = attempt(MAP, read_map)
    sharp = attempt(SHARP, read_map, optional=True)
    so_far = attempt(MAP_SO_FAR, read_map, optional=True) if volume is None else None
    problems += [(file, "missing") for file in (HALF1, HALF2) if not (run / file).is_file()]
    curve = attempt(FSC, _read_curve)
    metrics, broken = attempt(METRICS, _read_metrics) or ((), "")
    if broken:
        problems.append((METRICS, broken))
    text = attempt(CONFIG, lambda path: path.read_text(encoding="utf-8", errors="replace"))
    config = attempt(CONFIG, lambda path: yaml.safe_load(text or "")) if text is not None else None
    config = config if isinstance(config, dict) else {}
    evaluation = attempt(EVALUATION, _read_object, optional=True)
    table, particles = attempt(POSES, read_particle_star), None
    if table is not None:
        try:
            particles = _open_images(run, table, config)
        except (InputError, OSError, ValueError) as error:
            problems.append(("particle images", in_words(error)))
    maps = volume, sharp, so_far
    return RunFiles(run, *maps, curve, metrics, text, config, evaluation, table, particles, tuple(problems), inside_only)


def read_map(path: Path) -> Map:
    """Read a cubic map."""
    volume, pixel_size = read_volume(path)
    if len(set(volume.shape)) != 1:
        raise InputError(f"a map of {volume.shape} voxels, expected a cube")
    return Map(volume, pixel_size)


def _read_curve(path: Path) -> Curve:
    with path.open(newline="", encoding="utf-8") as file:
        table = csv.DictReader(file)
        present = [name for name in FSC_COLUMNS if name in (table.fieldnames or ())]
        if present[:2] != list(FSC_COLUMNS[:2]):
            raise InputError(f"expected columns {FSC_COLUMNS[0]} and {FSC_COLUMNS[1]}")
        # a truncated row has None in its last columns
        values = np.array([[float(row[name] or "nan") for name in present] for row in table], dtype=np.float64)
    if len(values) < 3 or not np.isfinite(values[:, :2]).all():
        raise InputError(f"{len(values)} shells, expected at least 3 with finite values")
    found = dict(zip(present, values.T, strict=True))
    return Curve(values[:, 0], values[:, 1], *(found.get(name) for name in FSC_COLUMNS[2:]))


def _read_metrics(path: Path) -> tuple[tuple[Record, ...], str]:
    """The records, and a message about invalid lines ('' if there are none)."""
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
        return tuple(records), "the last line is incomplete and was skipped"
    return tuple(records), f"{len(bad)} lines could not be read, the first is line {bad[0]}" if bad else ""


def _read_object(path: Path) -> Record:
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise InputError("expected a JSON object")
    return value


def _open_images(run: Path, table: ParticleTable, config: Record) -> Particles:
    """Open the particles of poses.star; image names are relative to --project, a parent of the input file or of the run."""
    _, name = parse_image_name(table, 0, str(table.particles["rlnImageName"].iloc[0]))
    project, source = config.get("project"), config.get("particles")
    folders = [Path(project)] if isinstance(project, str) and project else []
    if isinstance(source, str):
        folders += [*Path(source).absolute().parents, *(run / source).absolute().parents]
    return Particles.open(run / POSES, next((folder for folder in folders if (folder / name).is_file()), None))
