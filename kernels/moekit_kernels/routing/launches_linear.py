"""Starts the routing kernels that have the gate's linear layer in them: tiles, parts of operands, programs."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from moekit_kernels.arrivals import arrival_counters
from moekit_kernels.routing.launches import decision_arguments, power_of_two
from moekit_kernels.routing.options import RouteOptions
from moekit_kernels.routing.outputs import RouteGradients, RouteOutputs, outputs, sum_arguments
from moekit_kernels.runtime import current_target, launch
from moekit_kernels.targets import Target

# The parts of bfloat16 that add up to a number of a dtype.
_PARTS = {torch.bfloat16: 1, torch.float16: 2, torch.float32: 3}

# Which products of parts a result of a dtype needs: those whose indices add up to no more. A part has 8 bits.
_ORDER = {torch.bfloat16: 1, torch.float16: 2, torch.float32: 3}


class LinearBlocks(NamedTuple):
    """The tile of a program of the forward kernel.

    Attributes:
        width: The experts, up to the next power of two; at least 16, which matrix instructions need.
        rows: Tokens of a tile.
        sub_rows: Tokens that are decided about at a time.
        depth: Columns of x of one step.
        num_warps: Warps of a program.
        num_stages: Steps in flight.
        splits: Programs that share a tile.
    """

    width: int
    rows: int
    sub_rows: int
    depth: int
    num_warps: int
    num_stages: int
    splits: int


# Values of the weight's tile, which every step splits in registers, and the least depth of a matrix instruction.
_WEIGHT_TILE = 4096
_LEAST_DEPTH = 16


def forward_blocks(num_tokens: int, dim: int, num_experts: int, target: Target, itemsize: int = 2) -> LinearBlocks:
    """Returns the tile of the forward kernel.

    Tall tiles read the weight seldom; shorter ones, and programs that share a tile, fill the processors where there are
    few tokens. On NVIDIA two programs fit on a processor up to 64 experts, so that one loads while the other decides.

    Args:
        num_tokens: ``T``.
        dim: ``D``.
        num_experts: ``E``.
        target: What the kernel is compiled for.
        itemsize: Bytes of a value of ``x``.
    """
    width = max(power_of_two(num_experts), 16)
    rows = 128 if width <= 128 else 32
    while rows > 16 and -(-num_tokens // rows) < target.processors // 2:
        rows //= 2
    num_warps = 4 if (rows <= 32 and width <= 128) or (target.tma and width <= 64) else 8
    depth = min(128, _WEIGHT_TILE // width, 16384 // (rows * itemsize))
    depth = max(depth, _LEAST_DEPTH)
    sub_rows = min(rows, num_warps * 256 // width)
    tiles = max(-(-num_tokens // rows), 1)
    steps = -(-dim // depth)
    share = max(-(-steps // max(target.processors // tiles, 1)), min(256 // depth, steps))
    num_stages = 2 if target.backend == "hip" else 3
    return LinearBlocks(width, rows, sub_rows, depth, num_warps, num_stages, -(-steps // share))


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
) -> RouteOutputs:
    """Routes tokens ``x (T, D)`` by ``x W^T + bias`` of ``weight (E, D)``; see :func:`launches.forward`.

    Raises:
        ValueError: If no kernel runs on the device.
    """
    target = current_target(x.device)
    from moekit_kernels.routing import kernel_linear

    x, weight, bias = contiguous_operands(x, weight, bias)
    num_tokens, dim = x.shape
    num_experts = weight.shape[0]
    tile = forward_blocks(num_tokens, dim, num_experts, target, x.itemsize)
    tiles = max(-(-num_tokens // tile.rows), 1)
    programs = tiles if tile.splits > 1 else min(tiles, 2 * target.processors)
    out = outputs(x, num_tokens, num_experts, options.top_k, with_logits, with_probs)
    scratch = tile.splits == 1 and not with_logits
    if tile.splits == 1 and with_logits:
        partial = out.logits
    else:
        size = (programs, tile.rows) if scratch else (tile.splits, num_tokens)
        partial = torch.empty(*size, num_experts, dtype=torch.float32, device=x.device)
    x_parts, w_parts = parts(x.dtype, weight.dtype)
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


class BackwardBlocks(NamedTuple):
    """The tile of a program of the backward kernel, and how programs share the work.

    Attributes:
        width: The experts, up to the next power of two; at least 16.
        rows: Tokens of a tile.
        sub_rows: Tokens whose gradients of logits are computed at a time.
        columns: Columns of x of a tile.
        slices: Slices of the columns.
        rows_per_chunk: Tokens of a chunk.
        chunks: Chunks of tokens.
        num_warps: Warps of a program.
        num_stages: Steps in flight.
    """

    width: int
    rows: int
    sub_rows: int
    columns: int
    slices: int
    rows_per_chunk: int
    chunks: int
    num_warps: int
    num_stages: int


# Partial products of the weight's gradient, which one program adds up.
_MOST_CHUNKS = 16
_LEAST_COLUMNS = 16


def backward_blocks(num_tokens: int, dim: int, num_experts: int, target: Target) -> BackwardBlocks:
    """Returns the tile of the backward kernel.

    Every slice of columns computes the gradients of the logits anew, so there are as few slices as fill the processors.

    Args:
        num_tokens: ``T``.
        dim: ``D``.
        num_experts: ``E``.
        target: What the kernel is compiled for.
    """
    width = max(power_of_two(num_experts), 16)
    num_warps = 8
    rows = min(64 if target.tma else 32, max(8192 // width, 16))
    rows = min(rows, max(power_of_two(max(num_tokens, 1)), 16))
    # Where matrix instructions read shared memory, the parts of the weight are no registers.
    tile = 8192 if target.tma else 2048 if target.backend == "hip" else 4096
    columns = max(min(128, tile // width), _LEAST_COLUMNS)
    tiles = max(-(-num_tokens // rows), 1)
    chunks = min(_MOST_CHUNKS, max(tiles // 4, 1))
    while columns > 32 and -(-dim // columns) * chunks < target.processors:
        columns //= 2
    sub_rows = min(rows, num_warps * 256 // width)
    blocks = -(-dim // columns)
    rows_per_chunk = -(-tiles // chunks) * rows
    chunks = max(-(-num_tokens // rows_per_chunk), 1)
    share = -(-blocks // max(target.processors // chunks, 1))
    return BackwardBlocks(width, rows, sub_rows, columns, -(-blocks // share), rows_per_chunk, chunks, num_warps, 2)


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
    from moekit_kernels.routing import kernel_linear

    x, weight, bias = contiguous_operands(x, weight, bias)
    num_tokens, dim = x.shape
    num_experts = weight.shape[0]
    tile = backward_blocks(num_tokens, dim, num_experts, target)
    blocks = -(-dim // tile.columns)
    d_x = x.new_empty(num_tokens, dim) if needs[0] else None
    d_weight = weight.new_empty(num_experts, dim) if needs[1] else None
    d_bias = bias.new_empty(num_experts) if bias is not None and needs[2] else None
    x_parts, w_parts = _PARTS[x.dtype], _PARTS[weight.dtype]
    x_order, w_order = _ORDER[x.dtype], _ORDER[weight.dtype]
    # Of three parts, which float32 has, no product needs a fourth.
    grad_parts = min(max(x_order, w_order) + 1, 3)
    grad = partials = bias_partials = None
    if d_x is not None or d_weight is not None:
        grad = x.new_empty(grad_parts, num_tokens, num_experts, dtype=torch.bfloat16)
    if tile.chunks > 1:
        float32 = torch.float32
        if d_weight is not None:
            partials = x.new_empty(tile.chunks, blocks, tile.columns, tile.width, dtype=float32)
        if d_bias is not None:
            bias_partials = x.new_empty(tile.chunks, tile.width, dtype=float32)
    arguments: dict[str, Any] = {
        **grads.kernel_arguments(),
        "x": x,
        "weight": weight,
        "logits": logits,
        "valid_rows": valid,
        "ids": ids,
        "mask": mask,
        "d_x": d_x,
        "d_weight": d_weight,
        "d_bias": d_bias,
        "grad_parts": grad,
        "partials": partials,
        "bias_partials": bias_partials,
        "counters": arrival_counters(x.device, blocks + 1 if tile.chunks > 1 else 1),
        "num_tokens": num_tokens,
        "rows_per_chunk": tile.rows_per_chunk,
        "stride_x": x.stride(0),
        "stride_mask": 0 if mask is None else mask.stride(0),
        "scaling_factor": float(options.scaling_factor),
        "DIM": dim,
        "E": num_experts,
        "EP": tile.width,
        "ROWS": tile.rows,
        "SUB_ROWS": tile.sub_rows,
        "BLOCK_D": tile.columns,
        "SLICES": tile.slices,
        "CHUNKS": tile.chunks,
        "PARTS": grad_parts,
        "X_PARTS": x_parts,
        "W_PARTS": w_parts,
        "X_ORDER": x_order,
        "W_ORDER": w_order,
        "TOP_K": options.top_k,
        "SCORING": options.scoring,
        "RENORMALIZE": options.renormalize or options.scoring == "topk_softmax",
    }
    launch(
        kernel_linear.route_linear_bwd_kernel,
        (tile.slices * tile.chunks,),
        arguments,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    return LinearGradients(d_x, d_weight, d_bias)
