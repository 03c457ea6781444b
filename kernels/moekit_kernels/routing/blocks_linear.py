"""Tiles of the routing kernels that have the gate's linear layer in them, and how programs share the work."""

from typing import NamedTuple

from moekit_kernels.routing.launches import power_of_two
from moekit_kernels.targets import Target


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


def forward_blocks(
    num_tokens: int, dim: int, num_experts: int, target: Target, x_parts: int = 1, w_parts: int = 1
) -> LinearBlocks:
    """Returns the tile of the forward kernel.

    Tall tiles read the weight seldom; shorter ones, and programs that share a tile, fill the processors where there are
    few tokens. On NVIDIA two programs fit on a processor up to 64 experts, so that one loads while the other decides.

    Args:
        num_tokens: ``T``.
        dim: ``D``.
        num_experts: ``E``.
        target: What the kernel is compiled for.
        x_parts: Parts of ``x``; where there are several, its tile passes registers, and so is smaller.
        w_parts: Parts of the weight, of which the same holds.
    """
    width = max(power_of_two(num_experts), 16)
    split = x_parts > 1
    rows = 32 if width > 128 else 64 if split else 128
    while rows > 16 and -(-num_tokens // rows) < target.processors // 2:
        rows //= 2
    num_warps = 4 if (rows <= 32 and width <= 128) or (target.tma and width <= 64 and not split) else 8
    most = (2048 if target.tma else 1024) if split else 8192
    depth = min(128 if w_parts == 1 else 64, _WEIGHT_TILE // width, most // rows)
    depth = max(depth, _LEAST_DEPTH)
    sub_rows = min(rows, num_warps * 256 // width)
    tiles = max(-(-num_tokens // rows), 1)
    steps = -(-dim // depth)
    share = max(-(-steps // max(target.processors // tiles, 1)), min(256 // depth, steps))
    num_stages = 2 if target.backend == "hip" else 3
    return LinearBlocks(width, rows, sub_rows, depth, num_warps, num_stages, -(-steps // share))


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


def backward_blocks(num_tokens: int, dim: int, num_experts: int, target: Target, x_parts: int = 1) -> BackwardBlocks:
    """Returns the tile of the backward kernel.

    Every slice of columns computes the gradients of the logits anew, so there are as few slices as fill the processors.

    Args:
        num_tokens: ``T``.
        dim: ``D``.
        num_experts: ``E``.
        target: What the kernel is compiled for.
        x_parts: Parts of ``x``.
    """
    width = max(power_of_two(num_experts), 16)
    num_warps, split = 8, x_parts > 1
    rows = min(64 if target.tma and not split else 32, max(8192 // width, 16))
    rows = min(rows, max(power_of_two(max(num_tokens, 1)), 16))
    # Where matrix instructions read shared memory, the parts of the weight are no registers.
    tile = 8192 if target.tma else 2048 if target.backend == "hip" else 4096
    if target.name == "sm_100" and width == 128:  # with more, code for a 16-bit weight spills under Triton 3.8
        tile = 4096
    columns = max(min(128, (tile // 2 if split else tile) // width), _LEAST_COLUMNS)
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
