"""Queries, keys and values of one stream of tokens.

Shape letters: B batch, S sequence, W width of the tokens, D common width, H heads, d width of one head.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moekit.init import reset_xavier


class ProjectedTokens(NamedTuple):
    """Result of `TokenProjections`."""

    query: Float[Tensor, "B H S d"]
    """The tokens as queries."""
    key: Float[Tensor, "B H S d"]
    """The tokens as keys."""
    value: Float[Tensor, "B H S d"]
    """The tokens as values."""


class TokenProjections(nn.Module):
    """The matrices W_Q, W_K and W_V of one stream.

    Args:
        width: Width W of the tokens.
        dim: Common width D.
        num_heads: Number of heads H, a divisor of ``dim``.
        bias: Whether the projections add a bias.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
    """

    def __init__(
        self,
        width: int,
        dim: int,
        num_heads: int,
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, dim, bias=bias, device=device, dtype=dtype)
        self.key = nn.Linear(width, dim, bias=bias, device=device, dtype=dtype)
        self.value = nn.Linear(width, dim, bias=bias, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the projections anew: Xavier-uniform weights, zero biases."""
        for projection in (self.query, self.key, self.value):
            reset_xavier(projection, nn.Linear)

    def forward(self, tokens: Float[Tensor, "B S W"]) -> ProjectedTokens:
        """Projects the tokens and splits the result into heads."""
        return ProjectedTokens(
            self._split_heads(self.query(tokens)),
            self._split_heads(self.key(tokens)),
            self._split_heads(self.value(tokens)),
        )

    def _split_heads(self, x: Float[Tensor, "B S D"]) -> Float[Tensor, "B H S d"]:
        batch, sequence, dim = x.shape
        return x.view(batch, sequence, self.num_heads, dim // self.num_heads).transpose(1, 2)

    def extra_repr(self) -> str:
        """Shows the number of heads."""
        return f"num_heads={self.num_heads}"
