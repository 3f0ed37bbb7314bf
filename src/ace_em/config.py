"""All settings of a run, as frozen dataclasses.

The command line builds its options from these classes. This module imports only the standard library, so that ``ace-em --help``
is fast. Lengths are in Angstrom, angles in degrees. Bands are in cycles per particle diameter: a band of 3.4 ends at the shell
``3.4 * box / diameter``. They depend on the size of the particle, not on that of the box.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

Config = TypeVar("Config", bound=Any)


@dataclass(frozen=True)
class SimulationConfig:
    """A simulated particle data set (appendix B of the paper)."""

    n: int = 5000
    """number of images"""
    box: int = 128
    """image edge in pixels"""
    pixel_size: float = 4.25
    """Angstrom per pixel"""
    resolution: float = 6.0
    """molmap resolution in Angstrom: atoms are Gaussians of sigma 0.225 of it"""
    snr_db: float = -10.0
    """signal-to-noise power ratio in decibels; 200 is noise-free"""
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
    """factor on lr: grey value 1 of the paper as a share of the volume's amplitude (not given in the paper; we assume 0.05)"""


@dataclass(frozen=True)
class FourierNetConfig:
    """The decoder FourierNet (A.2)."""

    projector: Literal["direct", "lattice"] = "lattice"
    """'direct': the network is evaluated at every coefficient of every image (paper); 'lattice': once per step on a grid, which
    is then sliced like a voxel volume (cheaper if a batch has more coefficients than the grid)"""
    lr: float = 2e-4
    """AdamW learning rate (paper: 1e-4)"""


@dataclass(frozen=True)
class FourierEncoderConfig:
    """The Fourier encoder: a multilayer perceptron on Fourier coefficients."""

    band: float = 7.5
    """input frequencies up to this, in cycles per diameter"""
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
    """rotations per image; only the best one has a gradient (paper: 1)"""
    alternatives: bool = True
    """also score a 180-degree alternative of every hypothesis (paper: off)"""
    alternative_weight: float = 0.3
    """weight of the loss that moves the nearest hypothesis towards a better alternative"""
    blank: bool = True
    """allow images without a particle: an image that zero fits better than every hypothesis has no gradient (paper: off)"""
    symmetric_loss: Literal["none", "half-turn", "generalised"] = "none"
    """'none' (eq. 5), 'half-turn' (eq. 6: the better of the image and its 180-degree rotation) or 'generalised' (eq. 7: the
    better of two random in-plane rotations and mirrors)"""
    label_steps: int = 0
    """updates with low-passed images in the image loss, eq. 9-10 (paper: 3000-6000 with voxels)"""
    label_kernel: int = 5
    """index of the low-pass filter, 1 to 5 (paper: 4 or 5, eq. 9)"""
    pip: bool = True
    """train pose-image-pose (PIP) in addition to image-pose-image (IPI)"""
    pip_schedule: Literal["together", "alternating", "succession"] = "together"
    """after the warm-up 'together': L_IPI + beta L_PIP in each update; 'alternating': IPI and PIP updates in turn;
    'succession': PIP only"""
    pip_weight: float = 0.3
    """beta of eq. 14 (paper: 0.9 at 200 dB, 0.05-0.09 at -10 dB)"""
    pip_warmup_steps: int = 0
    """updates before PIP starts, eq. 15 (paper: 0, or 2000-3000)"""
    pip_freeze_decoder: bool = True
    """PIP does not update the volume (paper, section 4.1)"""
    pip_spread: float = 0.1
    """share of the PIP loss on all hypotheses rather than the best one (no effect with 1 hypothesis)"""
    pip_shift_sd: float = 0.05
    """initial standard deviation of the shifts along an axis, in diameters; later that of the encoder's predictions"""
    shift_weight: float = 0.01
    """weight of eq. 8's L1 term on shifts, as fractions of the box (paper: 1)"""
    first_band: float = 3.0
    """band of the image loss at the start, in cycles per diameter"""
    last_band: float = 9.0
    """band at the end of the march; also sets the working box. 0: all frequencies of the final box (paper)"""
    march: float = 0.6
    """share of the training over which the band grows; 0: last_band from the start (paper)"""
    lr_encoder: float = 1e-3
    """AdamW learning rate of the encoder"""
    schedule: Literal["cosine", "constant", "multistep"] = "cosine"
    """after the warm-up 'cosine' (to final_lr), 'constant' or 'multistep' (times milestone_factor at every milestone)"""
    milestones: tuple[float, ...] = (0.6, 0.85)
    """shares of the training at which 'multistep' lowers the learning rate"""
    milestone_factor: float = 0.1
    """factor on the learning rate at each milestone"""
    final_lr: float = 0.03
    """final share of the learning rate of 'cosine'"""
    warmup_steps: int = 50
    """updates over which the learning rate rises"""
    max_shift: float = 0.125
    """limit of the encoder's shifts, fraction of the box (paper: 0.5, from a sigmoid)"""
    voxel: VoxelGridConfig = field(default_factory=VoxelGridConfig)
    """settings of decoder 'voxel'"""
    fouriernet: FourierNetConfig = field(default_factory=FourierNetConfig)
    """settings of decoder 'fouriernet'"""
    fourier: FourierEncoderConfig = field(default_factory=FourierEncoderConfig)
    """settings of encoder 'fourier'"""


