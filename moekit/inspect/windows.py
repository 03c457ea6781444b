"""Windows of time: rows of sums over consecutive calls, which are added up in pairs to stay few."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

COLUMNS = (
    "calls",
    "tokens",
    "nonfinite_tokens",
    "unrouted_tokens",
    "entropy_tokens",
    "entropy_sum",
    "confidence_tokens",
    "confidence_sum",
)
"""Columns in front of the loads and drops of the experts. Entropy and confidence have tokens of their own: a router
may return no probabilities."""


def halved(rows: Float[Tensor, "W columns"]) -> Float[Tensor, "half columns"]:
    """Adds up neighbours in pairs; an odd last row stays alone."""
    even = F.pad(rows, (0, 0, 0, rows.shape[0] % 2))
    return even.reshape(-1, 2, rows.shape[1]).sum(1)


def joined(
    first: Float[Tensor, "first columns"], second: Float[Tensor, "second columns"], most: int
) -> tuple[Float[Tensor, "W columns"], int]:
    """Puts rows one after the other, in at most ``most`` rows.

    Returns:
        The rows, and the number of rows that were added up into one.
    """
    rows, times = torch.cat([first, second]), 1
    while rows.shape[0] > most:
        rows, times = halved(rows), 2 * times
    return rows, times
