"""Every setting of a run, as frozen dataclasses.

The command line builds its options from these classes, and ``ace-em --help`` must not wait for torch: so this module imports the
standard library alone. Lengths are in Angstrom, angles in degrees. Bands are in
units of one over the particle's diameter ("per diameter"): 3.4 of them is the shell ``3.4 * box / diameter``, so that
the plan follows the particle and not the box that it came in.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

Config = TypeVar("Config", bound=Any)


@dataclass(frozen=True)
class SimulationConfig:
    """A simulated particle set (appendix B of the paper)."""

    n: int = 5000
    """number of images"""
    box: int = 128
    """image edge in pixels"""
    pixel_size: float = 4.25
    """Angstrom per pixel"""
    resolution: float = 6.0
    """molmap resolution in Angstrom: atoms are Gaussians of sigma 0.225 of it"""
    snr_db: float = -10.0
    """signal-to-noise power ratio in decibel; 200 is noise-free"""
    shift_sd: float = 20.0
    """standard deviation of the in-plane shift along each axis, Angstrom"""
    defocus: float = 20000.0
    """median defocus, Angstrom"""
    defocus_spread: float = 0.2
    """standard deviation of the logarithm of the defocus"""
    astigmatism: float = 300.0
    """spread of defocus U - V, Angstrom"""
    voltage: float = 300.0
    """kV"""
    spherical_aberration: float = 2.7
    """mm"""
    amplitude_contrast: float = 0.1
    """fraction"""
    seed: int = 0
    """random seed: the same seed gives the same bytes"""


@dataclass(frozen=True)
class VoxelGridConfig:
    """The decoder VoxelGrid_R (A.2)."""

    projector: Literal["slice", "integral"] = "slice"
    """how voxels are projected: 'slice' (Fourier slice, as in CryoPoseNet) or 'integral' (rotate and sum, as in CryoGAN)"""
    lr: float = 0.05
    """AdamW learning rate in units of the volume's amplitude (paper: 1.0 in its grey values)"""
    lr_scale: float = 1.0
    """factor on lr: the share of its volume's amplitude that the paper's grey value of 1 is (not given there; 0.05 is our
    reading)"""


@dataclass(frozen=True)
class FourierNetConfig:
    """The decoder FourierNet (A.2)."""

    projector: Literal["direct", "lattice"] = "lattice"
    """'direct': the network is evaluated at every coefficient of every image (paper); 'lattice': once per step on a grid, which
    is then sliced like a voxel volume (cheaper when a batch has more coefficients than the grid)"""
    lr: float = 2e-4
    """AdamW learning rate (paper: 1e-4)"""


@dataclass(frozen=True)
class FourierEncoderConfig:
    """The encoder that reads Fourier coefficients: a multilayer perceptron."""

    band: float = 7.5
    """it reads frequencies up to this, in cycles per diameter"""
    width: int = 512
    """units per layer"""
    depth: int = 4
    """layers"""


