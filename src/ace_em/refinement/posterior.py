"""Posterior of the pose of each image: the few distinct poses that hold nearly all of its probability.

The scores of the search are log-likelihoods with a known noise, so the probabilities of poses follow from them (Scheres 2012,
section 2.2). A clear image has one pose; a weak one has several, and each enters maps and statistics with its probability instead
of the best one with full weight. Near each maximum the posterior is far narrower than the resolution of the map, so one pose
stands for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ace_em.maths.point_group import nearest_copy
from ace_em.maths.rotations import angular_distance_deg
from ace_em.metrics.alignment import Frame, apply_frame
from ace_em.physics.pose import Pose

HELD = 0.999
"""The poses kept are the fewest that hold this share of the probability of all candidates."""
DISTINCT_DEG = 10.0
"""Candidates closer than this have converged to one maximum."""


@dataclass(frozen=True)
class Posterior:
    """Poses of N images and their probabilities.

    Attributes
    ----------
    pose : (N, K), the most probable first.
    probability : (N, K); 0 for poses that are not kept. They add up to less than 1 if many more poses are as probable.
    """

    pose: Pose
    probability: Tensor

    @staticmethod
    def certain(pose: Pose) -> "Posterior":
        """One pose (N,) an image."""
        return Posterior(Pose.stack([pose]), torch.ones_like(pose.shift_px[:, :1]))

    @staticmethod
    def of(candidates: Pose, log_likelihood: Tensor, log_sum: Tensor, group: Tensor) -> "Posterior":
        """From candidates (N, K), refined to their maxima.

        Parameters
        ----------
        log_likelihood : (N, K) of the candidates, with the coefficients counted that are independent; minus infinity for none.
        log_sum : (N,) log of the summed likelihoods of all poses of a grid; minus infinity if there was none.
        group : (g, 3, 3) point group; symmetric copies are one pose.
        """
        row = torch.arange(len(log_sum), device=log_sum.device)[:, None]

        def sorted_by(score: Tensor, pose: Pose) -> tuple[Tensor, Pose]:
            order = score.sort(dim=1, descending=True, stable=True)
            return order.values, Pose(pose.rotation[row, order.indices], pose.shift_px[row, order.indices])

        value, pose = sorted_by(log_likelihood, candidates)
        distinct = torch.ones_like(value, dtype=torch.bool)
        for k in range(1, value.shape[1]):
            earlier = nearest_copy(pose.rotation[:, :k], pose.rotation[:, k : k + 1], group)
            near = angular_distance_deg(earlier, pose.rotation[:, k : k + 1]) < DISTINCT_DEG
            distinct[:, k] = ~(near & distinct[:, :k]).any(1)
        value = torch.where(distinct, value, -torch.inf)
        # the grid holds the same maxima, stepped over, and all that was not refined
        share = (value - torch.maximum(value.logsumexp(1), log_sum)[:, None]).exp()
        above = share.cumsum(1) - share
        kept = (above < HELD * share.sum(1, keepdim=True)) & distinct & (share > 0)
        alone = kept.sum(1, keepdim=True) == 1
        share = torch.where(kept, torch.where(alone & (share > HELD), 1.0, share), 0.0)
        share, pose = sorted_by(share, pose)
        width = max(1, int(kept.sum(1).max()))
        return Posterior(Pose(pose.rotation[:, :width], pose.shift_px[:, :width]), share[:, :width])

    @property
    def best(self) -> Pose:
        """(N,) the most probable poses."""
        return self.pose.column(0)

    @property
    def n_poses(self) -> Tensor:
        """(N,) number of poses kept."""
        return (self.probability > 0).sum(1)

    def entries(self, rows: Tensor) -> tuple[Tensor, Pose, Tensor]:
        """All poses kept of images ``rows`` (n,): the image (e,), the pose (e,) and the probability (e,) of each."""
        probability = self.probability[rows]
        image, column = torch.nonzero(probability > 0).T
        image = rows[image]
        return image, Pose(self.pose.rotation[image, column], self.pose.shift_px[image, column]), self.probability[image, column]

    def in_frame(self, frame: Frame) -> "Posterior":
        """The poses in another frame of the map."""
        return Posterior(apply_frame(self.pose, frame), self.probability)

    def rescaled(self, factor: float) -> "Posterior":
        return Posterior(self.pose.rescaled(factor), self.probability)

    def to(self, device: torch.device) -> "Posterior":
        return Posterior(self.pose.to(device), self.probability.to(device))

    def __len__(self) -> int:
        return len(self.probability)

    def __getitem__(self, rows: Tensor | slice) -> "Posterior":
        return Posterior(self.pose[rows], self.probability[rows])

    def _widened(self, width: int) -> "Posterior":
        more = width - self.probability.shape[1]
        if more == 0:
            return self
        first = self.pose.column(0)
        pose = Pose(
            torch.cat([self.pose.rotation, first.rotation[:, None].expand(-1, more, 3, 3)], 1),
            torch.cat([self.pose.shift_px, first.shift_px[:, None].expand(-1, more, 2)], 1),
        )
        return Posterior(pose, torch.cat([self.probability, self.probability.new_zeros(len(self), more)], 1))

    @staticmethod
    def cat(parts: "Sequence[Posterior]") -> "Posterior":
        width = max(p.probability.shape[1] for p in parts)
        wide = [p._widened(width) for p in parts]
        return Posterior(Pose.cat([p.pose for p in wide]), torch.cat([p.probability for p in wide]))

    def replaced(self, rows: Tensor, new: "Posterior") -> "Posterior":
        """With those of some ``rows`` (indices or a mask) exchanged."""
        width = max(self.probability.shape[1], new.probability.shape[1])
        old, new = self._widened(width), new._widened(width)
        rotation, shift, probability = old.pose.rotation.clone(), old.pose.shift_px.clone(), old.probability.clone()
        rotation[rows], shift[rows], probability[rows] = new.pose.rotation, new.pose.shift_px, new.probability
        return Posterior(Pose(rotation, shift), probability)
