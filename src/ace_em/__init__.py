"""ACE-EM: ab initio cryo-EM reconstruction with an asymmetric complementary autoencoder.

The names below are the public interface. Each is imported on first use, so that ``import ace_em`` is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ace_em import plot as plot
    from ace_em.api import ab_initio as ab_initio
    from ace_em.api import backproject as backproject
    from ace_em.api import read_images as read_images
    from ace_em.api import read_map as read_map
    from ace_em.api import read_particles as read_particles
    from ace_em.api import reconstruct as reconstruct
    from ace_em.api import refine_half_sets as refine_half_sets
    from ace_em.api import train_autoencoder as train_autoencoder
    from ace_em.api import write_map as write_map
    from ace_em.api import write_poses as write_poses
    from ace_em.config import AceConfig as AceConfig
    from ace_em.config import RefineConfig as RefineConfig
    from ace_em.config import RunConfig as RunConfig
    from ace_em.config import SearchConfig as SearchConfig
    from ace_em.config import SimulationConfig as SimulationConfig
    from ace_em.data.particle_stack import ParticleStack as ParticleStack
    from ace_em.data.particles import Particles as Particles
    from ace_em.data.survey import Survey as Survey
    from ace_em.data.survey import survey as survey
    from ace_em.errors import Diverged as Diverged
    from ace_em.errors import InputError as InputError
    from ace_em.metrics.alignment import align_poses as align_poses
    from ace_em.metrics.alignment import apply_frame as apply_frame
    from ace_em.metrics.alignment import turn_volume as turn_volume
    from ace_em.metrics.fsc import fourier_shell_correlation as fourier_shell_correlation
    from ace_em.metrics.fsc import resolution_shell as resolution_shell
    from ace_em.metrics.pose_error import pose_error as pose_error
    from ace_em.physics.pose import Pose as Pose
    from ace_em.presets import preset as preset
    from ace_em.simulation.write import simulate as simulate
    from ace_em.training.infer import encode as encode

_WHERE = {
    "ab_initio": "api",
    "backproject": "api",
    "read_images": "api",
    "read_map": "api",
    "read_particles": "api",
    "reconstruct": "api",
    "refine_half_sets": "api",
    "train_autoencoder": "api",
    "write_map": "api",
    "write_poses": "api",
    "AceConfig": "config",
    "RefineConfig": "config",
    "RunConfig": "config",
    "SearchConfig": "config",
    "SimulationConfig": "config",
    "preset": "presets",
    "ParticleStack": "data.particle_stack",
    "Particles": "data.particles",
    "Survey": "data.survey",
    "survey": "data.survey",
    "Diverged": "errors",
    "InputError": "errors",
    "align_poses": "metrics.alignment",
    "apply_frame": "metrics.alignment",
    "fourier_shell_correlation": "metrics.fsc",
    "pose_error": "metrics.pose_error",
    "resolution_shell": "metrics.fsc",
    "turn_volume": "metrics.alignment",
    "Pose": "physics.pose",
    "simulate": "simulation.write",
    "encode": "training.infer",
}
__all__ = ["__version__", "plot", *sorted(_WHERE)]


def __getattr__(name: str) -> Any:
    if name == "plot":
        return import_module("ace_em.plot")
    if name not in _WHERE:
        raise AttributeError(f"module 'ace_em' has no attribute {name!r}")
    return getattr(import_module(f"ace_em.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), "plot", *_WHERE])
