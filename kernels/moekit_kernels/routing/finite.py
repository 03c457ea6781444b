"""Tokens whose router logits are not all finite: kept out of selection, and marked by NaN gates."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def finite_logits(logits: Float[Tensor, "T E"]) -> tuple[Float[Tensor, "T E"], Bool[Tensor, "T"]]:
    """Sets the rows that are not all finite to zero; returns them and the ``(T,)`` rows kept.

    Selection then works on finite numbers, so every id is in range whatever the input, and nothing is read on the host.
    """
    valid_T = (logits.detach() * 0).sum(-1) == 0  # NaN if one is not finite; on CPU much faster than isfinite().all()
    return torch.where(valid_T.unsqueeze(-1), logits, 0), valid_T


def mark_invalid(gates: Float[Tensor, "T K"], valid: Bool[Tensor, "T"]) -> Float[Tensor, "T K"]:
    """Makes the gates of non-finite tokens NaN: their own output shows it, no other token's does."""
    return torch.where(valid.unsqueeze(-1), gates, torch.nan)
