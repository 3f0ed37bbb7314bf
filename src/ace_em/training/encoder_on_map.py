"""Training the encoder on a finished map by pose-image-pose alone, so that it can predict the poses of new particles.

Stage 1's encoder was trained with stage 1's map, in which views may be arranged wrongly; later stages put them right.
"""

from dataclasses import replace

from lightning_fabric import Fabric

from ace_em.config import AceConfig, PredictConfig
from ace_em.data.particle_stack import ParticleStack
from ace_em.io.plain import Plain
from ace_em.training.autoencoder import AutoEncoder
from ace_em.training.loop import Training


def encoder_training_config(ace: AceConfig, config: PredictConfig) -> AceConfig:
    """Stage 1's settings with PIP alone, for ``config.steps`` updates."""
    return replace(
        ace,
        steps=config.steps,
        lr_encoder=config.lr,
        pip=True,
        pip_schedule="succession",
        pip_warmup_steps=0,
        label_steps=0,
        symmetric_loss="none",
        schedule="cosine",
    )


def train_encoder_on_map(
    model: AutoEncoder,
    stack: ParticleStack,
    diameter_px: float,
    config: PredictConfig,
    fabric: Fabric,
    seed: int,
    begun: Plain | None = None,
) -> Training:
    """The training of ``model``'s encoder, its decoder a :class:`~ace_em.models.fixed_volume.FixedVolume`; iterate over it.

    Parameters
    ----------
    stack : gives the CTFs and the noise; its images are not used.
    """
    model.config = encoder_training_config(model.config, config)
    return Training(stack, diameter_px, model.config, fabric, seed, begun, model)
