"""Tiles of the routing kernels that have the gate's linear layer in them, and how programs share the work."""

from typing import NamedTuple

from moekit_kernels.routing.launches import blocks, power_of_two, programs_of
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


# Values of the weight's tile, and the least depth of a matrix instruction.
_WEIGHT_TILE = 4096
_LEAST_DEPTH = 16


def _is_measured(target: Target) -> bool:
    """Returns whether tiles were chosen by time, on an H200; for other targets by their compiled code."""
    return target.name == "sm_90"


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
    rows = 32 if width > 128 else 64 if split or (target.tma and w_parts > 1 and width == 64) else 128
    if target.name == "sm_100" and width == 128 and x_parts > 2:  # Triton 3.6 gives each product its own tensor memory
        rows = 32
    while rows > 16 and -(-num_tokens // rows) < target.processors // 2:
        rows //= 2
    num_warps = 4 if (rows <= 32 and width <= 128) or (target.tma and width <= 64 and not split) else 8
    most = (2048 if target.tma else 1024) if split else 8192
    # Parts of the weight are made in registers, where instructions before wgmma hold the tile once for each warp.
    weight_tile = _WEIGHT_TILE if w_parts == 1 or target.tma else _WEIGHT_TILE // 2
    depth = min(128 if w_parts == 1 else 64, weight_tile // width, most // rows)
    if target.tma and width == 128 and x_parts > 2:  # in deeper steps code spills under Triton 3.8
        depth = _LEAST_DEPTH
    depth = max(depth, _LEAST_DEPTH)
    if _is_measured(target) and width == 128 and x_parts == w_parts == 1 and rows >= 64:
        rows, depth, num_warps = 64, 64, 4  # 144 us at T=32768 D=2048, where 128 rows and 8 warps take 191
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
        apart: Whether the gradients of logits are a launch of their own.
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
    apart: bool


# Partial products of the weight's gradient, which one program adds up.
_MOST_CHUNKS = 16
_LEAST_COLUMNS = 16

# Tokens up to which the gradients of logits are computed along with the products: a launch costs more than they do.
_MOST_TOGETHER = 4096


def backward_blocks(num_tokens: int, dim: int, num_experts: int, target: Target, x_parts: int = 1) -> BackwardBlocks:
    """Returns the tile of the backward kernel.

    Where every slice of columns computes the gradients of the logits anew, there are as few slices as fill the
    processors.

    Args:
        num_tokens: ``T``.
        dim: ``D``.
        num_experts: ``E``.
        target: What the kernel is compiled for.
        x_parts: Parts of ``x``.
    """
    width = max(power_of_two(num_experts), 16)
    num_warps, num_stages, per_processor = 8, 2, 1
    split, apart = x_parts > 1, num_tokens > _MOST_TOGETHER
    # With several parts of 32 rows and 256 experts, code spills registers.
    rows = min(64 if target.tma and not split else 32, max((4096 if split else 8192) // width, 16))
    rows = min(rows, max(power_of_two(max(num_tokens, 1)), 16))
    # Where matrix instructions read shared memory, the parts of the weight are no registers.
    tile = 8192 if target.tma else 2048 if target.backend == "hip" else 4096
    if target.name == "sm_100" and width == 128:  # with more, code for a 16-bit weight spills under Triton 3.8
        tile, rows = 4096, min(rows, 32)
    columns = max(min(128, (tile // 2 if split else tile) // width), _LEAST_COLUMNS)
    if _is_measured(target) and apart and width <= 128 and not split:
        # 241 us at T=32768 D=2048 E=128, and 141 with 64 experts, where 8 warps and 2 stages take 456 and 218.
        columns, num_warps, num_stages, per_processor = 64, 4, 3, 2
    tiles = max(-(-num_tokens // rows), 1)
    chunks = min(_MOST_CHUNKS, max(tiles // 4, 1))
    while columns > 32 and -(-dim // columns) * chunks < target.processors:
        columns //= 2
    sub_rows = min(rows, num_warps * 256 // width)
    blocks = -(-dim // columns)
    rows_per_chunk = -(-tiles // chunks) * rows
    chunks = max(-(-num_tokens // rows_per_chunk), 1)
    share = -(-blocks // max(per_processor * target.processors // chunks, 1))
    slices = -(-blocks // share)
    return BackwardBlocks(width, rows, sub_rows, columns, slices, rows_per_chunk, chunks, num_warps, num_stages, apart)


class GradientBlocks(NamedTuple):
    """The rows of a program of the kernel of the gradients of logits.

    Attributes:
        rows: Tokens of a tile.
        num_warps: Warps of a program.
        programs: How many there are.
    """

    rows: int
    num_warps: int
    programs: int


def gradient_blocks(num_tokens: int, num_experts: int, target: Target) -> GradientBlocks:
    """Returns the tile of the kernel of the gradients of logits.

    Args:
        num_tokens: ``T``.
        num_experts: ``E``.
        target: What the kernel is compiled for.
    """
    tile = blocks(max(num_experts, 16))
    if tile.width < 128:  # with more, code for three parts spills registers on sm_90 under Triton 3.8
        tile = tile._replace(rows=tile.rows // 2)
    if target.name == "sm_80" and tile.width == 16:
        # As many numbers a thread; with 4 warps code with all gradients spills registers under Triton 3.9.
        tile = tile._replace(rows=2 * tile.rows, num_warps=8)
    return GradientBlocks(tile.rows, tile.num_warps, programs_of(tile, num_tokens, target))
