"""What a run will do, settled before it starts: settings checked, images surveyed, boxes, device, expected time."""

import dataclasses
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ace_em.config import RunConfig
from ace_em.data.particles import Particles
from ace_em.data.preprocess import Survey, disc_share, survey
from ace_em.data.working_set import BLOCK_BYTES
from ace_em.errors import InputError, option
from ace_em.io.particle_table import not_in_the_model
from ace_em.maths.blocks import available_bytes
from ace_em.maths.point_group import point_group
from ace_em.models.voxel_grid import ball_radius_px, soft_ball
from ace_em.run.reporter import Expectation, Reporter, clock

LARGEST_DEFAULT_BOX = 128
LEAST_PARTICLES = 100
LITTLE_DEFOCUS_ANGSTROM = 2500.0
UNCLEAR_CONTRAST = 5.0
"""Standard deviations of the measured contrast below which it may be chance."""


@dataclass(frozen=True)
class Plan:
    """What the run will do, settled before it starts."""

    particles: Particles
    look: Survey
    diameter_angstrom: float
    working_box: int
    boxes: list[int]
    device: str
    threads: int
    group: Tensor
    image_memory_bytes: float = math.inf
    stage_s: dict[str, float] = dataclasses.field(default_factory=dict)
    memory_bytes: float = 0.0

    @property
    def expected_s(self) -> float | None:
        """Time of a run whose first start is good; None on devices that were never timed."""
        return sum(self.stage_s.values()) if self.device == "cpu" else None

    @property
    def search_device(self) -> torch.device:
        """Where poses are searched and refined. On Apple's devices that was never tried: beside them the CPU does it."""
        return torch.device(self.device if self.device == "cuda" else "cpu")

    @property
    def box_angstrom(self) -> float:
        return self.particles.box * self.particles.pixel_size_angstrom

    def diameter_px(self, box: int) -> float:
        return self.diameter_angstrom / self.box_angstrom * box

    def fits(self, box: int) -> bool:
        """Whether the images of a box may be in memory all at once."""
        return image_bytes(len(self.particles), box) <= self.image_memory_bytes

    @property
    def independent(self) -> float:
        """Share of an image's coefficients that are independent of each other."""
        return disc_share(self.particles.box)

    def mask(self, box: int) -> Tensor:
        """Soft ball that holds the particle."""
        return soft_ball(box, ball_radius_px(box, self.diameter_px(box)))


def free_threads() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def group_of(name: str) -> Tensor:
    """The point group of ``--symmetry``, (g, 3, 3)."""
    try:
        return point_group(name).float()
    except ValueError as error:
        raise InputError(f"--symmetry {name}: {error}") from error


