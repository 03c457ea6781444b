"""Starts the routing kernels that have the gate's linear layer in them: parts of operands, programs, buffers."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from moekit_kernels.arrivals import arrival_counters
from moekit_kernels.routing.blocks_linear import backward_blocks, forward_blocks, gradient_blocks
from moekit_kernels.routing.launches import decision_arguments
from moekit_kernels.routing.options import RouteOptions
from moekit_kernels.routing.outputs import RouteGradients, RouteOutputs, outputs, sum_arguments
from moekit_kernels.runtime import current_target, launch
from moekit_kernels.targets import Target

# The parts of bfloat16 that add up to a number of a dtype.
_PARTS = {torch.bfloat16: 1, torch.float16: 2, torch.float32: 3}

# Which products of parts a result of a dtype needs: those whose indices add up to no more. A part has 8 bits.
_ORDER = {torch.bfloat16: 1, torch.float16: 2, torch.float32: 3}


def parts(first: torch.dtype, second: torch.dtype) -> tuple[int, int]:
    """Returns the parts of two operands: one of each if tensor cores multiply them as they are."""
    if first == second and first.itemsize == 2:
        return 1, 1
    return _PARTS[first], _PARTS[second]


def contiguous_operands(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns the operands as the kernels read them: rows of ``x`` in one piece, the others whole."""
    if x.stride(1) != 1:
        x = x.contiguous()
    return x, weight.contiguous(), None if bias is None else bias.contiguous()


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    options: RouteOptions,
    mask: Tensor | None,
    with_logits: bool,
    with_probs: bool,
    memory: Mapping[str, Tensor] = MappingProxyType({}),
) -> RouteOutputs:
    """Routes tokens ``x (T, D)`` by ``x W^T + bias`` of ``weight (E, D)``; see :func:`launches.forward`.

    Gates, ids, logits and valid rows are written to ``memory``, if they are there.

    Raises:
        ValueError: If no kernel runs on the device.
    """
    target = current_target(x.device)
    from moekit_kernels.routing import kernel_linear

    x, weight, bias = contiguous_operands(x, weight, bias)
    num_tokens, dim = x.shape
    num_experts = weight.shape[0]
    x_parts, w_parts = parts(x.dtype, weight.dtype)
    tile = forward_blocks(num_tokens, dim, num_experts, target, x_parts, w_parts)
    tiles = max(-(-num_tokens // tile.rows), 1)
    programs = tiles if tile.splits > 1 else min(tiles, 2 * target.processors)
    out = outputs(x, num_tokens, num_experts, options.top_k, with_logits, with_probs, memory)
    scratch = tile.splits == 1 and not with_logits
    if tile.splits == 1 and with_logits:
        partial = out.logits
    else:
        size = (programs, tile.rows) if scratch else (tile.splits, num_tokens)
        partial = torch.empty(*size, num_experts, dtype=torch.float32, device=x.device)
    arguments: dict[str, Any] = {
        "x": x,
        "weight": weight,
        "bias": bias,
        **out.kernel_arguments(),
        **decision_arguments(options, mask),
        **sum_arguments(x.device, programs, num_experts, tile.width, tiles if tile.splits > 1 else 0),
        "parts": partial,
        "num_tokens": num_tokens,
        "stride_x": x.stride(0),
        "DIM": dim,
        "E": num_experts,
        "EP": tile.width,
        "ROWS": tile.rows,
        "SUB_ROWS": tile.sub_rows,
        "BLOCK_K": tile.depth,
        "X_PARTS": x_parts,
        "W_PARTS": w_parts,
        "SPLITS": tile.splits,
        "SCRATCH": scratch,
    }
    grid = (programs * tile.splits,)
    launch(
        kernel_linear.route_linear_fwd_kernel,
        grid,
        arguments,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    return out


class LinearGradients(NamedTuple):
    """Gradients of the operands of the linear layer; None where none is needed."""

    x: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


def backward(
    grads: RouteGradients,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    logits: Tensor,
    valid: Tensor,
    ids: Tensor,
    mask: Tensor | None,
    options: RouteOptions,
    needs: tuple[bool, bool, bool],
) -> LinearGradients:
    """Returns the gradients of ``x``, ``weight`` and ``bias``, each of its dtype, where ``needs`` says so.

    Args:
        grads: Gradients of the outputs of :func:`forward`.
        x: As there.
        weight: As there.
        bias: As there.
        logits: ``(T, E)``, the finite logits that it wrote.
        valid: ``(T,)``, the rows that were finite.
        ids: ``(T, K)``, the choice.
        mask: As there.
        options: As there.
        needs: Whether each gradient is needed.

    Raises:
        ValueError: If no kernel runs on the device.
    """
    target = current_target(x.device)
    from moekit_kernels.routing import kernel_linear_backward

    x, weight, bias = contiguous_operands(x, weight, bias)
    num_tokens, dim = x.shape
    num_experts = weight.shape[0]
    tile = backward_blocks(num_tokens, dim, num_experts, target, _PARTS[x.dtype])
    blocks = -(-dim // tile.columns)
    d_x = x.new_empty(num_tokens, dim) if needs[0] else None
    d_weight = weight.new_empty(num_experts, dim) if needs[1] else None
    d_bias = bias.new_empty(num_experts) if bias is not None and needs[2] else None
    x_order, w_order = _ORDER[x.dtype], _ORDER[weight.dtype]
    # Of three parts, which float32 has, no product needs a fourth.
    grad_parts = min(max(x_order, w_order) + 1, 3)
    has_products = d_x is not None or d_weight is not None
    grad = x.new_empty(grad_parts, num_tokens, num_experts, dtype=torch.bfloat16) if has_products else None
    gradients: dict[str, Any] = {
        **grads.kernel_arguments(),
        "logits": logits,
        "valid_rows": valid,
        "ids": ids,
        "mask": mask,
        "grad_parts": grad,
        "num_tokens": num_tokens,
        "stride_mask": 0 if mask is None else mask.stride(0),
        "scaling_factor": float(options.scaling_factor),
        "E": num_experts,
        "EP": tile.width,
        "PARTS": grad_parts,
        "TOP_K": options.top_k,
        "SCORING": options.scoring,
        "RENORMALIZE": options.renormalize or options.scoring == "topk_softmax",
    }
    if tile.apart:
        _logit_gradients(gradients, d_bias, target)
        if not has_products:
            return LinearGradients(d_x, d_weight, d_bias)
    partials = bias_partials = None
    if tile.chunks > 1 and d_weight is not None:
        partials = x.new_empty(tile.chunks, blocks, tile.columns, tile.width, dtype=torch.float32)
    if d_bias is not None and not tile.apart:
        bias_partials = x.new_empty(tile.chunks, tile.width, dtype=torch.float32)
    arguments: dict[str, Any] = {
        **gradients,
        "x": x,
        "weight": weight,
        "d_x": d_x,
        "d_weight": d_weight,
        "d_bias": None if tile.apart else d_bias,
        "partials": partials,
        "bias_partials": bias_partials,
        "counters": arrival_counters(x.device, blocks + 1),
        "rows_per_chunk": tile.rows_per_chunk,
        "stride_x": x.stride(0),
        "DIM": dim,
        "ROWS": tile.rows,
        "SUB_ROWS": tile.sub_rows,
        "BLOCK_D": tile.columns,
        "SLICES": tile.slices,
        "CHUNKS": tile.chunks,
        "X_PARTS": _PARTS[x.dtype],
        "W_PARTS": _PARTS[weight.dtype],
        "X_ORDER": x_order,
        "W_ORDER": w_order,
        "APART": tile.apart,
    }
    launch(
        kernel_linear_backward.route_linear_bwd_kernel,
        (tile.slices * tile.chunks,),
        arguments,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    return LinearGradients(d_x, d_weight, d_bias)


def _logit_gradients(arguments: dict[str, Any], d_bias: Tensor | None, target: Target) -> None:
    """Starts the kernel that writes the gradient of the logits, and that of the bias, if any."""
    from moekit_kernels.routing import kernel_linear_gradient

    logits: Tensor = arguments["logits"]
    num_tokens, num_experts = logits.shape
    tile = gradient_blocks(num_tokens, num_experts, target)
    bias_partials = None if d_bias is None else logits.new_empty(tile.programs, arguments["EP"])
    arguments = {
        **arguments,
        "d_bias": d_bias,
        "bias_partials": bias_partials,
        "counters": arrival_counters(logits.device, 1),
        "SUB_ROWS": tile.rows,
    }
    launch(
        kernel_linear_gradient.route_linear_grad_kernel,
        (tile.programs,),
        arguments,
        num_warps=tile.num_warps,
        num_stages=1,
    )