@dataclass(frozen=True)
class AceConfig:
    """Stage 1: the asymmetric complementary autoencoder, trained by IPI and PIP."""

    encoder: str = "fourier"
    """'fourier' (MLP on low-frequency coefficients) or 'resnet' (the paper's, A.1)"""
    decoder: str = "voxel"
    """'voxel' (VoxelGrid_R) or 'fouriernet' (two SIRENs in Fourier space), A.2"""
    steps: int = 600
    """updates"""
    batch: int = 256
    """images per update and per device (paper: 1024 with voxels)"""
    hypotheses: int = 4
    """rotations per image; the best one gets the gradient (paper: 1)"""
    alternatives: bool = True
    """also score a 180-degree alternative of every hypothesis (paper: off)"""
    alternative_weight: float = 0.3
    """weight of the loss that pulls the nearest hypothesis to an alternative that fits better"""
    blank: bool = True
    """an image may show no particle: one that the zero image fits better than every hypothesis has no gradient (paper: off)"""
    symmetric_loss: Literal["none", "half-turn", "generalised"] = "none"
    """'none' (eq. 5), 'half-turn' (eq. 6: the better of the image and its 180-degree turn) or 'generalised' (eq. 7: the better
    of two random in-plane turns and mirrors)"""
    label_steps: int = 0
    """updates during which the image loss compares with a low-passed image, eq. 9-10 (paper: 3000-6000 with voxels)"""
    label_kernel: int = 5
    """which of the five filters low-passes it: 4 or 5, eq. 9"""
    pip: bool = True
    """train pose-image-pose beside image-pose-image"""
    pip_schedule: Literal["together", "alternating", "succession"] = "together"
    """after the warm-up, 'together': L_IPI + beta L_PIP in each update; 'alternating': one and the other in turn;
    'succession': PIP alone"""
    pip_weight: float = 0.3
    """beta of eq. 14 (paper: 0.9 at 200 dB, 0.05-0.09 at -10 dB)"""
    pip_warmup_steps: int = 0
    """updates before PIP joins, eq. 15 (paper: 0, or 2000-3000)"""
    pip_freeze_decoder: bool = True
    """PIP does not update the volume (paper, section 4.1)"""
    pip_spread: float = 0.1
    """share of the PIP loss that goes to all hypotheses rather than the best one (no meaning with 1 hypothesis)"""
    pip_shift_sd: float = 0.05
    """first guess of the shifts' spread along an axis, in diameters; replaced by that of the encoder's predictions"""
    shift_weight: float = 0.01
    """weight of eq. 8's L1 term on shifts, as fractions of the box (paper: 1)"""
    first_band: float = 3.0
    """image loss at the start counts frequencies up to this, in cycles per diameter"""
    last_band: float = 9.0
    """and up to this at the end of the march; also sets the working box. 0: every frequency of the final box (paper)"""
    march: float = 0.6
    """share of the run over which the band grows; 0 counts every frequency from the start (paper)"""
    lr_encoder: float = 1e-3
    """AdamW learning rate of the encoder"""
    schedule: Literal["cosine", "constant", "multistep"] = "cosine"
    """after the warm-up 'cosine' (to final_lr), 'constant' or 'multistep' (times milestone_factor at every milestone)"""
    milestones: tuple[float, ...] = (0.6, 0.85)
    """shares of the run at which 'multistep' lowers the rate"""
    milestone_factor: float = 0.1
    """and by how much"""
    final_lr: float = 0.03
    """share of the learning rate left at the end of the cosine"""
    warmup_steps: int = 50
    """updates over which the learning rate rises"""
    max_shift: float = 0.125
    """bound of the encoder's shifts, fraction of the box (paper: a sigmoid; centred, 0.5)"""
    voxel: VoxelGridConfig = field(default_factory=VoxelGridConfig)
    """decoder 'voxel'"""
    fouriernet: FourierNetConfig = field(default_factory=FourierNetConfig)
    """decoder 'fouriernet'"""
    fourier: FourierEncoderConfig = field(default_factory=FourierEncoderConfig)
    """encoder 'fourier'"""


@dataclass(frozen=True)
class SearchConfig:
    """Stage 2: exhaustive pose search: ab initio on random subsets first, then of all images in two half-sets."""

    first_band: float = 6.0
    """the first round counts frequencies up to this, in cycles per diameter"""
    last_band: float = 9.7
    """the last round of the ab initio search counts frequencies up to this"""
    ab_initio_rounds: int = 20
    """rounds of the ab initio search, each on a fresh random subset: cheap, and the change of images moves the map out of wrong
    arrangements of views"""
    ab_initio_images: int = 800
    """images in such a subset"""
    ab_initio_explained: float = 0.93
    """the ab initio search ends early when the map explains this share of the signal and gains no more"""
    held_out: int = 400
    """images kept out of the ab initio search (a fifth of all at most): how well the map explains them decides between starts"""
    tolerance: float = 0.05
    """another start is tried when the map explains less of the held-out images' signal than the noise allows the right map, by
    more than this share"""
    shortfall: float = 0.2
    """a run whose map falls short of that by more than this share has not converged"""
    least_z: float = 5.0
    """nor has one whose map fits the held-out images better than a map of random phases by fewer standard errors than this"""
    spacing: float = 1.5
    """distance of orientations in the grid, in units of 1 rad over the band"""
    shift: float = 0.08
    """radius of the shift grid about an image's last shift, in diameters"""
    shift_step: float = 0.04
    """its step, in diameters"""
    top_k: int = 4
    """orientations per image that local steps are tried from"""
    local_steps: int = 3
    """Gauss-Newton steps after each search"""
    factors: Literal["processor", "float32", "bfloat16"] = "processor"
    """numbers that scores are multiplied from: 'processor' lets it round them to bfloat16 where it is faster at that; 'float32'
    never, 'bfloat16' always rounds"""
    shared_band: float = 4.5
    """the two half-sets start from the ab initio map low-passed at this, in cycles per diameter; nothing finer is shared"""
    max_rounds: int = 8
    """most rounds on all images"""
    stable_deg: float = 10.0
    """a pose is stable when a round on all images moved it by less than this"""
    stable_share: float = 0.97
    """stop when this share of the poses is stable and the half-maps no longer gain"""
    settled_share: float = 0.7
    """fewer stable poses than this at the end, and the run has not converged"""


