"""Checks of the settings before any file is read."""

import math
import os
from pathlib import Path

import torch
from torch import Tensor

from ace_em.config import RunConfig
from ace_em.errors import InputError, option
from ace_em.maths.point_group import point_group
from ace_em.models.choice import DECODERS, ENCODERS


def group_of(name: str, setting: str = "symmetry") -> Tensor:
    """Point group (g, 3, 3) of ``--symmetry`` or another setting; InputError for an unknown name."""
    try:
        return point_group(name).float()
    except ValueError as error:
        raise InputError(f"{option(setting)} {name}: {error}") from error


def choose_device(name: str) -> str:
    """Device for ``--device``; ``auto`` prefers CUDA, then MPS, then the CPU."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next(d for d in ("cuda", "mps", "cpu") if available[d])
    if not available[name]:
        raise InputError(f"--device {name}: this device is not available; expected auto or cpu")
    return name


def check(config: RunConfig) -> None:
    """Raise InputError for invalid settings.

    Raises
    ------
    InputError : names the option, its value and the expected values.
    """
    for kind, chosen, known in (("encoder", config.ace.encoder, set(ENCODERS)), ("decoder", config.ace.decoder, set(DECODERS))):
        if chosen not in known:
            raise InputError(f"--ace.{kind} {chosen}: expected one of {', '.join(sorted(known))}")
    if len(group_of(config.symmetry)) > 1 and config.stages == "ace":
        raise InputError(f"--symmetry {config.symmetry}: stage 1 alone does not impose symmetry; expected C1, or --stages all")
    if len(group_of(config.relax_symmetry, "relax_symmetry")) > 1:
        if len(group_of(config.symmetry)) > 1:
            raise InputError(
                f"--relax-symmetry {config.relax_symmetry}: a map with --symmetry {config.symmetry} has equal copies; "
                "expected --symmetry C1"
            )
        if config.stages == "ace":
            raise InputError(f"--relax-symmetry {config.relax_symmetry}: stage 1 alone has no refinement; expected --stages all")
    ace, search, refinement, predict = config.ace, config.search, config.refine, config.predict
    rules = {
        "seed": (config.seed, 0 <= config.seed < 2**31, "0 to 2^31"),
        "threads": (config.threads, config.threads >= 0, "0 or more"),
        "memory": (config.memory, config.memory >= 0, "0 or a number of GiB"),
        "diameter": (config.diameter, config.diameter >= 0, "0 or a number of Angstrom"),
        "starts": (config.starts, config.starts >= 1, "1 or more"),
        "ace.steps": (ace.steps, ace.steps >= 1, "1 or more"),
        "ace.batch": (ace.batch, ace.batch >= 2, "2 or more"),
        "ace.hypotheses": (ace.hypotheses, ace.hypotheses >= 1, "1 or more"),
        "ace.fourier.width": (ace.fourier.width, ace.fourier.width >= 1, "1 or more"),
        "ace.fourier.depth": (ace.fourier.depth, ace.fourier.depth >= 1, "1 or more"),
        "ace.max_shift": (ace.max_shift, 0 < ace.max_shift <= 0.5, "more than 0, to 0.5"),
        "ace.fourier.band": (ace.fourier.band, ace.fourier.band > 0, "more than 0"),
        "ace.lr_encoder": (ace.lr_encoder, ace.lr_encoder > 0, "more than 0"),
        "ace.voxel.lr": (ace.voxel.lr, ace.voxel.lr > 0, "more than 0"),
        "ace.fouriernet.lr": (ace.fouriernet.lr, ace.fouriernet.lr > 0, "more than 0"),
        "ace.march": (ace.march, 0 <= ace.march <= 1, "0 to 1"),
        "ace.first_band": (ace.first_band, 0 < ace.first_band <= (ace.last_band or math.inf), "0 to --ace.last-band"),
        "ace.last_band": (ace.last_band, ace.last_band >= 0, "0 or more"),
        "ace.label_kernel": (ace.label_kernel, 1 <= ace.label_kernel <= 5, "1 to 5"),
        "ace.milestones": (list(ace.milestones), all(0 < m <= 1 for m in ace.milestones), "shares of the run, 0 to 1"),
        "ace.pip_warmup_steps": (ace.pip_warmup_steps, ace.pip_warmup_steps >= 0, "0 or more"),
        "search.first_band": (search.first_band, 0 < search.first_band <= search.last_band, "0 to --search.last-band"),
        "search.spacing": (search.spacing, search.spacing > 0.2, "more than 0.2"),
        "search.ab_initio_rounds": (search.ab_initio_rounds, search.ab_initio_rounds >= 1, "1 or more"),
        "search.ab_initio_images": (search.ab_initio_images, search.ab_initio_images >= 2, "2 or more"),
        "search.held_out": (search.held_out, search.held_out >= 10, "10 or more"),
        "search.top_k": (search.top_k, 1 <= search.top_k <= 100, "1 to 100"),
        "search.shared_band": (search.shared_band, search.shared_band >= 2, "2 or more"),
        "search.local_steps": (search.local_steps, search.local_steps >= 1, "1 or more"),
        "search.shift": (search.shift, search.shift >= 0, "0 or more"),
        "search.max_rounds": (search.max_rounds, search.max_rounds >= 1, "1 or more"),
        "search.shift_step": (search.shift_step, search.shift_step > 0, "more than 0"),
        "refine.max_rounds": (refinement.max_rounds, refinement.max_rounds >= 1, "1 or more"),
        "refine.local_steps": (refinement.local_steps, refinement.local_steps >= 1, "1 or more"),
        "refine.defocus_range": (refinement.defocus_range, refinement.defocus_range > 0, "more than 0 Angstrom"),
        "refine.defocus_sd": (refinement.defocus_sd, refinement.defocus_sd > 0, "more than 0 Angstrom"),
        "predict.steps": (predict.steps, predict.steps >= 0, "0 or more"),
        "predict.images": (predict.images, predict.images >= 2, "2 or more"),
        "predict.lr": (predict.lr, predict.lr > 0, "more than 0"),
        "predict.hypotheses": (predict.hypotheses, predict.hypotheses >= 1, "1 or more"),
        "predict.bands": (list(predict.bands), all(band > 0 for band in predict.bands), "numbers above 0"),
    }
    for name, (value, valid, expected) in rules.items():
        if not valid:
            raise InputError(f"{option(name)} {value}: expected {expected}")
    if config.scratch and not (Path(config.scratch).is_dir() and os.access(config.scratch, os.W_OK)):
        raise InputError(f"--scratch {config.scratch}: expected a writable folder")