@dataclass(frozen=True)
class SearchConfig:
    """Stage 2: exhaustive pose search, first ab initio on random subsets, then on all images in two half-sets."""

    first_band: float = 6.0
    """band of the first round, in cycles per diameter"""
    last_band: float = 9.7
    """band of the last round of the ab initio search, in cycles per diameter"""
    ab_initio_rounds: int = 20
    """rounds of the ab initio search, each on a new random subset of the images, which helps to escape local minima"""
    ab_initio_images: int = 800
    """images per subset"""
    ab_initio_explained: float = 0.93
    """the ab initio search ends early when the map explains this share of the signal and no longer improves"""
    held_out: int = 400
    """images excluded from the ab initio search (at most a fifth of all), to compare starts"""
    tolerance: float = 0.05
    """another start is made if its map explains less of the signal in held-out images than expected, by more than this share"""
    shortfall: float = 0.2
    """a run has not converged if its map explains less than expected by more than this share"""
    least_z: float = 5.0
    """a run has not converged if the z-score of its map against a map with random phases is lower, on held-out images"""
    spacing: float = 1.5
    """spacing of the orientation grid, in units of 1 rad over the band"""
    shift: float = 0.08
    """radius of the shift grid around the last shift of an image, in diameters"""
    shift_step: float = 0.04
    """step of the shift grid, in diameters"""
    top_k: int = 4
    """orientations per image that are refined by local steps"""
    local_steps: int = 3
    """Gauss-Newton steps after each search"""
    factors: Literal["processor", "float32", "bfloat16"] = "processor"
    """precision of the factors of the scores: 'float32', 'bfloat16', or 'processor' for bfloat16 where the processor is faster
    with it"""
    shared_band: float = 4.5
    """the half-sets start from the ab initio map low-passed at this, in cycles per diameter; finer detail is independent"""
    max_rounds: int = 8
    """maximum number of rounds on all images"""
    stable_deg: float = 10.0
    """a pose is stable if a round on all images changed it by less than this"""
    stable_share: float = 0.97
    """stop when this share of the poses is stable and the half-maps no longer improve"""
    settled_share: float = 0.7
    """a run with a lower share of stable poses at the end has not converged"""


@dataclass(frozen=True)
class RefineConfig:
    """Stage 3: local refinement of the two half-sets by Gauss-Newton steps, with growing band and box."""

    local_steps: int = 3
    """Gauss-Newton steps per round"""
    max_rounds: int = 8
    """maximum number of rounds per box"""
    stable_deg: float = 0.5
    """refinement at a box ends when the median pose changed by less than this and the band no longer grows"""
    flatten_solvent: bool = True
    """mask the references to the particle, in the search of all images and in the refinement"""
    defocus: bool = False
    """refine the defocus of every particle at the final box, in two passes"""
    defocus_range: float = 1600.0
    """range of the defocus search around the input value, Angstrom"""
    defocus_sd: float = 400.0
    """prior standard deviation of the defocus error, Angstrom"""


