"""What the settings of the training change in a model's encoders before it is set up: memory, speed, batch norms."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from recipes.shared.batch_norm import check_batch_norm, synchronised
from recipes.shared.settings import TrainSettings


def prepare_encoders(
    model: Any,
    settings: TrainSettings,
    device: torch.device,
    *,
    encoders: Iterable[Any],
    compiled: Iterable[nn.Module],
) -> None:
    """Applies batch norm, activation checkpointing and compilation; names of weights stay.

    Args:
        model: The model with its ``image_encoder``, before any strategy wraps or shards it.
        settings: Of the training.
        device: Where it trains.
        encoders: Those whose activations backward needs.
        compiled: What ``compile`` compiles, such as the encoders' blocks.

    Raises:
        ValueError: If the settings do not go with the device or an encoder.
    """
    parts, checkpointing = list(compiled), settings.activation_checkpointing
    check_batch_norm(model.image_encoder, settings.batch_norm, device=device, checkpointing=checkpointing)
    if settings.batch_norm == "sync":
        model.image_encoder = synchronised(model.image_encoder)
    if checkpointing:
        for encoder in encoders:
            encoder.checkpoint_activations()
    if settings.compile:
        for part in parts:
            # The forward alone: what a strategy does before and after a block stays outside of the graph.
            part.forward = torch.compile(part.forward)
