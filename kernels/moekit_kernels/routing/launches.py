"""Starts the routing kernels: outputs, rows of a program, and the number of programs."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from moekit_kernels.routing.options import RouteOptions
from moekit_kernels.runtime import current_target, launch

# Warps per multiprocessor: enough to hide latency, few enough for the partial sums to stay small.
_WARPS_PER_PROCESSOR = 16
_BLOCK_PARTIALS = 16


class RouteOutputs(NamedTuple):
    """What the forward kernels write; fields as in ``Routed`` and ``RoutingSums``.

    Attributes:
        gates: ``(T, K)`` float32, and so are the other numbers.
        ids: ``(T, K)`` int64.
        probs: ``(T, E)``.
        valid: ``(T,)`` bool.
        tokens_per_expert: ``(E,)`` int64.
        prob_sum: ``(E,)``.
        gate_sum: ``(E,)``.
        logsumexp_sq_sum: ``()``.
        entropy_sum: ``()``.
    """

    gates: Tensor
    ids: Tensor
    probs: Tensor
    valid: Tensor
    tokens_per_expert: Tensor
    prob_sum: Tensor
    gate_sum: Tensor
    logsumexp_sq_sum: Tensor
    entropy_sum: Tensor


class RouteGradients(NamedTuple):
    """Gradients of the float fields of :class:`RouteOutputs`, in their shapes; None counts as zero."""

    gates: Tensor | None
    probs: Tensor | None
    prob_sum: Tensor | None
    gate_sum: Tensor | None
    logsumexp_sq_sum: Tensor | None
    entropy_sum: Tensor | None


class Blocks(NamedTuple):
    """The rows of one program at a time.

    Attributes:
        width: Columns of the tile: the experts, up to the next power of two.
        rows: Rows of the tile.
        num_warps: So many that a thread of the forward holds 8 logits, 4 of 128 experts, or 16 of more; up to 512
            no row spans two warps.
    """

    width: int
    rows: int
    num_warps: int


def blocks(num_experts: int) -> Blocks:
    """Returns the tile for a number of experts."""
    width = 1 << (num_experts - 1).bit_length()
    if width < 128:
        return Blocks(width, 1024 // width, 4)
    if width == 128:  # with 8 rows, code for sm_100 spills registers under Triton 3.8
        return Blocks(width, 4, 4)
    return Blocks(width, max(512 // width, 1), max(width // 512, 1))


def backward_warps(tile: Blocks) -> int:
    """Returns the warps of the backward kernel: twice those of the forward where a row spans warps.

    With 16 logits a thread, its code for 4096 experts spills registers on sm_90 under Triton 3.8. The forward, which
    needs more registers, has to stay at 8 warps: 16 leave it 128 registers a thread, too few on sm_100.
    """
    return 2 * tile.num_warps if tile.width > 512 else tile.num_warps


def forward(logits: Tensor, options: RouteOptions, mask: Tensor | None) -> RouteOutputs:
    """Routes the ``logits (T, E)``; the sums are over the tokens in the ``mask (T,)``, or all.

    Raises:
        ValueError: If no kernel runs on the device.
    """
    target = current_target(logits.device)
    from moekit_kernels.routing import kernel

    num_tokens, num_experts = logits.shape
    tile = blocks(num_experts)
    programs = min(-(-num_tokens // tile.rows), _WARPS_PER_PROCESSOR // tile.num_warps * target.processors)
    top_k, scoring, renormalize, scaling_factor, selection_bias, num_groups, topk_groups = options
    out = outputs(logits, top_k)
    partials = {
        "counts": logits.new_empty(programs, num_experts, dtype=torch.int32),
        "sums": logits.new_empty(programs, 2, num_experts, dtype=torch.float32),
        "scalars": logits.new_empty(programs, 2, dtype=torch.float32),
    }
    arguments: dict[str, Any] = {
        "logits": logits,
        "selection_bias": None if selection_bias is None else selection_bias.contiguous(),
        "mask": mask,
        "gates": out.gates,
        "ids": out.ids,
        "probs": out.probs,
        "valid_rows": out.valid,
        **partials,
        "num_tokens": num_tokens,
        "stride_t": logits.stride(0),
        "stride_e": logits.stride(1),
        "stride_mask": 0 if mask is None else mask.stride(0),
        "scaling_factor": float(scaling_factor),
        "E": num_experts,
        "EP": tile.width,
        "ROWS": tile.rows,
        "TOP_K": top_k,
        "KP": 1 << (top_k - 1).bit_length(),
        "SCORING": scoring,
        "RENORMALIZE": renormalize or scoring == "topk_softmax",
        "GROUPS": num_groups or 0,
        "TOP_GROUPS": topk_groups or 0,
    }
    launch(kernel.route_fwd_kernel, (programs,), arguments, num_warps=tile.num_warps, num_stages=1)
    block_e = min(tile.width, 32)  # with 64, code for sm_100 spills registers under Triton 3.8
    arguments = {
        **partials,
        "tokens_per_expert": out.tokens_per_expert,
        "prob_sum": out.prob_sum,
        "gate_sum": out.gate_sum,
        "logsumexp_sq_sum": out.logsumexp_sq_sum,
        "entropy_sum": out.entropy_sum,
        "num_partials": programs,
        "E": num_experts,
        "BLOCK_E": block_e,
        "BLOCK_P": _BLOCK_PARTIALS,
    }
    launch(kernel.route_sums_fwd_kernel, (-(-num_experts // block_e),), arguments, num_warps=4, num_stages=1)
    return out


def outputs(logits: Tensor, top_k: int) -> RouteOutputs:
    """Returns uninitialised outputs for :func:`forward` to write."""
    num_tokens, num_experts = logits.shape
    float32 = torch.float32
    return RouteOutputs(
        gates=logits.new_empty(num_tokens, top_k, dtype=float32),
        ids=logits.new_empty(num_tokens, top_k, dtype=torch.int64),
        probs=logits.new_empty(num_tokens, num_experts, dtype=float32),
        valid=logits.new_empty(num_tokens, dtype=torch.bool),
        tokens_per_expert=logits.new_empty(num_experts, dtype=torch.int64),
        prob_sum=logits.new_empty(num_experts, dtype=float32),
        gate_sum=logits.new_empty(num_experts, dtype=float32),
        logsumexp_sq_sum=logits.new_empty((), dtype=float32),
        entropy_sum=logits.new_empty((), dtype=float32),
    )


def backward(
    grads: RouteGradients,
    logits: Tensor,
    ids: Tensor,
    mask: Tensor | None,
    options: RouteOptions,
) -> Tensor:
    """Returns the gradient of ``logits``, contiguous and of their dtype.

    Raises:
        ValueError: If no kernel runs on the device.
    """
    current_target(logits.device)
    from moekit_kernels.routing import kernel

    num_tokens, num_experts = logits.shape
    tile = blocks(num_experts)
    d_logits = logits.new_empty(num_tokens, num_experts)
    d_probs = grads.probs  # the largest: read by its strides, where the others are copied if they are not contiguous
    others = grads._replace(probs=None)._asdict()
    arguments: dict[str, Any] = {
        **{f"d_{name}": None if grad is None else grad.contiguous() for name, grad in others.items()},
        "d_probs": d_probs,
        "logits": logits,
        "ids": ids,
        "mask": mask,
        "d_logits": d_logits,
        "num_tokens": num_tokens,
        "stride_t": logits.stride(0),
        "stride_e": logits.stride(1),
        "stride_mask": 0 if mask is None else mask.stride(0),
        "stride_probs_t": 0 if d_probs is None else d_probs.stride(0),
        "stride_probs_e": 0 if d_probs is None else d_probs.stride(1),
        "scaling_factor": float(options.scaling_factor),
        "E": num_experts,
        "EP": tile.width,
        "ROWS": tile.rows,
        "TOP_K": options.top_k,
        "SCORING": options.scoring,
        "RENORMALIZE": options.renormalize or options.scoring == "topk_softmax",
    }
    grid = (-(-num_tokens // tile.rows),)
    launch(kernel.route_bwd_kernel, grid, arguments, num_warps=backward_warps(tile), num_stages=1)
    return d_logits
