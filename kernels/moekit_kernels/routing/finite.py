"""Tokens whose router logits are not all finite: kept out of selection, and marked by NaN gates."""

import math
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from moekit_kernels.eager import can_read

# So few numbers are added up in Python sooner than by tensor operations.
_FEW = 128


class FiniteLogits(NamedTuple):
    """Router logits without those of non-finite tokens.

    Attributes:
        logits: ``(T, E)``, zero for a token whose logits are not all finite.
        valid: ``(T,)``, False for such a token.
        all_valid: Whether all tokens are known to be valid; False where that was not read.
    """

    logits: Float[Tensor, "T E"]
    valid: Bool[Tensor, "T"]
    all_valid: bool

    def mark(self, gates: Float[Tensor, "T K"]) -> Float[Tensor, "T K"]:
        """Makes the gates of non-finite tokens NaN: their own output shows it, no other token's does."""
        return gates if self.all_valid else torch.where(self.valid.unsqueeze(-1), gates, torch.nan)

    def clear(self, probs: Float[Tensor, "T E"]) -> Float[Tensor, "T E"]:
        """Makes the probabilities of non-finite tokens zero."""
        return probs if self.all_valid else torch.where(self.valid.unsqueeze(-1), probs, 0)


def finite_logits(logits: Float[Tensor, "T E"]) -> FiniteLogits:
    """Sets the rows that are not all finite to zero.

    Selection then works on finite numbers, so every id is in range whatever the input. Nothing is read on the host of a
    GPU, nor in compiled or transformed code. In plain eager code on CPU one number is read: a finite sum has finite
    terms, and then the logits are returned as they are.
    """
    if can_read(logits) and math.isfinite(_sum(logits)):
        return FiniteLogits(logits, torch.ones(logits.shape[0], dtype=torch.bool), all_valid=True)
    valid_T = (logits.detach() * 0).sum(-1) == 0  # NaN if one is not finite; on CPU much faster than isfinite().all()
    return FiniteLogits(torch.where(valid_T.unsqueeze(-1), logits, 0), valid_T, all_valid=False)


def _sum(logits: Tensor) -> float:
    if logits.numel() <= _FEW:
        return sum(map(sum, cast(list[list[float]], logits.tolist())), 0.0)
    return logits.detach().sum().item()
