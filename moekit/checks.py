"""Checks of arguments. They read shapes, dtypes and devices only, never a value on a device."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from moekit_kernels.autocast import autocast_is_on


def check_positive(name: str, value: int) -> None:
    """Raises ``ValueError`` unless ``value`` is at least 1."""
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}.")


def check_not_negative(name: str, value: int) -> None:
    """Raises ``ValueError`` if ``value`` is below 0."""
    if value < 0:
        raise ValueError(f"{name} must be at least 0, got {value}.")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises ``ValueError`` unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def check_top_k(top_k: int, num_experts: int) -> None:
    """Raises ``ValueError`` unless ``1 <= top_k <= num_experts``."""
    check_positive("num_experts", num_experts)
    if not 1 <= top_k <= num_experts:
        raise ValueError(f"top_k must be between 1 and num_experts={num_experts}, got {top_k}.")


def check_width(name: str, x: Tensor, width: int) -> None:
    """Raises ``ValueError`` unless the last dimension of ``x`` is ``width``."""
    if x.ndim < 1 or x.shape[-1] != width:
        raise ValueError(f"{name} must have a last dimension of {width}, got shape {tuple(x.shape)}.")


def check_rank(name: str, x: Tensor, rank: int, letters: str) -> None:
    """Raises ``ValueError`` unless ``x`` has ``rank`` dimensions, described by ``letters``."""
    if x.ndim != rank:
        raise ValueError(f"{name} must have shape ({letters}), got shape {tuple(x.shape)}.")


def check_floating(name: str, x: Tensor) -> None:
    """Raises ``ValueError`` unless ``x`` is of a floating dtype."""
    if not x.is_floating_point():
        raise ValueError(f"{name} must be of a floating dtype, got {x.dtype}.")


def check_integer(name: str, x: Tensor) -> None:
    """Raises ``ValueError`` unless ``x`` is of an integer dtype."""
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise ValueError(f"{name} must be of an integer dtype, got {x.dtype}.")


def check_same_device(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Raises ``ValueError`` unless ``x`` and ``other`` are on one device."""
    if x.device != other.device:
        raise ValueError(
            f"{name} must be on the device of {other_name}, {other.device}, got {x.device}. Move one with .to()."
        )


def check_same_dtype(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Raises ``ValueError`` unless the dtypes agree, or autocast will make them agree."""
    if x.dtype == other.dtype:
        return
    if torch.float64 in (x.dtype, other.dtype) or not autocast_is_on(x.device.type):
        raise ValueError(
            f"{name} must have the dtype of {other_name}, {other.dtype}, got {x.dtype}. "
            "Convert one with .to(), or run under torch.autocast."
        )


def check_counts(tokens_per_expert: object, num_experts: int) -> None:
    """Raises ``ValueError`` unless the counts are a tensor ``(E,)``."""
    if isinstance(tokens_per_expert, Tensor):
        got = f"shape {tuple(tokens_per_expert.shape)}"
    else:
        got = f"a {type(tokens_per_expert).__name__}: pass stats.tokens_per_expert"
    if not isinstance(tokens_per_expert, Tensor) or tokens_per_expert.shape != (num_experts,):
        raise ValueError(f"tokens_per_expert must be a tensor of shape ({num_experts},), got {got}.")


def check_fits_layer(name: str, x: Tensor, layer: nn.Module) -> None:
    """Raises ``ValueError`` unless ``x`` has the device and dtype of the weight of a layer of torch.

    Nothing is checked of what replaced the layer or its ``forward``: FSDP, offloading and quantisers keep weights on
    other devices or in other dtypes until they are called.
    """
    if type(layer) in (nn.Linear, nn.Conv2d) and "forward" not in layer.__dict__:
        weight = cast(Tensor, layer.weight)
        check_same_device(name, x, "the parameters", weight)
        check_same_dtype(name, x, "the parameters", weight)


def check_mask(name: str, mask: Tensor, shape: Sequence[int]) -> None:
    """Raises ``ValueError`` unless ``mask`` is boolean and of ``shape``."""
    if mask.dtype != torch.bool or tuple(mask.shape) != tuple(shape):
        raise ValueError(
            f"{name} must be a bool tensor of shape {tuple(shape)} (True marks a real token), "
            f"got {mask.dtype} of shape {tuple(mask.shape)}."
        )
