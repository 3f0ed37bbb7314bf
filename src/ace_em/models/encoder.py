"""The encoder E_IP (eq. 1, eq. 16): from an image to pose hypotheses."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import roma
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Hypotheses:
    """M rotations and one shift per image.

    Attributes
    ----------
    rotation : (b, M, 3, 3).
    shift_px : (b, 2), (y, x) in pixels of the working box.
    """

    rotation: Tensor
    shift_px: Tensor


class PoseHeads(nn.Module):
    """Map features to M rotations in the 6-D representation (Zhou et al. 2019) and one bounded shift.

    Each hypothesis is two 3-vectors, orthonormalised by Gram-Schmidt to the first two columns of ``R``. The paper bounds the
    shift by a sigmoid to (0, 1) of the box edge, which excludes negative shifts. Here it is
    ``max_shift tanh(raw / max_shift)``, which for ``max_shift`` of half the edge is a sigmoid minus 1/2.

    Parameters
    ----------
    hidden : units of the hidden layer of each head; 0 for linear heads.
    """

    def __init__(self, features: int, n_hypotheses: int, max_shift_px: float, hidden: int = 0) -> None:
        super().__init__()
        self.n_hypotheses = n_hypotheses
        self.max_shift_px = max_shift_px
        self.rotation = _head(features, hidden, 6 * n_hypotheses)
        self.shift = _head(features, hidden, 2)

    def forward(self, features: Tensor) -> Hypotheses:
        columns = self.rotation(features).float().view(-1, self.n_hypotheses, 3, 2)
        shift = self.max_shift_px * torch.tanh(self.shift(features).float() / self.max_shift_px)
        return Hypotheses(roma.special_gramschmidt(columns, epsilon=1e-6), shift)


def _head(features: int, hidden: int, out: int) -> nn.Module:
    if hidden == 0:
        return nn.Linear(features, out)
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, out))


class PoseEncoder(nn.Module, ABC):
    """A network from whitened half-planes to pose hypotheses. A new encoder implements ``features`` in one file.

    ``autocast_dtype`` is the dtype of mixed precision in ``features``, None for full precision. Everything else (poses, slices,
    phases) needs float32.
    """

    autocast_dtype: torch.dtype | None = None

    def __init__(self, n_features: int, n_hypotheses: int, max_shift_px: float, hidden: int = 0) -> None:
        super().__init__()
        self.heads = PoseHeads(n_features, n_hypotheses, max_shift_px, hidden)

    @abstractmethod
    def features(self, image_ft: Tensor) -> Tensor:
        """Features (b, n_features) of images (b, n) on the working half-plane."""

    def forward(self, image_ft: Tensor) -> Hypotheses:
        with torch.autocast(image_ft.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None):
            features = self.features(image_ft)
        return self.heads(features.float())
