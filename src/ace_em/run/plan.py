"""Plan of a run, made before it starts: survey of the images, boxes, device, expected time and memory."""

import dataclasses
import math
import os
from dataclasses import dataclass

import torch
from torch import Tensor

from ace_em.config import RunConfig
from ace_em.data.particles import Particles
from ace_em.data.survey import Survey, survey
from ace_em.errors import InputError
from ace_em.io.particle_table import not_in_the_model
from ace_em.maths.masks import ball_radius_px, disc_share, soft_ball
from ace_em.refinement.search import SearchSpace
from ace_em.run.estimate import available_bytes, expected_memory, image_bytes, stage_seconds
from ace_em.run.eta import Expectation, clock
from ace_em.run.reporter import Reporter
from ace_em.run.validate import choose_device, group_of

LARGEST_DEFAULT_BOX = 128
MIN_PARTICLES = 100
LOW_DEFOCUS_ANGSTROM = 2500.0
UNCLEAR_CONTRAST = 5.0
"""z-score below which the measured contrast is not significant."""


@dataclass(frozen=True)
class Plan:
    """Plan of a run.

    Attributes
    ----------
    look : survey of the images.
    working_box : box of stages 1 and 2.
    boxes : boxes of the refinement; the last one is that of the final maps.
    group : (g, 3, 3) point group.
    copies : (c, 3, 3) pseudo-symmetry about whose axes the refinement tries copies of each pose.
    image_memory_bytes : limit for the images of one box.
    stage_s : expected seconds of each stage.
    memory_bytes : expected peak memory.
    """

    particles: Particles
    look: Survey
    diameter_angstrom: float
    working_box: int
    boxes: list[int]
    device: str
    threads: int
    group: Tensor
    copies: Tensor = torch.eye(3)[None]
    image_memory_bytes: float = math.inf
    stage_s: dict[str, float] = dataclasses.field(default_factory=dict)
    memory_bytes: float = 0.0

    @property
    def expected_s(self) -> float | None:
        """Expected time if the first start is good; None on devices without benchmarks."""
        return sum(self.stage_s.values()) if self.device == "cpu" else None

    @property
    def search_device(self) -> torch.device:
        """Device of pose search and refinement: the CPU instead of MPS, where they are untested."""
        return torch.device(self.device if self.device == "cuda" else "cpu")

    @property
    def box_angstrom(self) -> float:
        return self.particles.box * self.particles.pixel_size_angstrom

    def diameter_px(self, box: int) -> float:
        return self.diameter_angstrom / self.box_angstrom * box

    def fits(self, box: int) -> bool:
        """Whether all images of a box fit within the memory limit."""
        return image_bytes(len(self.particles), box) <= self.image_memory_bytes

    @property
    def independent(self) -> float:
        """Share of independent Fourier coefficients of a masked image."""
        return disc_share(self.particles.box)

    def mask(self, box: int) -> Tensor:
        """Soft spherical mask around the particle."""
        return soft_ball(box, ball_radius_px(box, self.diameter_px(box)))

    def search_space(self, box: int, config: RunConfig) -> SearchSpace:
        """Search space at a box, one asymmetric unit."""
        return SearchSpace(box, self.diameter_px(box), config.search, self.group, self.independent)

    def poses_tried(self, config: RunConfig) -> int:
        """Number of poses per image in the finest search."""
        space = self.search_space(self.working_box, config)
        return len(space.grid(space.band(config.search.last_band), torch.Generator()))