@dataclass(frozen=True)
class RefineConfig:
    """Stage 3: the two half-sets, refined by Gauss-Newton steps as band and box grow."""

    local_steps: int = 3
    """Gauss-Newton steps per round"""
    max_rounds: int = 8
    """rounds per box"""
    stable_deg: float = 0.5
    """a box is done when the median pose moved by less than this and the band no longer grows"""
    defocus: bool = False
    """fit every particle's defocus at the full box, in two passes"""
    defocus_range: float = 1600.0
    """how far from the file's defocus is looked, Angstrom"""
    defocus_sd: float = 400.0
    """prior spread of the defocus error, Angstrom"""


@dataclass(frozen=True)
class PredictConfig:
    """Stage 4: the encoder is trained on the final map by PIP alone, for `ace-em predict`."""

    steps: int = 1000
    """updates; 0: no encoder is kept for `ace-em predict`"""
    images: int = 20000
    """images whose CTFs are used, at most"""
    lr: float = 2e-3
    """AdamW learning rate"""
    hypotheses: int = 4
    """hypotheses (180-degree alternatives among them) that a local step is tried from"""
    bands: tuple[float, ...] = (2.6, 3.8, 5.8)
    """the local step climbs through these bands, in cycles per diameter, then uses all: coarse ones find poses further away"""
    distinct_deg: float = 15.0
    """poses nearer to each other than this are one answer"""
    confident: float = 0.9
    """particles whose pose is at least this probable are written to confident.star"""


@dataclass(frozen=True)
class RunConfig:
    """Everything that `reconstruct` needs beside the particles."""

    preset: Literal["fast", "paper-voxel", "paper-fourier", "cryoai", "cryoposenet"] = "fast"
    """defaults of every other setting: 'fast' or one of the published recipes; `ace-em presets` shows them"""
    stages: Literal["all", "ace"] = "all"
    """'all', or 'ace': the autoencoder alone, as published; its map and the encoder's poses are the result"""
    subset: str = ""
    """use only these particles: row numbers (text, from 1; .npy, from 0) or another particle file (.star, .cs)"""
    exclude: str = ""
    """leave these particles out; a file as for --subset"""
    max_particles: int = 0
    """use no more than so many particles, drawn at random; 0: all"""
    passthrough: str = ""
    """cryoSPARC files with the fields that the .cs file lacks, separated by commas; those beside it are found"""
    project: str = ""
    """folder that image paths are relative to; otherwise the particle file's folder and those above it are tried"""
    seed: int = 0
    """random seed"""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto, cpu, cuda or mps: where the networks run; poses are searched and refined there too, but on the CPU beside mps"""
    threads: int = 0
    """CPU threads; 0: the cores this process may use"""
    memory: float = 0.0
    """GiB that the images of one box may take; where they take more, they are kept in a scratch file and read block by block.
    0: half of the memory that is free"""
    scratch: str = ""
    """folder for that file; otherwise that of the run"""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Lightning Fabric's precision for stage 1"""
    contrast: Literal["auto", "white", "black"] = "auto"
    """auto, white or black: the protein's contrast on disk"""
    diameter: float = 0.0
    """particle diameter in Angstrom; 0: measured from the images"""
    final_box: int = 0
    """box of the final maps in pixels; 0: that of the images, 128 at most"""
    checkpoint_s: float = 15.0
    """seconds between checkpoints; a run that is stopped or killed loses no more than this and the round it is in"""
    starts: int = 3
    """how many random starts are tried at most before the best is taken"""
    symmetry: str = "C1"
    """point group (Cn, Dn, T, O, I; RELION's axes), used after a start without it"""
    flip_hand: bool = False
    """write the mirror image, maps and poses together: projections do not determine the hand"""
    b_factor: float | None = None
    """B factor in Angstrom^2 (negative sharpens) for volume_sharp.mrc; none: measured"""
    ace: AceConfig = field(default_factory=AceConfig)
    """stage 1"""
    search: SearchConfig = field(default_factory=SearchConfig)
    """stage 2"""
    refine: RefineConfig = field(default_factory=RefineConfig)
    """stage 3"""
    predict: PredictConfig = field(default_factory=PredictConfig)
    """stage 4"""


def changed(config: Config, settings: Mapping[str, Any]) -> Config:
    """A configuration with other values for some of its settings, by dotted name (``ace.voxel.lr``)."""
    for name, value in settings.items():
        group, inside, rest = name.partition(".")
        config = dataclasses.replace(config, **{group: changed(getattr(config, group), {rest: value}) if inside else value})
    return config


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every setting of a configuration by dotted name."""
    found: dict[str, Any] = {}
    for one in dataclasses.fields(config):
        value = getattr(config, one.name)
        found |= flat(value, f"{prefix}{one.name}.") if dataclasses.is_dataclass(value) else {prefix + one.name: value}
    return found
