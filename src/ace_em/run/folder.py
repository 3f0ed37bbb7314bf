"""The files of RUN/, each written whole or not at all."""

import csv
import os
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from ace_em.errors import InputError
from ace_em.io.atomic import replace_atomically
from ace_em.io.mrc import write_volume
from ace_em.io.particle_table import ParticleTable, write_particle_table
from ace_em.io.star import write_star

MAPS = ("volume", "volume_sharp", "mask", "half1", "half2", "half1_damped", "half2_damped")
RESULTS = (*(f"{name}.mrc" for name in MAPS), "fsc.csv", "poses.star", "confident.star", "encoder.pt", "report.html")
"""Results of a finished run, beside its settings, records and checkpoint."""
FILES = (
    *("metrics.jsonl", "config.yaml", "checkpoint.pt", "checkpoint.previous.pt", "status.json", "current.mrc", "stop", ".lock"),
    *(*RESULTS, "poses.cs", "confident.cs", "evaluation.json"),
)
"""Everything that a run may write; an earlier run's are removed by --overwrite, and nothing else is."""


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run."""

    path: Path

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def poses(self) -> Path:
        return self.path / "poses.star"

    @property
    def volume(self) -> Path:
        return self.path / "volume.mrc"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.pt"

    @property
    def previous_checkpoint(self) -> Path:
        return self.path / "checkpoint.previous.pt"

    @property
    def encoder(self) -> Path:
        """What ``ace-em predict`` needs."""
        return self.path / "encoder.pt"

    @property
    def status(self) -> Path:
        """The present state of the run, for ``ace-em watch``."""
        return self.path / "status.json"

    @property
    def stop(self) -> Path:
        """A file of this name asks the run to stop; it saves its state first."""
        return self.path / "stop"

    @property
    def current_map(self) -> Path:
        return self.path / "current.mrc"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation.json"

    @staticmethod
    def check(path: Path, overwrite: bool) -> None:
        """Refuse a place where a run cannot go; nothing is written."""
        run = RunFolder(path)
        if path.exists() and not path.is_dir():
            raise InputError(f"{path}: a file is in the way; expected a folder name for the run")
        if path.is_dir() and any(path.iterdir()):
            if not overwrite:
                choice = "--resume to go on with the run there, or --overwrite" if run.metrics.exists() else "--overwrite"
                raise InputError(f"{path}: the folder is not empty; expected a new one (or give {choice})")
            if not run.metrics.exists():
                raise InputError(f"{path}: the folder holds no run; --overwrite only replaces an earlier run")
        parent = next(p for p in (path, *path.absolute().parents) if p.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise InputError(f"{path}: {parent} is not a writable folder; expected a writable place for the run")

    def refuse_if_overwriting(self, inputs: list[Path]) -> None:
        """Refuse to replace a run by one that is made from its own files."""
        mine = {(self.path / name).resolve() for name in FILES}
        for path in inputs:
            if path.resolve() in mine:
                raise InputError(f"{path}: is a file of the run in {self.path} and would be removed; expected another folder")

    @staticmethod
    def create(path: Path, overwrite: bool) -> "RunFolder":
        """A folder for a new run. With ``overwrite`` the files of an earlier run are removed, and nothing else."""
        RunFolder.check(path, overwrite)
        path.mkdir(parents=True, exist_ok=True)
        run = RunFolder(path)
        if run.metrics.exists():
            with run.locked():
                run._remove(FILES)
        run.metrics.touch()
        return run

    def reopen(self) -> None:
        """Remove what a run that was killed left: half-written files, a request to stop."""
        self._remove(("stop", "current.mrc"))
        for name in FILES:
            stem, suffix = name.rsplit(".", 1) if "." in name else (name, "")
            for litter in self.path.glob(f".{stem}.????????.{suffix}"):
                litter.unlink(missing_ok=True)

    def _remove(self, names: tuple[str, ...]) -> None:
        for name in names:
            (self.path / name).unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Refuse to share the folder with a run that is still going on; the lock ends with the process that holds it."""
        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            with lock:
                try:
                    yield
                finally:
                    (self.path / ".lock").unlink(missing_ok=True)
        except Timeout as error:
            raise InputError(f"{self.path}: another run is writing there; wait for it, or stop it first") from error

    def write_config(self, settings: dict[str, Any]) -> None:
        """Every setting, for ``ace-em reconstruct --config``."""
        import yaml

        with replace_atomically(self.config) as temporary:
            temporary.write_text(yaml.safe_dump(settings, sort_keys=False))

    def write_maps(self, maps: dict[str, Tensor], pixel_size_angstrom: float) -> None:
        """``NAME.mrc`` for every map."""
        for name, volume in maps.items():
            write_volume(self.path / f"{name}.mrc", volume.cpu().numpy(), pixel_size_angstrom)

    def write_fsc(self, curves: dict[str, Tensor], box_angstrom: float) -> None:
        """Curves by name, (n // 2 + 1,) each, as the columns of a table; ``box_angstrom`` is the edge of the maps."""
        n_shells = len(next(iter(curves.values())))
        with replace_atomically(self.path / "fsc.csv") as temporary, open(temporary, "w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["shell", "frequency_per_angstrom", "resolution_angstrom", *curves])
            for shell in range(n_shells):
                resolution = f"{box_angstrom / shell:.3f}" if shell else "inf"
                values = [f"{curve[shell].item():.5f}" for curve in curves.values()]
                table.writerow([shell, f"{shell / box_angstrom:.6f}", resolution, *values])

    def write_poses(self, table: ParticleTable, confident: np.ndarray | None) -> None:
        """``poses.star`` and, of the rows that are ``confident`` (N,) bool, ``confident.star``; .cs files too for such input."""
        kept = {"poses": table} if confident is None else {"poses": table, "confident": table.rows(confident)}
        for name, some in kept.items():
            write_star(self.path / f"{name}.star", some)
            if table.cryosparc is not None:
                write_particle_table(self.path / f"{name}.cs", some)

    def write_current_map(self, volume: Tensor, pixel_size_angstrom: float) -> None:
        """The map so far, for the live page and ChimeraX."""
        write_volume(self.current_map, volume.cpu().numpy(), pixel_size_angstrom)

    def write_checkpoint(self, state: dict[str, Any]) -> None:
        """Tensors, numbers and strings only, so that it loads with ``weights_only``; the last one is kept beside it."""
        with replace_atomically(self.checkpoint) as temporary:
            torch.save(state, temporary)
            if self.checkpoint.exists():
                os.replace(self.checkpoint, self.previous_checkpoint)

    def read_checkpoint(self) -> dict[str, Any] | None:
        """The last checkpoint that can be read; None without any."""
        for path in (self.checkpoint, self.previous_checkpoint):
            try:
                state = torch.load(path, weights_only=True, map_location="cpu")
            except FileNotFoundError:
                continue
            except (RuntimeError, EOFError, OSError, pickle.UnpicklingError, zipfile.BadZipFile, KeyError, ValueError):
                # damaged on disk: the one before is as good a start
                continue
            if isinstance(state, dict):
                return state
        return None
