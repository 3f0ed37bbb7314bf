"""The files of RUN/; each is written atomically."""

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
"""Results of a finished run, apart from its settings, records and checkpoint."""
FILES = (
    *("metrics.jsonl", "config.yaml", "checkpoint.pt", "checkpoint.previous.pt", "status.json", "current.mrc", "stop", ".lock"),
    *(*RESULTS, "poses.cs", "confident.cs", "evaluation.json"),
)
"""All files that a run may write. --overwrite removes these files of an earlier run and nothing else."""


@dataclass(frozen=True)
class RunFolder:
    """Paths of the files of a run, and functions to write them."""

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
        """Input of ``ace-em predict``."""
        return self.path / "encoder.pt"

    @property
    def status(self) -> Path:
        """Current state of the run, for ``ace-em watch``."""
        return self.path / "status.json"

    @property
    def stop(self) -> Path:
        """If this file exists, the run saves its state and stops."""
        return self.path / "stop"

    @property
    def current_map(self) -> Path:
        return self.path / "current.mrc"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation.json"

    @staticmethod
    def check(path: Path, overwrite: bool) -> None:
        """Raise InputError if a run cannot be written to ``path``; nothing is written."""
        run = RunFolder(path)
        if path.exists() and not path.is_dir():
            raise InputError(f"{path}: is a file; expected a folder for the run")
        if path.is_dir() and any(path.iterdir()):
            if not overwrite:
                choice = "--resume to continue the run there, or --overwrite" if run.metrics.exists() else "--overwrite"
                raise InputError(f"{path}: the folder is not empty; expected a new one (or give {choice})")
            if not run.metrics.exists():
                raise InputError(f"{path}: the folder contains no run; --overwrite only replaces an earlier run")
        parent = next(p for p in (path, *path.absolute().parents) if p.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise InputError(f"{path}: {parent} is not a writable folder; expected a writable folder for the run")

    def refuse_if_overwriting(self, inputs: list[Path]) -> None:
        """Raise InputError if an input of the new run is a file of the run to be overwritten."""
        own = {(self.path / name).resolve() for name in FILES}
        for path in inputs:
            if path.resolve() in own:
                raise InputError(f"{path}: is a file of the run in {self.path} and would be deleted; expected another folder")

    @staticmethod
    def create(path: Path, overwrite: bool) -> "RunFolder":
        """Create the folder of a new run; with ``overwrite`` the files of an earlier run are removed, and nothing else."""
        RunFolder.check(path, overwrite)
        path.mkdir(parents=True, exist_ok=True)
        run = RunFolder(path)
        if run.metrics.exists():
            with run.locked():
                run._remove(FILES)
        run.metrics.touch()
        return run

    def reopen(self) -> None:
        """Remove leftovers of a killed run: temporary files, the stop request, the current map."""
        self._remove(("stop", "current.mrc"))
        for name in FILES:
            stem, suffix = name.rsplit(".", 1) if "." in name else (name, "")
            for temporary in self.path.glob(f".{stem}.????????.{suffix}"):
                temporary.unlink(missing_ok=True)

    def _remove(self, names: tuple[str, ...]) -> None:
        for name in names:
            (self.path / name).unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder; InputError if another run is active in it. The lock ends with its process."""
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
        """Write all settings, for ``ace-em reconstruct --config``."""
        import yaml

        with replace_atomically(self.config) as temporary:
            temporary.write_text(yaml.safe_dump(settings, sort_keys=False))

    def write_maps(self, maps: dict[str, Tensor], pixel_size_angstrom: float) -> None:
        """Write ``NAME.mrc`` for every map."""
        for name, volume in maps.items():
            write_volume(self.path / f"{name}.mrc", volume.cpu().numpy(), pixel_size_angstrom)

    def write_fsc(self, curves: dict[str, Tensor], box_angstrom: float) -> None:
        """Write fsc.csv with one column per curve (n // 2 + 1,); ``box_angstrom`` is the edge of the maps."""
        n_shells = len(next(iter(curves.values())))
        with replace_atomically(self.path / "fsc.csv") as temporary, open(temporary, "w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["shell", "frequency_per_angstrom", "resolution_angstrom", *curves])
            for shell in range(n_shells):
                resolution = f"{box_angstrom / shell:.3f}" if shell else "inf"
                values = [f"{curve[shell].item():.5f}" for curve in curves.values()]
                table.writerow([shell, f"{shell / box_angstrom:.6f}", resolution, *values])

    def write_poses(self, table: ParticleTable, confident: np.ndarray | None) -> None:
        """Write poses.star and, for rows with ``confident`` (N,) bool, confident.star; .cs files too if the input was one."""
        kept = {"poses": table} if confident is None else {"poses": table, "confident": table.rows(confident)}
        for name, some in kept.items():
            write_star(self.path / f"{name}.star", some)
            if table.cryosparc is not None:
                write_particle_table(self.path / f"{name}.cs", some)

    def write_current_map(self, volume: Tensor, pixel_size_angstrom: float) -> None:
        """Write the current map, for the live page and ChimeraX."""
        write_volume(self.current_map, volume.cpu().numpy(), pixel_size_angstrom)

    def write_checkpoint(self, state: dict[str, Any]) -> None:
        """Write a checkpoint of tensors, numbers and strings, loadable with ``weights_only``; the previous one is kept."""
        with replace_atomically(self.checkpoint) as temporary:
            torch.save(state, temporary)
            if self.checkpoint.exists():
                os.replace(self.checkpoint, self.previous_checkpoint)

    def read_checkpoint(self) -> dict[str, Any] | None:
        """The latest readable checkpoint; None if there is none."""
        for path in (self.checkpoint, self.previous_checkpoint):
            try:
                state = torch.load(path, weights_only=True, map_location="cpu")
            except FileNotFoundError:
                continue
            except (RuntimeError, EOFError, OSError, pickle.UnpicklingError, zipfile.BadZipFile, KeyError, ValueError):
                # damaged: try the previous one
                continue
            if isinstance(state, dict):
                return state
        return None
