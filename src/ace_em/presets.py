"""Published recipes as changes of the default settings."""

from typing import Any

from ace_em.config import RunConfig, changed, flat

# common to the published recipes; comments give the section, equation or appendix of the paper
PUBLISHED: dict[str, Any] = {
    "stages": "ace",
    "starts": 1,
    "ace.encoder": "resnet",  # A.1
    "ace.hypotheses": 1,
    "ace.alternatives": False,
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
    "ace.voxel.lr": 1.0,
    "ace.voxel.lr_scale": 0.05,
}
FOURIER: dict[str, Any] = {
    "ace.decoder": "fouriernet",
    "ace.fouriernet.projector": "direct",
    "ace.batch": 384,  # 4.1
    "ace.steps": 40000,
    "ace.lr_encoder": 1e-4,
    "ace.fouriernet.lr": 1e-4,
    "ace.symmetric_loss": "half-turn",  # eq. 7 is for voxels only, 3.3
}
PRESETS: dict[str, dict[str, Any]] = {
    "fast": {},
    "paper-voxel": PUBLISHED | VOXEL | {"ace.symmetric_loss": "generalised", "ace.label_steps": 4000},
    "paper-fourier": PUBLISHED | FOURIER,
    "cryoai": PUBLISHED | FOURIER | {"ace.pip": False},
    "cryoposenet": PUBLISHED | VOXEL | {"ace.pip": False},
}


def preset(name: str) -> RunConfig:
    """The complete configuration of a preset."""
    return changed(RunConfig(), {"preset": name} | PRESETS[name])


def differences() -> list[tuple[str, list[Any]]]:
    """Settings that differ between presets, with their values in the order of ``PRESETS``."""
    settings = [flat(preset(name)) for name in PRESETS]
    return [
        (key, [s[key] for s in settings]) for key in settings[0] if key != "preset" and len({str(s[key]) for s in settings}) > 1
    ]