def free_threads() -> int:
    """Number of cores available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def even_box(least: float) -> int:
    """Smallest even box of at least ``least`` and 24 with a fast FFT (no prime factor above 5)."""
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


def make_plan(particles: Particles, config: RunConfig) -> Plan:
    """Survey the images and choose boxes, device and threads."""
    if len(particles) < MIN_PARTICLES:
        raise InputError(f"{particles.table.path}: {len(particles)} particles; expected at least {MIN_PARTICLES}")
    particles.half_sets()  # raises InputError for an invalid column
    sign = {"auto": None, "white": 1.0, "black": -1.0}[config.contrast]
    threads = config.threads or free_threads()
    torch.set_num_threads(threads)
    look = survey(particles, sign, config.seed)
    from_file = sign_of_file(particles, look, config)
    if from_file is not None:
        look = dataclasses.replace(look, sign=from_file)
    diameter = config.diameter or look.diameter_angstrom
    box_angstrom = particles.box * particles.pixel_size_angstrom
    if not 4 * particles.pixel_size_angstrom <= diameter <= 1.5 * box_angstrom:
        raise InputError(f"--diameter {diameter:g}: expected Angstrom, at most 1.5 times the box of {box_angstrom:.0f} A")
    shells_per_band = box_angstrom / diameter
    final = config.final_box or min(particles.box, LARGEST_DEFAULT_BOX)
    if not 16 <= final <= particles.box:
        raise InputError(f"--final-box {final}: expected 16 to {particles.box}, the box of the images")
    marched = min(even_box(2.2 * config.ace.last_band * shells_per_band), particles.box)
    working = marched if config.ace.last_band else final
    boxes = [*(b for b in (64,) if working < b < final), final] if config.stages == "all" else [working]
    allowed = config.memory * 2**30 or available_bytes() / 2
    n = len(particles)
    return Plan(
        particles,
        look,
        diameter,
        working,
        boxes,
        choose_device(config.device),
        threads,
        group_of(config.symmetry),
        group_of(config.relax_symmetry, "relax_symmetry"),
        image_memory_bytes=allowed,
        stage_s=stage_seconds(n, working, boxes, config),
        memory_bytes=expected_memory(n, working, boxes, allowed),
    )


def sign_of_file(particles: Particles, look: Survey, config: RunConfig) -> float | None:
    """Contrast from a cryoSPARC file; None if the user gives it or the images show it clearly."""
    unclear = config.contrast == "auto" and abs(look.contrast_z) < UNCLEAR_CONTRAST
    return particles.sign_on_disk if unclear else None


def announce(plan: Plan, config: RunConfig, reporter: Reporter) -> None:
    """Report the plan."""
    p, look = plan.particles, plan.look
    colour = "white" if look.sign > 0 else "black"
    from_file = sign_of_file(p, look, config) is not None
    how = "as given" if config.contrast != "auto" else "from the file" if from_file else "measured"
    reporter.say(f"{p.table.path}: {len(p)} particles, {p.box} px at {p.pixel_size_angstrom:g} A/px")
    reporter.say(f"protein is {colour} ({how}, z = {look.contrast_z:+.0f}), signal-to-noise ratio {look.snr:.3f}")
    if config.contrast == "auto" and abs(look.contrast_z) < UNCLEAR_CONTRAST and not from_file:
        reporter.say("the contrast is not clear from the images; if the map is inverted, set --contrast")
    reporter.say(
        f"diameter about {plan.diameter_angstrom:.0f} A; working box {plan.working_box} px, final box {plan.boxes[-1]} px"
    )
    other = p.stack_of_another_pixel_size
    if other is not None:
        stack, size = other
        sizes = f"{p.pixel_size_angstrom:.4g} A/px in {p.table.path}, but {size:.4g} in the header of {stack}"
        reporter.say(f"pixel size {sizes}: using {p.pixel_size_angstrom:.4g}", always=True)
    defocus = p.ctf.defocus_u_angstrom.median().item()
    if defocus < LOW_DEFOCUS_ANGSTROM:
        reporter.say(f"the median defocus is only {defocus:.0f} A: is the column in nanometres?", always=True)
    not_used = not_in_the_model(p.table)
    if not_used:
        reporter.say(f"not corrected, because not part of the image model: {', '.join(not_used)}")
    if config.stages == "ace":
        reporter.say(f"the autoencoder alone (preset {config.preset}): no search, no refinement")
    condition = " if the first start is good" if config.stages == "all" else ""
    time = "time not known on this device"
    if plan.expected_s is not None:
        time = f"about {clock(plan.expected_s)} on idle server cores{condition}"
    memory = plan.memory_bytes / 2**30
    if len(look.noise.variance) > 1:
        reporter.say(f"{len(look.noise.variance)} noise spectra, one per large optics group")
    reporter.say(f"on {plan.device}, {plan.threads} thread(s), seed {config.seed}; {time}; {memory:.1f} GiB of memory")
    for box in dict.fromkeys((plan.working_box, *plan.boxes)):
        if not plan.fits(box):
            size = image_bytes(len(p), box) / 2**30
            reporter.say(f"the images at {box} px take {size:.1f} GiB and are kept in a scratch file (--memory, --scratch)")
    reporter.expected = Expectation(plan.stage_s, known=plan.expected_s is not None)


def record_survey(plan: Plan, reporter: Reporter) -> None:
    """Record the survey of the images."""
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
