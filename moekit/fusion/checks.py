"""Checks of the tokens that the fusion layers get; they read shapes, dtypes and devices only."""

import torch
from torch import Tensor

from moekit.checks import check_floating, check_rank, check_width


def check_tokens(name: str, tokens: Tensor, width: int | None = None) -> None:
    """Raises ``ValueError`` unless ``tokens`` is floating and of shape (batch, sequence, ``width``)."""
    check_rank(name, tokens, 3, f"batch, sequence, {'width' if width is None else width}")
    if width is not None:
        check_width(name, tokens, width)
    check_floating(name, tokens)


def check_compute_dtype(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Raises ``ValueError`` unless the dtypes agree, or autocast will make them agree."""
    # Autocast leaves float64 alone.
    casts = autocast_is_on(x.device.type) and torch.float64 not in (x.dtype, other.dtype)
    if x.dtype != other.dtype and not casts:
        raise ValueError(
            f"{name} must have the dtype of {other_name}, {other.dtype}, got {x.dtype}. "
            "Convert one with .to(), or run under torch.autocast."
        )


def autocast_is_on(device_type: str) -> bool:
    """Whether autocast casts operations on this kind of device now; never on the meta device."""
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