@dataclass(frozen=True)
class PredictConfig:
    """Stage 4: training of the encoder on the final map by PIP, for `ace-em predict`."""

    steps: int = 1000
    """updates; 0: no encoder for `ace-em predict`"""
    images: int = 20000
    """maximum number of images whose CTFs are used"""
    lr: float = 2e-3
    """AdamW learning rate"""
    hypotheses: int = 4
    """hypotheses, 180-degree alternatives included, that are refined by local steps"""
    bands: tuple[float, ...] = (2.6, 3.8, 5.8)
    """bands of successive local steps, in cycles per diameter; a last step uses all. Low bands correct larger errors"""
    distinct_deg: float = 15.0
    """poses closer than this count as one"""
    confident: float = 0.9
    """particles whose pose is at least this probable are written to confident.star"""


@dataclass(frozen=True)
class RunConfig:
    """All settings of `reconstruct`."""

    preset: Literal["fast", "paper-voxel", "paper-fourier", "cryoai", "cryoposenet"] = "fast"
    """defaults of the other settings: 'fast' or a published recipe; see `ace-em presets`"""
    stages: Literal["all", "ace"] = "all"
    """'all', or 'ace': only the autoencoder, as published; the result is its map and the encoder's poses"""
    subset: str = ""
    """particles to use: file with row numbers (text, from 1; .npy, from 0) or another particle file (.star, .cs)"""
    exclude: str = ""
    """particles to omit; a file as for --subset"""
    max_particles: int = 0
    """maximum number of particles, drawn at random; 0: all"""
    passthrough: str = ""
    """cryoSPARC files with fields that the .cs file lacks, separated by commas; default: those in the same folder"""
    project: str = ""
    """folder that image paths are relative to; default: the folder of the particle file and its parents are tried"""
    seed: int = 0
    """random seed"""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """device of the networks and of pose search and refinement (CPU for the latter two with mps)"""
    threads: int = 0
    """CPU threads; 0: all cores available to this process"""
    memory: float = 0.0
    """memory limit for the images of one box in GiB; larger sets are kept in a scratch file and read block by block.
    0: half of the free memory"""
    scratch: str = ""
    """folder for the scratch file; default: that of the run"""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Lightning Fabric's precision for stage 1"""
    contrast: Literal["auto", "white", "black"] = "auto"
    """contrast of the protein on disk; auto: measured"""
    diameter: float = 0.0
    """particle diameter in Angstrom; 0: measured from the images"""
    final_box: int = 0
    """box of the final maps in pixels; 0: that of the images, at most 128"""
    checkpoint_s: float = 15.0
    """seconds between checkpoints; a killed run loses at most this time and the current round"""
    starts: int = 3
    """maximum number of random starts"""
    symmetry: str = "C1"
    """point group (Cn, Dn, T, O, I; RELION's axes), imposed after the ab initio search"""
    relax_symmetry: str = "C1"
    """pseudo-symmetry (as --symmetry): the refinement chooses among the copies of each pose; the map stays C1"""
    flip_hand: bool = False
    """write maps and poses of the other hand, which projections cannot determine"""
    b_factor: float | None = None
    """B factor in Angstrom^2 (negative sharpens) of volume_sharp.mrc; none: measured"""
    ace: AceConfig = field(default_factory=AceConfig)
    """stage 1"""
    search: SearchConfig = field(default_factory=SearchConfig)
    """stage 2"""
    refine: RefineConfig = field(default_factory=RefineConfig)
    """stage 3"""
    predict: PredictConfig = field(default_factory=PredictConfig)
    """stage 4"""


def changed(config: Config, settings: Mapping[str, Any]) -> Config:
    """A copy of a configuration with other values for some settings, by dotted name (``ace.voxel.lr``)."""
    for name, value in settings.items():
        group, dot, rest = name.partition(".")
        config = dataclasses.replace(config, **{group: changed(getattr(config, group), {rest: value}) if dot else value})
    return config


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """All settings of a configuration by dotted name."""
    settings: dict[str, Any] = {}
    for setting in dataclasses.fields(config):
        name, value = prefix + setting.name, getattr(config, setting.name)
        settings |= flat(value, f"{name}.") if dataclasses.is_dataclass(value) else {name: value}
    return settings
