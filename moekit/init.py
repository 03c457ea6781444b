"""Initial weights."""

import math
from typing import TypeVar

import torch
from torch import Tensor, nn

Layer = TypeVar("Layer", bound=nn.Module)


def scaled_normal_(weight: Tensor, fan_in: int, scale: float, generator: torch.Generator | None = None) -> None:
    """Fills ``weight`` from a normal of variance ``scale / fan_in``, truncated at two standard deviations.

    The fan-in is an argument because that of stacked expert weights ``(E, out, in)`` cannot be read off their shape.

    Raises:
        ValueError: If ``scale`` is negative.
    """
    if scale < 0:
        raise ValueError(f"init_scale must be at least 0, got {scale}.")
    std = math.sqrt(scale / max(fan_in, 1))
    if std == 0:
        nn.init.zeros_(weight)
    else:
        nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std, generator=generator)


def reset_parameters(module: nn.Module) -> None:
    """Draws the weights of ``module`` anew.

    Calls its ``reset_parameters``; where it has none (a wrapper), those of the modules in it.
    """
    own = getattr(module, "reset_parameters", None)
    if callable(own):
        own()
        return
    for child in module.children():
        reset_parameters(child)


def layer_in(slot: nn.Module, kind: type[Layer]) -> Layer | None:
    """Returns the layer that was built in a slot: what stands there, or what a wrapper there holds.

    The first of its class: a wrapper holds what it replaces before what it adds, such as the adapters of LoRA, which
    are layers too and are left as they are.

    Args:
        slot: What stands in the slot.
        kind: Class of the layer that was built.

    Returns:
        The layer; None where another kind of module took its place.
    """
    return next((module for module in slot.modules() if isinstance(module, kind)), None)


def reset_layer(slot: nn.Module, kind: type[nn.Module]) -> None:
    """Draws the layer that was built in a slot anew by its own rule, or what took its place; see :func:`layer_in`."""
    layer = layer_in(slot, kind)
    reset_parameters(slot if layer is None else layer)


def reset_xavier(slot: nn.Module, kind: type[nn.Linear] | type[nn.Conv2d]) -> None:
    """Draws the layer that was built in a slot anew: Xavier-uniform weight, zero bias; see :func:`layer_in`.

    What took its place is drawn by its own rule.
    """
    layer = layer_in(slot, kind)
    if layer is None:
        reset_parameters(slot)
        return
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
