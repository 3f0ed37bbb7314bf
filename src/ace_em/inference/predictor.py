"""Predictor of poses for new particles: the final map of a run, the encoder trained on it, and the image normalisation.

It is saved as RUN/encoder.pt, the only file of the run that ``ace-em predict`` reads.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ace_em.config import AceConfig, PredictConfig
from ace_em.data.particle_stack import CPU, ParticleStack
from ace_em.data.particles import Particles
from ace_em.data.preprocess import read_stack
from ace_em.data.survey import Survey
from ace_em.errors import InputError
from ace_em.inference.confidence import ResidualBaseline, pose_probability, residual_z
from ace_em.inference.pose_inference import Predicted, hypothesis_spread, predict_poses
from ace_em.io.atomic import replace_atomically
from ace_em.io.plain import packed, unpacked
from ace_em.maths.half_plane import HalfPlane
from ace_em.maths.masks import disc_share
from ace_em.maths.point_group import mirrored_axes, point_group
from ace_em.maths.slices import volume_to_ft
from ace_em.metrics.alignment import Frame, apply_frame
from ace_em.models.choice import build_encoder
from ace_em.models.fixed_volume import FixedVolume
from ace_em.physics.image_content import ContentTest
from ace_em.physics.pose import Pose
from ace_em.refinement.pose_refinement import reference_on, refine_poses
from ace_em.training.autoencoder import AutoEncoder

FORMAT = 3
BLOCK = 2000
"""Images in memory at a time."""


@dataclass(frozen=True)
class Predictor:
    """An encoder and the map it was trained on.

    Attributes
    ----------
    box, pixel_size_angstrom : of the images on disk that it accepts.
    diameter_angstrom : of the particle.
    look : normalisation and whitening, with one noise spectrum from the end of the run.
    volume : (working box,) * 3, z, y, x, in the frame of the run before ``flip_hand``.
    encoder : weights by name.
    shift_sd_px : standard deviation of the shifts along an axis, pixels of the working box.
    symmetry, flip_hand : of the run.
    baseline : residuals of the particles of the run.
    poses_tried : number of poses in a search, for the prior of an empty image.
    converged : whether the run converged; otherwise the probability of every pose is 0.
    """

    box: int
    pixel_size_angstrom: float
    diameter_angstrom: float
    look: Survey
    volume: Tensor
    encoder: dict[str, Tensor]
    shift_sd_px: float
    symmetry: str
    flip_hand: bool
    ace: AceConfig
    config: PredictConfig
    baseline: ResidualBaseline
    poses_tried: float
    converged: bool

    @property
    def working_box(self) -> int:
        return self.volume.shape[-1]

    @property
    def diameter_px(self) -> float:
        return self.diameter_angstrom / (self.box * self.pixel_size_angstrom) * self.working_box

    @property
    def group(self) -> Tensor:
        return point_group(self.symmetry).float()

    def save(self, path: Path) -> None:
        """Save atomically; tensors, numbers and strings only."""
        with replace_atomically(path) as temporary:
            torch.save(packed(self) | {"format": FORMAT}, temporary)

    @staticmethod
    def load(path: Path) -> "Predictor":
        """Load RUN/encoder.pt.

        Raises
        ------
        InputError : the file is missing, damaged, or from another version.
        """
        try:
            data = torch.load(path, weights_only=True, map_location="cpu")
            if data.get("format") != FORMAT:
                raise InputError(f"{path}: written by another version of ace-em; expected format {FORMAT}")
            return unpacked(Predictor, data)
        except FileNotFoundError as error:
            raise InputError(f"{path}: no such file; expected a finished run with --predict.steps above 0") from error
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"{path}: cannot be read: damaged, or not the encoder.pt of a run") from error

    def stack(self, particles: Particles, rows: np.ndarray, sign: float | None = None) -> ParticleStack:
        """Images of some rows, whitened as in training; ``sign`` is the contrast of these files, None for that of the run."""
        look = self.look if sign is None else replace(self.look, sign=sign)
        return read_stack(particles, look, self.working_box, rows=rows)

    def model(self, half_plane: HalfPlane) -> AutoEncoder:
        """The autoencoder: the encoder, with the fixed map as decoder."""
        encoder = build_encoder(half_plane, self.diameter_px, self.ace)
        encoder.load_state_dict(self.encoder)
        return AutoEncoder(encoder, FixedVolume(self.volume), half_plane, 1.0, self.shift_sd_px, self.ace)

    def probability(self, found: Predicted) -> Tensor:
        """Probability (N,) that each pose is correct; 0 if the run did not converge."""
        probability = pose_probability(found.log_odds_against, found.residual_z, self.baseline)
        return probability if self.converged else torch.zeros_like(probability)

    def predict(
        self,
        particles: Particles,
        sign: float | None = None,
        on_block: Callable[[int], None] = lambda done: None,
        device: torch.device = CPU,
    ) -> Predicted:
        """Poses of all particles in the frame before ``flip_hand``, shifts in pixels of the images; processed in blocks."""
        parts: list[Predicted] = []
        test, volume_ft = ContentTest(self.poses_tried, disc_share(self.box)), reference_on(device, self.volume)
        for rows, stack in self._blocks(particles, np.arange(len(particles)), sign):
            if not parts:
                model = self.model(stack.half_plane).to(device)
            parts.append(predict_poses(model, volume_ft, stack, self.diameter_px, self.group, self.config, test))
            on_block(int(rows[-1]) + 1)
        all_of = Predicted.cat(parts)
        return replace(all_of, pose=all_of.pose.rescaled(particles.box / self.working_box))

    def spread_deg(
        self,
        particles: Particles,
        pose: Pose,
        on_block: Callable[[int], None] = lambda done: None,
        device: torch.device = CPU,
    ) -> Tensor:
        """Median angle (N,) between known poses and the encoder's hypotheses for each particle."""
        parts: list[Tensor] = []
        for rows, stack in self._blocks(particles, np.arange(len(particles))):
            if not parts:
                model = self.model(stack.half_plane).to(device)
            parts.append(hypothesis_spread(model, stack, pose[torch.from_numpy(rows)], self.group))
            on_block(int(rows[-1]) + 1)
        return torch.cat(parts)

    def with_baseline(self, particles: Particles, pose: Pose, rows: np.ndarray) -> "Predictor":
        """The predictor with a baseline from ``rows`` of the run's particles at their poses (pixels of the images)."""
        found, volume_ft = [], volume_to_ft(self.volume)
        for some, stack in self._blocks(particles, rows):
            at = pose[torch.from_numpy(some)].rescaled(self.working_box / particles.box)
            found.append(residual_z(refine_poses(volume_ft, stack, at, 1).residual, stack, disc_share(self.box)))
        return replace(self, baseline=ResidualBaseline.of(torch.cat(found)))

    def _blocks(
        self, particles: Particles, rows: np.ndarray, sign: float | None = None
    ) -> Iterator[tuple[np.ndarray, ParticleStack]]:
        for start in range(0, len(rows), BLOCK):
            some = rows[start : start + BLOCK]
            yield some, self.stack(particles, some, sign)

    def in_map_frame(self, pose: Pose) -> Pose:
        """Poses in the frame of the written maps: mirrored if ``flip_hand``."""
        if not self.flip_hand:
            return pose
        return apply_frame(pose, Frame(mirrored_axes(self.symmetry).float(), mirrored=True, origin_px=torch.zeros(3)))
