"""Batch norm in a training on several devices: each device's own, synchronised, or frozen."""

import torch
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from recipes.shared.settings import BatchNorm


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """Returns the batch norms of a model."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def check_batch_norm(model: nn.Module, kind: BatchNorm, *, device: torch.device, checkpointing: bool) -> None:
    """Refuses batch norms that would not do what the settings say; a model without any is never refused.

    Args:
        model: The model.
        kind: What is asked for.
        device: Where it trains.
        checkpointing: Whether activations are computed twice.

    Raises:
        ValueError: If synchronised ones would be on the CPU, or running statistics would be counted twice.
    """
    if not batch_norms(model):
        return
    if kind == "sync" and device.type == "cpu":
        raise ValueError(
            "batch_norm 'sync' (--batch-norm) needs a GPU: on the CPU use --batch-norm frozen, or an --image-encoder "
            "without batch norm, such as a ViT."
        )
    if checkpointing and kind != "frozen":
        raise ValueError(
            "activation_checkpointing (--activation-checkpointing) runs layers twice, so batch norms would count every "
            "batch twice: use --batch-norm frozen, or an --image-encoder without batch norm, such as a ViT."
        )


def synchronised(encoder: nn.Module) -> nn.Module:
    """Returns a module with synchronised batch norms in place of its own; weights and names stay."""
    return convert_sync_batchnorm(encoder)
