"""Pose inference with a trained autoencoder: candidate poses from the encoder, of which the best is kept."""

import torch
from torch import Tensor

from ace_em.data.particle_stack import Batch, ParticleStack
from ace_em.maths.image_rotation import half_turn, mirror_half_plane
from ace_em.maths.rotations import alternatives
from ace_em.models.decoder import Projector
from ace_em.physics.imaging import image_of_slice
from ace_em.physics.pose import Pose
from ace_em.tasks.losses import image_residual
from ace_em.training.autoencoder import AutoEncoder


@torch.no_grad()
def encode(model: AutoEncoder, stack: ParticleStack, block: int = 250) -> Pose:
    """The best candidate pose (:func:`candidates`) of every image, (N,), by the residual on the full half-plane."""
    model.eval()
    project = model.decoder.projector()
    device = next(model.parameters()).device
    poses = []
    for rows in torch.arange(len(stack), device=stack.row.device).split(block):
        batch = stack.batch(rows, device)
        pose = candidates(model, batch)
        best = torch.arange(len(batch), device=device), candidate_residuals(project, batch, pose).argmin(1)
        poses.append(Pose(pose.rotation[best], pose.shift_px[best]))
    return Pose.cat(poses)


def candidate_residuals(project: Projector, batch: Batch, pose: Pose) -> Tensor:
    """``|y - h S|^2`` (b, K) of images against projections of the volume at poses (b, K); zeros if K is 1."""
    if pose.rotation.shape[1] == 1:
        return torch.zeros(len(batch), 1, device=batch.image_ft.device)  # a single candidate needs no comparison
    slices = project(batch.half_plane, pose.rotation)
    predicted = image_of_slice(slices, batch.effective_ctf[:, None], batch.half_plane, pose.shift_px)
    return image_residual(batch.image_ft[:, None], predicted)


def candidates(model: AutoEncoder, batch: Batch) -> Pose:
    """Candidate poses (b, K): the hypotheses of the encoder, with their half turns if training used them.

    A symmetric loss trains the encoder to be correct for only one copy of an image. The copies are therefore encoded as well,
    and their poses transformed back: the half turn for eq. 6; half turn, mirror and both for eq. 7.
    """
    copies, turns = [batch.image_ft], [torch.eye(2)]
    if model.config.symmetric_loss == "generalised":
        copies.append(mirror_half_plane(batch.half_plane, batch.image_ft))
        turns.append(torch.diag(torch.tensor([1.0, -1.0])))
    if model.config.symmetric_loss != "none":
        copies += [half_turn(copy) for copy in copies]
        turns += [-turn for turn in turns]
    poses = []
    for copy, turn in zip(copies, turns, strict=True):
        found = model.encoder(copy)
        rotation = alternatives(found.rotation).flatten(1, 2) if model.config.alternatives else found.rotation
        shift = found.shift_px[:, None].expand(-1, rotation.shape[1], -1)
        poses.append(Pose(rotation, shift).in_turned_image(turn.T.to(rotation)))
    return Pose(torch.cat([p.rotation for p in poses], 1), torch.cat([p.shift_px for p in poses], 1))
