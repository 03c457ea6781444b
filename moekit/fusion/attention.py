"""Scaled dot-product attention behind one signature, so that a layer takes any implementation of it.

Shape letters: B batch, H heads, M queries, N keys, d width of one head.
"""

from typing import NamedTuple, Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from moekit_kernels.autocast import no_autocast

# xFormers loads an additive bias in 16-byte pieces: 8 elements of its narrowest dtype.
XFORMERS_BIAS_ALIGNMENT = 8


@runtime_checkable
class AttentionFunction(Protocol):
    """A function that `BidirectionalCrossAttention` accepts as ``attention``.

    The function computes ``softmax(scale * q kᵀ) v`` for each sample and head, over the keys at which the mask
    is True, with dropout of probability ``dropout_p`` on the attention weights. The layer guarantees
    at least one True per sample, M >= 1, N >= 1 and finite keys and values at the masked positions.
    """

    def __call__(
        self,
        q: Float[Tensor, "B H M d"],
        k: Float[Tensor, "B H N d"],
        v: Float[Tensor, "B H N d"],
        /,
        *,
        mask: Bool[Tensor, "B 1 1 N"] | None,
        dropout_p: float,
        scale: float,
    ) -> Float[Tensor, "B H M d"]:
        """Computes attention."""
        ...


class WeightedAttention(NamedTuple):
    """Result of `weighted_attention`."""

    output: Float[Tensor, "B H M d"]
    """The attended values, in the dtype of ``v``."""
    weights: Float[Tensor, "B H M N"]
    """Attention weights before dropout, float32 (float64 for float64 inputs); each row sums to 1."""


def sdpa_attention(
    q: Float[Tensor, "B H M d"],
    k: Float[Tensor, "B H N d"],
    v: Float[Tensor, "B H N d"],
    /,
    *,
    mask: Bool[Tensor, "B 1 1 N"] | None,
    dropout_p: float,
    scale: float,
) -> Float[Tensor, "B H M d"]:
    """Computes attention with `torch.nn.functional.scaled_dot_product_attention`.

    PyTorch chooses the kernel (flash, memory-efficient, cuDNN or plain) by device, dtype and shape.

    Args:
        q: Queries, shape (B, H, M, d).
        k: Keys, shape (B, H, N, d).
        v: Values, shape (B, H, N, d).
        mask: True where a key may be attended, or None for all of them.
        dropout_p: Probability of dropping an attention weight, in [0, 1). Applied whenever it is positive.
        scale: Factor on ``q kᵀ`` before the softmax.

    Returns:
        Attended values, shape (B, H, M, d).
    """
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout_p, scale=scale)


def weighted_attention(
    q: Float[Tensor, "B H M d"],
    k: Float[Tensor, "B H N d"],
    v: Float[Tensor, "B H N d"],
    /,
    *,
    mask: Bool[Tensor, "B 1 1 N"] | None,
    dropout_p: float,
    scale: float,
) -> WeightedAttention:
    """Computes attention with an explicit softmax and returns the attention weights too.

    Scores, softmax and the weighted sum are computed in float32 (float64 for float64 inputs), also under
    autocast. Memory grows with M·N, so this is slower than `sdpa_attention`; the outputs are the same up
    to rounding.

    Args:
        q: Queries, shape (B, H, M, d).
        k: Keys, shape (B, H, N, d).
        v: Values, shape (B, H, N, d).
        mask: True where a key may be attended, or None for all of them.
        dropout_p: Probability of dropping an attention weight from the output, in [0, 1). The
            returned weights are those before dropout.
        scale: Factor on ``q kᵀ`` before the softmax.

    Returns:
        The attended values and the weights.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    with no_autocast(q.device.type):
        scores = scale * (q.to(dtype) @ k.to(dtype).mT)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        weights = scores.softmax(dim=-1)
        output = F.dropout(weights, dropout_p) @ v.to(dtype)
    return WeightedAttention(output.to(v.dtype), weights)


def xformers_attention(
    q: Float[Tensor, "B H M d"],
    k: Float[Tensor, "B H N d"],
    v: Float[Tensor, "B H N d"],
    /,
    *,
    mask: Bool[Tensor, "B 1 1 N"] | None,
    dropout_p: float,
    scale: float,
) -> Float[Tensor, "B H M d"]:
    """Computes attention with `xformers.ops.memory_efficient_attention`, which takes tensors of shape (B, M, H, d).

    xFormers is optional and is imported by the call. It runs on GPUs only; there is no fallback.

    Args:
        q: Queries, shape (B, H, M, d).
        k: Keys, shape (B, H, N, d).
        v: Values, shape (B, H, N, d).
        mask: True where a key may be attended, or None for all of them.
        dropout_p: Probability of dropping an attention weight, in [0, 1).
        scale: Factor on ``q kᵀ`` before the softmax.

    Returns:
        Attended values, shape (B, H, M, d).

    Raises:
        ImportError: If xFormers cannot be imported.
        RuntimeError: If xFormers has no kernel for this device, dtype or shape.
    """
    try:
        # An optional package: absent where the types are checked.
        from xformers.ops import (  # pyright: ignore[reportMissingImports]
            memory_efficient_attention,  # pyright: ignore[reportUnknownVariableType]
        )
    except ImportError as error:
        raise ImportError(
            f"xformers_attention needs the package xformers, which cannot be imported ({error}); "
            "install it with `pip install xformers`, or pass attention=sdpa_attention"
        ) from error
    bias = None if mask is None else additive_bias(mask, q)
    try:
        attended = cast(
            Tensor,
            memory_efficient_attention(
                *(x.transpose(1, 2) for x in (q, k, v)), attn_bias=bias, p=dropout_p, scale=scale
            ),
        )
    except NotImplementedError as error:
        raise RuntimeError(
            f"xFormers has no kernel for q on device {q.device} with dtype {q.dtype} and shape "
            f"{tuple(q.shape)}; use a GPU and a dtype it supports, or pass attention=sdpa_attention"
        ) from error
    return attended.transpose(1, 2)


def additive_bias(mask: Bool[Tensor, "B 1 1 N"], q: Float[Tensor, "B H M d"]) -> Float[Tensor, "B H M N"]:
    """Converts a key mask to the bias that xFormers adds to the scores: 0 where True, -inf where False.

    Args:
        mask: True where a key may be attended, shape (B, 1, 1, N).
        q: The queries, which give the dtype and the sizes H and M.

    Returns:
        The bias, a view of a buffer of shape (B, 1, 1, N rounded up to 8): xFormers requires the full shape and
        aligned strides.
    """
    batch, num_keys = mask.shape[0], mask.shape[-1]
    padded = -(-num_keys // XFORMERS_BIAS_ALIGNMENT) * XFORMERS_BIAS_ALIGNMENT
    bias = q.new_zeros(batch, 1, 1, padded)[..., :num_keys].masked_fill_(~mask, -torch.inf)
    return bias.expand(batch, q.shape[1], q.shape[2], num_keys)
