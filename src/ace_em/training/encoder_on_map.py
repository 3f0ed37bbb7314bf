"""Training of the encoder on a finished map by PIP alone, for pose prediction of new particles.

The encoder of stage 1 was trained together with the map of stage 1, which may have wrong poses that later stages correct.
"""

from dataclasses import replace

from lightning_fabric import Fabric

from ace_em.config import AceConfig, PredictConfig
from ace_em.data.particle_stack import ParticleStack
from ace_em.io.plain import Plain
from ace_em.training.autoencoder import AutoEncoder
from ace_em.training.loop import Training


def encoder_training_config(ace: AceConfig, config: PredictConfig) -> AceConfig:
    """The settings of stage 1, changed to train with PIP alone for ``config.steps`` updates."""
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
    """Training of the encoder of ``model``, as an iterator over updates.

    Parameters
    ----------
    model : autoencoder whose decoder is a :class:`~ace_em.models.fixed_volume.FixedVolume`.
    stack : source of the CTFs and the noise levels; its images are not used.
    """
    model.config = encoder_training_config(model.config, config)
    return Training(stack, diameter_px, model.config, fabric, seed, begun, model)
