"""What a finished run knows that helps with new particles: a map, an encoder taught by it, how images are whitened.

It lives in RUN/encoder.pt; ``ace-em predict`` needs nothing else of the run.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from ace_em.config import AceConfig, PredictConfig
from ace_em.data.particles import Particles
from ace_em.data.preprocess import Survey, disc_share, working_set
from ace_em.data.working_set import WorkingSet
from ace_em.errors import InputError
from ace_em.inference.confidence import Usual, pose_probability, residual_excess
from ace_em.inference.pose_inference import Predicted, hypothesis_spread, predict_poses
from ace_em.io.atomic import replace_atomically
from ace_em.io.plain import Plain, packed, unpacked
from ace_em.maths.fourier import HalfPlane
from ace_em.maths.point_group import mirrored_axes, point_group
from ace_em.maths.slices import volume_to_ft
from ace_em.metrics.alignment import Frame, apply_frame
from ace_em.models.fixed_volume import FixedMap
from ace_em.physics.pose import Pose
from ace_em.refinement.blank import BlankTest
from ace_em.refinement.noise_scale import Calibration
from ace_em.refinement.pose_refinement import refine_poses
from ace_em.training.autoencoder import AutoEncoder
from ace_em.training.loop import Hooks, build_encoder, train

FORMAT = 2
BLOCK = 2000
"""Images that are in memory at a time."""


@dataclass(frozen=True)
class Predictor:
    """An encoder and its map.

    Attributes
    ----------
    box, pixel_size_angstrom : of the images on disk that it knows.
    diameter_angstrom : of the particle.
    look : how images are normalised and whitened.
    noise : (working box // 2 + 1,) what the refinement made of the noise, in units of the survey's.
    volume : (working box,) * 3, z, y, x, in the frame of the run before ``flip_hand``.
    encoder : weights by name.
    shift_sd_px : spread of the particles' shifts along an axis, pixels of the working box.
    symmetry, flip_hand : of the run.
    usual : the residuals of the run's own particles.
    poses_tried : in a search; an empty image is as likely before as one that shows the particle in any of them.
    converged : whether the run did; where it did not, no pose is said to be probable.
    """

    box: int
    pixel_size_angstrom: float
    diameter_angstrom: float
    look: Survey
    noise: Tensor
    volume: Tensor
    encoder: dict[str, Tensor]
    shift_sd_px: float
    symmetry: str
    flip_hand: bool
    ace: AceConfig
    config: PredictConfig
    usual: Usual
    poses_tried: float
    converged: bool

    @property
    def working_box(self) -> int:
        return self.volume.shape[-1]

    @property
    def diameter_px(self) -> float:
        return self.diameter_angstrom / (self.box * self.pixel_size_angstrom) * self.working_box

    def save(self, path: Path) -> None:
        """Atomically; tensors, numbers and strings only."""
        with replace_atomically(path) as temporary:
            torch.save(packed(self) | {"format": FORMAT}, temporary)

    @staticmethod
    def load(path: Path) -> "Predictor":
        """From RUN/encoder.pt."""
        try:
            data = torch.load(path, weights_only=True, map_location="cpu")
            if data.get("format") != FORMAT:
                raise InputError(f"{path}: written by another version of ace-em; expected format {FORMAT}")
            return unpacked(Predictor, data)
        except FileNotFoundError as error:
            raise InputError(f"{path}: no such file; expected a finished run (made with --predict.steps above 0)") from error
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"{path}: cannot be read as what a run keeps for prediction ({type(error).__name__})") from error

    def images(self, particles: Particles, rows: np.ndarray, sign: float | None = None) -> WorkingSet:
        """Whitened images of some rows, as the encoder knows them; ``sign`` is that of these files, the run's when None."""
        look = self.look if sign is None else replace(self.look, sign=sign)
        images = working_set(particles, look, self.working_box, rows=rows)
        Calibration(self.noise, torch.ones(len(rows))).apply_(images)
        return images

    def model(self, half_plane: HalfPlane) -> AutoEncoder:
        """The networks: the encoder as far as it was taught, the map as decoder."""
        encoder = build_encoder(half_plane, self.diameter_px, self.ace)
        encoder.load_state_dict(self.encoder)
        decoder = FixedMap(self.volume)
        return AutoEncoder(encoder, decoder, half_plane, torch.ones(len(half_plane)), 1.0, self.shift_sd_px, self.ace)

    def taught(
        self, images: WorkingSet, steps_config: AceConfig, fabric: Fabric, seed: int, hooks: Hooks, begun: Plain | None
    ) -> "Predictor":
        """With an encoder that has learnt the map by PIP; ``images`` lend their CTFs and their noise."""
        torch.manual_seed(seed)
        model = self.model(images.half_plane)
        model.noise_variance.copy_(images.noise_variance)
        model.config = steps_config
        trained = train(images, self.diameter_px, steps_config, fabric, seed, hooks, begun, model).model.cpu()
        return replace(self, encoder=trained.encoder.state_dict())

    def probability(self, found: Predicted) -> Tensor:
        """Of each pose (N,) that it is right."""
        probability = pose_probability(found.against, found.excess, self.usual)
        return probability if self.converged else torch.zeros_like(probability)

    @property
    def group(self) -> Tensor:
        return point_group(self.symmetry).float()

    def predict(
        self, particles: Particles, sign: float | None = None, on_block: Callable[[int], None] = lambda done: None
    ) -> Predicted:
        """Poses of all particles, shifts in pixels of the images, block by block; in the frame before the hand was flipped."""
        parts: list[Predicted] = []
        blank, volume_ft = BlankTest(self.poses_tried, disc_share(self.box)), volume_to_ft(self.volume)
        for rows, images in self._blocks(particles, np.arange(len(particles)), sign):
            if not parts:
                model = self.model(images.half_plane)
            parts.append(predict_poses(model, volume_ft, images, self.diameter_px, self.group, self.config, blank))
            on_block(int(rows[-1]) + 1)
        all_of = Predicted.cat(parts)
        pose = all_of.pose.rescaled(particles.box / self.working_box)
        return replace(all_of, pose=pose)

    def spread_deg(self, particles: Particles, pose: Pose, on_block: Callable[[int], None] = lambda done: None) -> Tensor:
        """Median angle (N,) between known poses, in pixels of the images, and what the encoder says of each particle."""
        parts: list[Tensor] = []
        for rows, images in self._blocks(particles, np.arange(len(particles))):
            if not parts:
                model = self.model(images.half_plane)
            parts.append(hypothesis_spread(model, images, pose[torch.from_numpy(rows)], self.group))
            on_block(int(rows[-1]) + 1)
        return torch.cat(parts)

    def with_usual(self, particles: Particles, pose: Pose, rows: np.ndarray) -> "Predictor":
        """With the residuals that ``rows`` of the run's own particles leave at their poses, in pixels of the images."""
        found, volume_ft = [], volume_to_ft(self.volume)
        for some, images in self._blocks(particles, rows):
            at = pose[torch.from_numpy(some)].rescaled(self.working_box / particles.box)
            residual = refine_poses(volume_ft, images, at, 1).residual
            found.append(residual_excess(residual, images.noise_variance, disc_share(self.box)))
        return replace(self, usual=Usual.of(torch.cat(found)))

    def _blocks(
        self, particles: Particles, rows: np.ndarray, sign: float | None = None
    ) -> Iterator[tuple[np.ndarray, WorkingSet]]:
        for start in range(0, len(rows), BLOCK):
            some = rows[start : start + BLOCK]
            yield some, self.images(particles, some, sign)

    def handed(self, pose: Pose) -> Pose:
        """Poses in the frame of the maps that the run wrote: mirrored when it flipped the hand."""
        if not self.flip_hand:
            return pose
        return apply_frame(pose, Frame(mirrored_axes(self.symmetry).float(), mirrored=True, origin_px=torch.zeros(3)))
