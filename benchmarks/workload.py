"""Tokens, weights and a routing, drawn by a seeded generator: the input of every layer under test."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.shapes import Shape

SKEWS = ("uniform", "zipf")
"""How unevenly experts are chosen; ``"zipf 0.5"`` and the like stand for other exponents than 1."""


class Workload(NamedTuple):
    """What is computed.

    Attributes:
        shape: Its sizes.
        skew: How unevenly experts are chosen.
        x: ``(T, D)`` tokens.
        grad: ``(T, D)`` gradient of the output.
        ids: ``(T, K)`` chosen experts, int64.
        gates: ``(T, K)`` float32 (float64 for float64 tokens), each representable in the dtype of ``x``.
        up: ``(E, 2F, D)``, of each expert F gate rows, then F value rows.
        down: ``(E, D, F)``.
    """

    shape: Shape
    skew: str
    x: Tensor
    grad: Tensor
    ids: Tensor
    gates: Tensor
    up: Tensor
    down: Tensor

    def touched(self) -> int:
        """Experts that have a token."""
        return int(self.ids.unique().numel())


def exponent_of(skew: str) -> float:
    """Returns the exponent of Zipf's law: 0 of ``"uniform"``, 1 of ``"zipf"``, 0.5 of ``"zipf 0.5"``.

    Raises:
        ValueError: If ``skew`` is none of these.
    """
    known = {"uniform": 0.0, "zipf": 1.0}
    name, _, number = skew.partition(" ")
    try:
        return known[skew] if skew in known else {"zipf": float(number)}[name]
    except (KeyError, ValueError):
        raise ValueError(
            f"skew must be one of {', '.join(SKEWS)}, or 'zipf' and an exponent, as 'zipf 0.5', got {skew!r}."
        ) from None


def popularity(num_experts: int, skew: str, generator: torch.Generator) -> Tensor:
    """Returns probabilities ``(E,)``: by Zipf's law, ``p ~ 1 / rank ** exponent``, with ranks dealt at random."""
    exponent = exponent_of(skew)
    if exponent == 0:
        return torch.full((num_experts,), 1 / num_experts)
    weight = (torch.randperm(num_experts, generator=generator) + 1.0) ** -exponent
    return weight / weight.sum()


def draw_ids(shape: Shape, skew: str, seed: int = 0) -> Tensor:
    """Draws ``(T, K)`` distinct experts per token, without replacement by their popularity.

    By the Gumbel trick: the K largest of ``log p + Gumbel noise`` are such a draw.

    Raises:
        ValueError: If ``skew`` is unknown.
    """
    generator = torch.Generator().manual_seed(seed)
    log_p = popularity(shape.num_experts, skew, generator).log()
    noise = -torch.empty(shape.tokens, shape.num_experts).exponential_(generator=generator).log_()
    return (log_p + noise).topk(shape.top_k, dim=-1).indices


def draw(shape: Shape, skew: str, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Workload:
    """Draws a workload. Routing and gates are the same on every device; gates are positive and sum to 1."""
    ids = draw_ids(shape, skew, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    gates = torch.rand(shape.tokens, shape.top_k, generator=generator) + 0.1
    gates = (gates / gates.sum(-1, keepdim=True)).to(dtype)
    on_device = torch.Generator(device).manual_seed(seed + 2)

    def normal(*size: int, std: float = 1.0) -> Tensor:
        return torch.empty(*size, device=device, dtype=dtype).normal_(std=std, generator=on_device)

    return Workload(
        shape,
        skew,
        normal(shape.tokens, shape.dim),
        normal(shape.tokens, shape.dim),
        ids.to(device),
        gates.to(device, torch.promote_types(dtype, torch.float32)),
        normal(shape.num_experts, 2 * shape.hidden_dim, shape.dim, std=1 / math.sqrt(shape.dim)),
        normal(shape.num_experts, shape.dim, shape.hidden_dim, std=1 / math.sqrt(shape.hidden_dim)),
    )
