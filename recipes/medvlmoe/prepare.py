"""What the settings of the training change in a model before it is set up: memory, speed, what is kept still."""

import torch
from torch import nn

from recipes.medvlmoe.baselines.config import has_contrastive_stage, trains_on_pairs
from recipes.medvlmoe.build import Model
from recipes.medvlmoe.config import Config, TrainConfig
from recipes.shared.batch_norm import batch_norms
from recipes.shared.blocks import blocks_of
from recipes.shared.prepare import prepare_encoders


def check_training(config: Config) -> None:
    """Refuses settings of the training that would not be used, or that a contrast of images and texts cannot have.

    Raises:
        ValueError: If a balancing coefficient has no loss, weights of a contrast would be sharded, or adapters of its
            encoders would have to change models.
    """
    model, settings = config.model, config.train
    if settings.balance == "fitted" and settings.balance_weight not in (0.0, TrainConfig().balance_weight):
        raise ValueError(
            f"balance_weight (--balance-weight) is not for balance 'fitted', which has no loss, got "
            f"{settings.balance_weight}: leave it out, or pass --balance switch, cv2 or bias."
        )
    staged = has_contrastive_stage(model.classifier, model.contrast)
    if model.slices is not None and (staged or model.classifier != "medvlmoe"):
        raise ValueError(
            f"slices (--slices) are for the classifier medvlmoe without a contrast, got {model.classifier!r} with "
            f"objective {model.contrast.objective!r}: leave them out."
        )
    if model.slices is not None and (model.cross_attention == "summary" or settings.cache_folder is not None):
        raise ValueError(
            "slices (--slices) do not go with --cross-attention summary, which has one token of an image, nor with "
            "--cache-folder, which keeps images: leave these out (--slice-tokens summary has one token per slice)."
        )
    if settings.strategy == "fsdp2" and (staged or trains_on_pairs(model.classifier)):
        raise ValueError(
            "strategy 'fsdp2' (--strategy) is not for a contrast of images and texts, whose model is called in parts: "
            "use --strategy ddp."
        )
    if staged and model.text_tuning == "lora":
        raise ValueError(
            "lora (--text-tuning) is not for a run that begins with a contrastive stage, whose whole text encoder the "
            "classifier starts from: use full or frozen."
        )


def encoders_of(model: Model) -> list[nn.Module]:
    """Returns the image encoder, and the text encoder where there is one."""
    return [encoder for encoder in (model.image_encoder, model.text_encoder) if encoder is not None]


def prepare_model(model: Model, settings: TrainConfig, device: torch.device) -> None:
    """Applies batch norm, activation checkpointing and compilation; names of weights stay.

    Args:
        model: The model, before any strategy wraps or shards it.
        settings: Of the training.
        device: Where it trains.

    Raises:
        ValueError: If the settings do not go with the device or an encoder.
    """
    prepare_encoders(model, settings, device, encoders=encoders_of(model), compiled=compiled_parts(model))


def compiled_parts(model: Model) -> list[nn.Module]:
    """Returns what ``compile`` compiles: the encoders' blocks, each kind once, and the cross-attention."""
    blocks = [block for encoder in encoders_of(model) for block in blocks_of(encoder)]
    fusion = getattr(model, "fusion", None)
    return blocks if fusion is None else [*blocks, fusion]


def sharded_units(model: Model) -> list[nn.Module]:
    """Returns what FSDP2 gathers one at a time: the encoders' blocks, and the experts' weights.

    The router stays with the rest of the model: it is also called by itself, which a unit cannot be.
    """
    blocks = [block for encoder in encoders_of(model) for block in blocks_of(encoder)]
    bank = getattr(getattr(model, "experts", None), "experts", None)
    return blocks if bank is None else [*blocks, bank]


def kept_in_eval(model: Model, settings: TrainConfig) -> list[nn.Module]:
    """Returns what is in eval mode during training: frozen encoders, which have no dropout, and frozen batch norms."""
    tunings = (model.config.image_tuning, model.config.text_tuning)
    frozen = [
        encoder
        for encoder, tuning in zip((model.image_encoder, model.text_encoder), tunings, strict=True)
        if encoder is not None and tuning == "frozen"
    ]
    return frozen + (batch_norms(model) if settings.batch_norm == "frozen" else [])
