"""What the settings of the training change in a model before it is set up."""

import torch
from torch import nn

from recipes.medmoe.config import TrainConfig
from recipes.medmoe.model import MedMoE
from recipes.shared.batch_norm import batch_norms
from recipes.shared.blocks import blocks_of
from recipes.shared.prepare import prepare_encoders


def prepare_model(model: MedMoE, settings: TrainConfig, device: torch.device) -> None:
    """Applies the settings to the encoders; see :func:`~recipes.shared.prepare.prepare_encoders`.

    The experts are left as they are: they read how many images each of them has, and their batch norms count those.

    Raises:
        ValueError: If the settings do not go with the device or an encoder.
    """
    encoders = [model.image_encoder, model.text_encoder]
    # Backward does not pass through frozen ones.
    trained = [encoder for encoder in encoders if any(weight.requires_grad for weight in encoder.parameters())]
    blocks = [block for encoder in encoders for block in blocks_of(encoder)]
    prepare_encoders(model, settings, device, encoders=trained, compiled=blocks)


def kept_in_eval(model: MedMoE, settings: TrainConfig) -> list[nn.Module]:
    """Returns what is in eval mode during training, besides a frozen text encoder: frozen batch norms."""
    return batch_norms(model.image_encoder) if settings.batch_norm == "frozen" else []
