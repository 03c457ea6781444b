"""What every router is: a module from router input to a :class:`~moekit.routing.Routing`."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor, nn

from moekit.routing import Routing


class Router(nn.Module, ABC):
    """Decides which experts see which token.

    Attributes:
        num_experts: ``E``.
        top_k: ``K``, experts per token; 0 where a token has no fixed number (expert choice).
        input_ndim: Trailing dimensions of the router input that describe one token: 1 for a feature
            vector, 0 for an integer id.
    """

    num_experts: int
    top_k: int
    input_ndim: int = 1

    @abstractmethod
    def forward(self, x: Shaped[Tensor, "T ..."], mask: Bool[Tensor, "T"] | None = None) -> Routing:
        """Routes ``T`` tokens.

        Args:
            x: Router input, one row per token.
            mask: True for real tokens. Only routers whose decisions depend on other tokens use it.
        """


def finite_logits(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Sets the rows of ``(T, E)`` that are not all finite to zero; returns them and the ``(T,)`` rows kept.

    Selection then sees ordinary numbers, so every id is in range whatever came in, and nothing is read on
    the host.
    """
    valid = logits.isfinite().all(-1)
    return torch.where(valid.unsqueeze(-1), logits, 0), valid


def mark_invalid(gates: Tensor, valid: Tensor) -> Tensor:
    """Makes the gates of non-finite tokens NaN: their own output shows it, no other token's does."""
    return torch.where(valid.unsqueeze(-1), gates, torch.nan)
