"""The decoders and encoders for ``--ace.decoder`` and ``--ace.encoder``. A new one takes one file and one line here."""

from collections.abc import Callable
from typing import TypeVar

from ace_em.config import AceConfig
from ace_em.maths.half_plane import HalfPlane
from ace_em.models.decoder import Decoder
from ace_em.models.encoder import PoseEncoder
from ace_em.models.fourier_mlp import FourierEncoder
from ace_em.models.fourier_net import FourierNet
from ace_em.models.resnet import ResNetEncoder
from ace_em.models.voxel_grid import VoxelGrid

T = TypeVar("T")

DECODERS: dict[str, Callable[[int, float, AceConfig], Decoder]] = {"voxel": VoxelGrid.build, "fouriernet": FourierNet.build}
"""Name -> ``build(box, diameter_px, config)``, with box and diameter in pixels of the working box."""
ENCODERS: dict[str, Callable[[HalfPlane, float, AceConfig], PoseEncoder]] = {
    "fourier": FourierEncoder.build,
    "resnet": ResNetEncoder.build,
}
"""Name -> ``build(half_plane, diameter_px, config)``."""


def build_decoder(box: int, diameter_px: float, config: AceConfig) -> Decoder:
    """The untrained decoder ``config.decoder`` for volumes of ``box``^3 voxels.

    Raises
    ------
    ValueError : unknown decoder name.
    """
    return _named(DECODERS, config.decoder, "decoder")(box, diameter_px, config)


def build_encoder(half_plane: HalfPlane, diameter_px: float, config: AceConfig) -> PoseEncoder:
    """The encoder ``config.encoder`` with random weights, for images on ``half_plane``.

    Raises
    ------
    ValueError : unknown encoder name.
    """
    return _named(ENCODERS, config.encoder, "encoder")(half_plane, diameter_px, config)


def _named(builders: dict[str, T], name: str, kind: str) -> T:
    if name not in builders:
        raise ValueError(f"no {kind} is called {name!r}; expected one of {', '.join(builders)}")
    return builders[name]