def choose_device(name: str) -> str:
    """``auto`` takes what is there: CUDA, then Apple's MPS, then the CPU."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next(d for d in ("cuda", "mps", "cpu") if available[d])
    if not available[name]:
        raise InputError(f"--device {name}: no such device here; expected auto or cpu")
    return name


def even_box(least: float) -> int:
    """The next even box of at least 24 whose FFT is fast (no prime factor above 5)."""
    box = max(24, 2 * math.ceil(least / 2))
    while _largest_prime_factor(box) > 5:
        box += 2
    return box


def _largest_prime_factor(n: int) -> int:
    largest, factor = 1, 2
    while n > 1:
        while n % factor == 0:
            n, largest = n // factor, factor
        factor += 1
    return largest


def check(config: RunConfig) -> None:
    """Refuse settings that make no run."""
    if len(group_of(config.symmetry)) > 1 and config.stages == "ace":
        raise InputError(f"--symmetry {config.symmetry}: the autoencoder alone imposes none; expected C1, or --stages all")
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
        "ace.width": (ace.width, ace.width >= 1, "1 or more"),
        "ace.depth": (ace.depth, ace.depth >= 1, "1 or more"),
        "ace.max_shift": (ace.max_shift, 0 < ace.max_shift <= 0.5, "more than 0, to 0.5"),
        "ace.encoder_band": (ace.encoder_band, ace.encoder_band > 0, "more than 0"),
        "ace.lr_encoder": (ace.lr_encoder, ace.lr_encoder > 0, "more than 0"),
        "ace.lr_decoder": (ace.lr_decoder, ace.lr_decoder > 0, "more than 0"),
        "ace.march": (ace.march, 0 <= ace.march <= 1, "0 to 1"),
        "ace.first_band": (ace.first_band, 0 < ace.first_band <= (ace.last_band or math.inf), "0 to --ace.last-band"),
        "ace.last_band": (ace.last_band, ace.last_band >= 0, "0 or more"),
        "ace.label_kernel": (ace.label_kernel, 1 <= ace.label_kernel <= 5, "1 to 5"),
        "ace.milestones": (list(ace.milestones), all(0 < m <= 1 for m in ace.milestones), "shares of the run, 0 to 1"),
        "ace.pip_warmup_steps": (ace.pip_warmup_steps, ace.pip_warmup_steps >= 0, "0 or more"),
        "search.first_band": (search.first_band, 0 < search.first_band <= search.last_band, "0 to --search.last-band"),
        "search.spacing": (search.spacing, search.spacing > 0.2, "more than 0.2"),
        "search.explore_rounds": (search.explore_rounds, search.explore_rounds >= 1, "1 or more"),
        "search.explore_images": (search.explore_images, search.explore_images >= 2, "2 or more"),
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
    for name, (value, fine, expected) in rules.items():
        if not fine:
            raise InputError(f"{option(name)} {value}: expected {expected}")
    if config.scratch and not (Path(config.scratch).is_dir() and os.access(config.scratch, os.W_OK)):
        raise InputError(f"--scratch {config.scratch}: expected a folder that can be written to")


def make_plan(particles: Particles, config: RunConfig) -> Plan:
    """Survey the images and fix boxes, device and threads."""
    if len(particles) < LEAST_PARTICLES:
        raise InputError(f"{particles.table.path}: {len(particles)} particles; expected at least {LEAST_PARTICLES}")
    particles.half_sets()  # a column that cannot be used is refused before anything is made
    sign = {"auto": None, "white": 1.0, "black": -1.0}[config.contrast]
    threads = config.threads or free_threads()
    torch.set_num_threads(threads)
    look = survey(particles, sign, config.seed)
    said = sign_of_file(particles, look, config)
    if said is not None:
        look = dataclasses.replace(look, sign=said)
    diameter = config.diameter or look.diameter_angstrom
    box_angstrom = particles.box * particles.pixel_size_angstrom
    if not 4 * particles.pixel_size_angstrom <= diameter <= 1.5 * box_angstrom:
        raise InputError(f"--diameter {diameter:g}: expected Angstrom, no more than 1.5 times the box of {box_angstrom:.0f} A")
    shells_per_band = box_angstrom / diameter
    final = config.final_box or min(particles.box, LARGEST_DEFAULT_BOX)
    if not 16 <= final <= particles.box:
        raise InputError(f"--final-box {final}: expected 16 to {particles.box}, the box of the images")
    marched = min(even_box(2.2 * config.ace.last_band * shells_per_band), particles.box)
    working = marched if config.ace.last_band else final
    boxes = [*(b for b in (64,) if working < b < final), final] if config.stages == "all" else [working]
    device, group = choose_device(config.device), group_of(config.symmetry)
    allowed = config.memory * 2**30 or available_bytes() / 2
    memory = expected_memory(len(particles), working, boxes, allowed)
    plan = Plan(particles, look, diameter, working, boxes, device, threads, group, allowed, {}, memory)
    return dataclasses.replace(plan, stage_s=stage_seconds(plan, config))


def sign_of_file(particles: Particles, look: Survey, config: RunConfig) -> float | None:
    """The contrast that a cryoSPARC file says, where it is taken from there: the images do not tell, and nobody does."""
    unclear = config.contrast == "auto" and abs(look.contrast_z) < UNCLEAR_CONTRAST
    return particles.sign_on_disk if unclear else None


def announce(plan: Plan, config: RunConfig, reporter: Reporter) -> None:
    """The plan, before anything long starts."""
    p, look = plan.particles, plan.look
    colour = "white" if look.sign > 0 else "black"
    from_file = sign_of_file(p, look, config) is not None
    how = "as told" if config.contrast != "auto" else "says the file" if from_file else "measured"
    reporter.say(f"{p.table.path}: {len(p)} particles, {p.box} px at {p.pixel_size_angstrom:g} A/px")
    reporter.say(f"protein is {colour} ({how}, z = {look.contrast_z:+.0f}), signal over noise {look.snr:.3f}")
    if config.contrast == "auto" and abs(look.contrast_z) < UNCLEAR_CONTRAST and not from_file:
        reporter.say("the contrast is not clear from the images: if the map comes out inverted, give --contrast")
    reporter.say(
        f"diameter about {plan.diameter_angstrom:.0f} A; working box {plan.working_box} px, final box {plan.boxes[-1]} px"
    )
    other = p.stack_of_another_pixel_size
    if other is not None:
        stack, size = other
        said = f"{p.table.path} says {p.pixel_size_angstrom:.4g} A/px, but the header of {stack} says {size:.4g}"
        reporter.say(f"{said}: the {p.pixel_size_angstrom:.4g} of the table is used", always=True)
    defocus = p.ctf.defocus_u_angstrom.median().item()
    if defocus < LITTLE_DEFOCUS_ANGSTROM:
        reporter.say(f"the median defocus is {defocus:.0f} A, which is little: is the column in nanometre?", always=True)
    not_used = not_in_the_model(p.table)
    if not_used:
        reporter.say(f"not in the image model, so not corrected: {', '.join(not_used)}")
    if config.stages == "ace":
        reporter.say(f"the autoencoder alone (preset {config.preset}): no search, no refinement")
    # two threads took as long as one (the demo: 97 s against 94 s of one core)
    hope = " if the first start is good" if config.stages == "all" else ""
    time = "time not known on this device"
    if plan.expected_s is not None:
        time = f"about {clock(plan.expected_s)} on free server cores{hope}"
    memory = plan.memory_bytes / 2**30
    reporter.say(f"on {plan.device}, {plan.threads} thread(s), seed {config.seed}; {time}; {memory:.1f} GiB of memory")
    for box in dict.fromkeys((plan.working_box, *plan.boxes)):
        if not plan.fits(box):
            size = image_bytes(len(p), box) / 2**30
            reporter.say(f"the images at {box} px take {size:.1f} GiB: they are kept in a scratch file (--memory, --scratch)")
    reporter.expected = Expectation(plan.stage_s, known=plan.expected_s is not None)


def image_bytes(n: int, box: int) -> float:
    """Of ``n`` images of a working box: coefficients (8 bytes) and transfers (4) of a half-plane."""
    return n * math.pi / 2 * (box / 2) ** 2 * 12


def expected_memory(n: int, working_box: int, boxes: list[int], allowed: float) -> float:
    """Bytes of memory at the peak, which is in the search or in a back-projection.

    Both have the program, the table and the images of one box (or a block of them and a copy, where those are in a file). The
    search has its blocks of scores beside, the back-projection the padded maps of two halves and their transforms. Fitted
    to runs at 32 to 256 px (``benchmarks/memory.py``, 2026-11-25).
    """

    def held(box: int) -> float:
        size = image_bytes(n, box)
        return size if size <= allowed else min(size, 2 * BLOCK_BYTES)

    searching = 1.05 * 2**30 + held(working_box)
    reconstructing = max(0.7 * 2**30 + held(box) + 10.5 * 4 * (2 * box) ** 3 for box in boxes)
    return max(searching, reconstructing) + 1200 * n


def stage_seconds(plan: Plan, config: RunConfig) -> dict[str, float]:
    """Time of each stage on one free server core: costs per image and coefficient, fitted to the benchmarks of 2026-11-23."""
    ace, box, n = config.ace, plan.working_box, len(plan.particles)
    coefficients = math.pi / 2 * (box / 2) ** 2
    passes = (2 if ace.symmetric_loss != "none" else 1) + ace.pip
    per_image = {"fourier": (coefficients + 400) * 2.2e-7, "resnet": 2.2e-3 * (box / 32) ** 2}[ace.encoder] * passes
    per_step = ace.batch * per_image
    if ace.decoder == "fouriernet":
        # frequencies that go through the network with gradients: those of the grid, or of every image
        lattice = ace.fouriernet_projector == "lattice"
        per_step += 3e-5 * (2 / 3 * math.pi * (box / 2) ** 3 if lattice else ace.batch * passes * coefficients)
    training = ace.steps * per_step
    judging = n * coefficients * 4.5e-6
    if config.stages == "ace":
        return {"start": training, "results": 4.0 + judging}
    return {
        "start": training + coefficients * 0.05 * config.search.explore_images / 800,
        "search": coefficients * 1.5e-5 * n,
        "refinement": n * sum(b**2 for b in plan.boxes) * 1.1e-6,
        "confidence": judging,
        # poses to images and back, without a gradient of the decoder
        "lesson": config.predict.steps * ace.batch * (coefficients + 400) * 1.9e-7,
        "results": 4.0 + (n * coefficients * 1e-6 if config.predict.steps else 0.0),
    }


def record_survey(plan: Plan, reporter: Reporter) -> None:
    """What was found out about the images, as a record."""
    reporter.record(
        "survey",
        n_particles=len(plan.particles),
        box=plan.particles.box,
        pixel_size_angstrom=plan.particles.pixel_size_angstrom,
        contrast="white" if plan.look.sign > 0 else "black",
        contrast_z=round(plan.look.contrast_z, 2),
        diameter_angstrom=round(plan.diameter_angstrom, 1),
        snr=round(plan.look.snr, 4),
        not_corrected=not_in_the_model(plan.particles.table),
    )
