"""Starts the routing kernels: rows of a program, and the number of programs."""

from typing import Any, NamedTuple

from torch import Tensor

from moekit_kernels.routing.options import RouteOptions
from moekit_kernels.routing.outputs import RouteGradients, RouteOutputs, outputs, sum_arguments
from moekit_kernels.runtime import current_target, launch
from moekit_kernels.targets import Target

# Warps per multiprocessor: enough to hide latency, few enough for the partial sums to stay small.
_WARPS_PER_PROCESSOR = 16


class Blocks(NamedTuple):
    """The rows of one program at a time.

    Attributes:
        width: Columns of the tile: the experts, up to the next power of two.
        rows: Rows of the tile.
        num_warps: So many that a thread of the forward holds 8 logits, or 16 from 128 experts on; up to 512
            no row spans two warps.
    """

    width: int
    rows: int
    num_warps: int


def power_of_two(size: int) -> int:
    """Returns the least power of two that is not below ``size``."""
    return 1 << (size - 1).bit_length()


def blocks(num_experts: int) -> Blocks:
    """Returns the tile for a number of experts."""
    width = power_of_two(num_experts)
    if width < 128:
        return Blocks(width, 1024 // width, 4)
    if width == 128:  # with 8 rows or 4 warps, code of some target spills registers under Triton 3.6 or 3.8
        return Blocks(width, 4, 1)
    return Blocks(width, max(512 // width, 1), max(width // 512, 1))


def programs_of(tile: Blocks, num_tokens: int, target: Target) -> int:
    """Returns how many programs share the tokens; one at least, which writes the sums of no tokens."""
    most = _WARPS_PER_PROCESSOR // tile.num_warps * target.processors
    return max(min(-(-num_tokens // tile.rows), most), 1)


def backward_warps(tile: Blocks) -> int:
    """Returns the warps of the backward kernel: twice those of the forward where a row spans warps.

    With 16 logits a thread, its code for 4096 experts spills registers on sm_90 under Triton 3.8. The forward, which
    needs more registers, has to stay at 8 warps: 16 leave it 128 registers a thread, too few on sm_100.
    """
    return 2 * tile.num_warps if tile.width > 512 else tile.num_warps


def decision_arguments(options: RouteOptions, mask: Tensor | None) -> dict[str, Any]:
    """Returns the arguments of a forward kernel that describe the decision."""
    top_k, scoring, renormalize, scaling_factor, selection_bias, num_groups, topk_groups, group_score = options
    return {
        "selection_bias": None if selection_bias is None else selection_bias.contiguous(),
        "mask": mask,
        "stride_mask": 0 if mask is None else mask.stride(0),
        "scaling_factor": float(scaling_factor),
        "TOP_K": top_k,
        "KP": power_of_two(top_k),
        "SCORING": scoring,
        "RENORMALIZE": renormalize or scoring == "topk_softmax",
        "GROUPS": num_groups or 0,
        "TOP_GROUPS": topk_groups or 0,
        "GROUP_SCORE": group_score,
    }


def forward(
    logits: Tensor, options: RouteOptions, mask: Tensor | None, with_logits: bool = True, with_probs: bool = True
) -> RouteOutputs:
    """Routes the ``logits (T, E)``; the sums are over the tokens in the ``mask (T,)``, or all.

    Raises:
        ValueError: If no kernel runs on the device.
    """
    target = current_target(logits.device)
    from moekit_kernels.routing import kernel

    num_tokens, num_experts = logits.shape
    tile = blocks(num_experts)
    programs = programs_of(tile, num_tokens, target)
    out = outputs(logits, num_tokens, num_experts, options.top_k, with_logits, with_probs)
    arguments: dict[str, Any] = {
        "logits": logits,
        **out.kernel_arguments(),
        **decision_arguments(options, mask),
        **sum_arguments(logits.device, programs, num_experts, tile.width),
        "num_tokens": num_tokens,
        "stride_t": logits.stride(0),
        "stride_e": logits.stride(1),
        "E": num_experts,
        "EP": tile.width,
        "ROWS": tile.rows,
    }
    launch(kernel.route_fwd_kernel, (programs,), arguments, num_warps=tile.num_warps, num_stages=1)
    return out


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
    arguments: dict[str, Any] = {
        **grads.kernel_arguments(),
        "logits": logits,
        "ids": ids,
        "mask": mask,
        "d_logits": d_logits,
        "num_tokens": num_tokens,
        "stride_t": logits.stride(0),
        "stride_e": logits.stride(1),
        "stride_mask": 0 if mask is None else mask.stride(0),
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
