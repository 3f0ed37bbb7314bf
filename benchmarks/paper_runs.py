"""One training run of the autoencoder for a table or figure of the paper: images, settings, and scores over time.

A run is identified by its ``Spec``. Tables with the same run share its result, which is kept in the work folder.
"""

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from ace_em.config import RunConfig, changed, flat
from ace_em.data.particle_stack import ParticleStack
from ace_em.data.particles import Particles
from ace_em.data.preprocess import read_stack
from ace_em.data.survey import survey
from ace_em.io.mrc import read_volume
from ace_em.maths.fourier import fourier_resize
from ace_em.metrics.alignment import align_poses, apply_frame, turn_volume
from ace_em.metrics.coverage import coverage
from ace_em.metrics.fsc import fourier_shell_correlation, resolution_shell
from ace_em.metrics.pose_error import pose_error
from ace_em.physics.pose import Pose
from ace_em.presets import preset
from ace_em.training.autoencoder import AutoEncoder
from ace_em.training.infer import encode
from ace_em.training.loop import Progress, Training

CPU = torch.device("cpu")
WATCHED = 1000
"""Number of images whose poses are scored during a run."""


@dataclass(frozen=True)
class Spec:
    """Specification of a run: images, preset, seed, changed settings (name, value), and half-set (0 for all images)."""

    images: str
    preset: str
    seed: int = 1
    settings: tuple[tuple[str, Any], ...] = ()
    half: int = 0

    def config(self) -> RunConfig:
        return changed(preset(self.preset), dict(self.settings))

    def key(self) -> str:
        """Identifier of the run. Presets with identical settings at a scale share it and are trained once."""
        made_from = [self.images, self.seed, self.half, flat(self.config()) | {"preset": ""}]
        return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Truth:
    """True poses (N,) and volume at the working box."""

    pose: Pose
    volume: Tensor


def load_images(folder: Path, box: int) -> tuple[ParticleStack, Truth, float]:
    """Images of a simulated set at a working box, their truth, and the particle diameter in pixels."""
    particles = Particles.open(folder / "truth.star")
    look = survey(particles)
    images = read_stack(particles, look, box)
    pose = particles.poses()
    assert pose is not None
    volume, _ = read_volume(folder / "volume.mrc")
    diameter_px = look.diameter_angstrom / (particles.box * particles.pixel_size_angstrom) * box
    true = Truth(pose.rescaled(box / particles.box), fourier_resize(torch.from_numpy(volume), box, 3))
    return images, true, diameter_px


def score(pose: Pose, volume: Tensor, truth: Truth, rows: Tensor) -> dict[str, float]:
    """Metrics of the paper for poses (n,) of the images ``rows`` and for a volume in the frame of these poses."""
    true, box = truth.pose[rows], volume.shape[-1]
    frame = align_poses(pose, true)
    aligned = apply_frame(pose, frame)
    error = pose_error(aligned, true)
    fsc = fourier_shell_correlation(turn_volume(volume, frame), truth.volume)
    return asdict(error) | {"coverage": coverage(aligned.rotation), "res_px": box / resolution_shell(fsc, 0.5)}


class Watch:
    """Score a run at ``points`` times during training; the time for scoring is not counted."""

    def __init__(self, images: ParticleStack, truth: Truth, steps: int, batch: int, on_cpu: bool, points: int = 20) -> None:
        self.images, self.truth, self.steps, self.batch = images, truth, steps, batch
        self.every = max(1, steps // points)
        self.rows = torch.arange(min(WATCHED, len(images)))
        self.history: list[dict[str, float]] = []
        # the CPU time of the process does not include work on a device
        self.clock = time.process_time if on_cpu else time.perf_counter
        self.started, self.away, self.spent = self.clock(), 0.0, 0.0

    def __call__(self, progress: Progress, model: AutoEncoder) -> None:
        if progress.step % self.every and progress.step != self.steps:
            return
        now = self.clock()
        self.spent = now - self.started - self.away
        pose = encode(model, self.images.subset(self.rows)).to(CPU)
        with torch.no_grad():
            found = score(pose, model.decoder.volume().to(CPU), self.truth, self.rows)
        losses = {f"{name}_loss": progress.losses.get(name, torch.zeros(())).item() for name in ("image", "pose")}
        here = {"step": progress.step, "visits": progress.step * self.batch, "cpu_s": self.spent}
        self.history.append(here | losses | found)
        self.away += self.clock() - now


def train_run(spec: Spec, folder: Path, device: str) -> tuple[dict[str, Any], AutoEncoder, Pose, Truth]:
    """Train a run. Return its scores over time and at the end, the model, the poses of all images, and the truth."""
    config = spec.config()
    ace = config.ace
    images, truth, diameter_px = load_images(folder, config.final_box)
    if spec.half:
        rows = torch.arange(len(images)) % 2 == spec.half - 1
        images, truth = images.subset(rows), Truth(truth.pose[rows], truth.volume)
    fabric = Fabric(accelerator=device, devices=1, precision=config.precision)
    watch = Watch(images, truth, ace.steps, ace.batch, fabric.device == CPU)
    training = Training(images, diameter_px, ace, fabric, spec.seed)
    for progress in training:
        watch(progress, training.model)
    model = training.model
    pose = encode(model, images).to(CPU)
    model = model.cpu()
    with torch.no_grad():
        end = score(pose, model.decoder.volume(), truth, torch.arange(len(images)))
    result = {"spec": asdict(spec), "n": len(images), "box": images.box, "history": watch.history, "end": end}
    result |= {"cpu_s": watch.spent, "ms_per_step": 1000 * watch.spent / ace.steps, "batch": ace.batch}
    return result, model, pose, truth


def save(work: Path, spec: Spec, result: dict[str, Any], model: AutoEncoder, pose: Pose, truth: Truth) -> None:
    """Save scores as JSON, and poses, errors and the map in the true frame for the figures."""
    frame = align_poses(pose, truth.pose)
    aligned = apply_frame(pose, frame)
    error = (aligned.rotation - truth.pose.rotation).square().sum((-1, -2))
    with torch.no_grad():
        volume = turn_volume(model.decoder.volume(), frame)
    arrays = {"rotation": aligned.rotation, "shift_px": aligned.shift_px, "error": error, "volume": volume}
    np.savez(work / f"{spec.key()}.npz", **{k: v.numpy() for k, v in arrays.items()}, true_volume=truth.volume.numpy())
    (work / f"{spec.key()}.json").write_text(json.dumps(result))
