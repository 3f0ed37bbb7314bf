"""The published recipes as changes of the default settings, each number from the place in the paper that is named."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ace_em.config import RunConfig

PUBLISHED: dict[str, Any] = {
    "stages": "ace",
    "starts": 1,
    "ace.encoder": "resnet",  # A.1
    "ace.hypotheses": 1,
    "ace.mates": False,
    "ace.shift_weight": 1.0,  # eq. 8
    "ace.max_shift": 0.5,  # A.1: a sigmoid, here centred
    "ace.last_band": 0.0,
    "ace.march": 0.0,
    "ace.schedule": "multistep",  # 4.1: WarmupMultiStepLR; the paper gives none of its numbers
    "ace.warmup_steps": 1000,
    "ace.blank": False,
    "ace.pip_weight": 0.07,  # 4.1: 0.05-0.09 at -10 dB, 0.9 at 200 dB
}
VOXEL: dict[str, Any] = {
    "ace.decoder": "voxel",
    "ace.batch": 1024,  # 4.1
    "ace.steps": 30000,
    "ace.lr_encoder": 1e-3,
    "ace.lr_decoder": 1.0,
    "ace.lr_decoder_scale": 0.05,
}
FOURIER: dict[str, Any] = {
    "ace.decoder": "fouriernet",
    "ace.fouriernet_projector": "direct",
    "ace.batch": 384,  # 4.1
    "ace.steps": 40000,
    "ace.lr_encoder": 1e-4,
    "ace.lr_fouriernet": 1e-4,
    "ace.symmetric_loss": "half-turn",  # eq. 7 is for voxels only, 3.3
}
PRESETS: dict[str, dict[str, Any]] = {
    "fast": {},
    "paper-voxel": PUBLISHED | VOXEL | {"ace.symmetric_loss": "generalised", "ace.label_steps": 4000},
    "paper-fourier": PUBLISHED | FOURIER,
    "cryoai": PUBLISHED | FOURIER | {"ace.pip": False},
    "cryoposenet": PUBLISHED | VOXEL | {"ace.pip": False},
}


def changed(config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """The configuration with other values for some of its settings, by dotted name (``ace.steps``)."""
    for name, value in settings.items():
        group, _, field = name.rpartition(".")
        if group:
            config = dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **{field: value})})
        else:
            config = dataclasses.replace(config, **{field: value})
    return config


def preset(name: str) -> RunConfig:
    """The whole configuration of a preset."""
    return changed(RunConfig(), {"preset": name} | PRESETS[name])


def flat(config: RunConfig) -> dict[str, Any]:
    """Every setting by dotted name."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found |= {f"{field.name}.{f.name}": getattr(value, f.name) for f in dataclasses.fields(value)}
        else:
            found[field.name] = value
    return found


def differences() -> list[tuple[str, list[Any]]]:
    """Settings that differ between presets, and their value in each, in the order of ``PRESETS``."""
    settings = [flat(preset(name)) for name in PRESETS]
    return [
        (key, [s[key] for s in settings]) for key in settings[0] if key != "preset" and len({str(s[key]) for s in settings}) > 1
    ]
