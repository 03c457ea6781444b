"""The rows that each program of a grouped GEMM computes: one list of tiles for each tile height."""

import functools
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from moekit_kernels.configs import tile_heights
from moekit_kernels.plan.dispatch_plan import RowOrder
from moekit_kernels.runtime import current_target, launch

ALIGNMENT = 32
"""Every schedule begins at a multiple of so many pairs: at one of 256 bytes."""

BLOCK_T = ALIGNMENT
"""Entries of one program, which are of one schedule."""

_PER_LAUNCH = 4
_BLOCK_E = 64


def max_tiles(num_rows: int, num_experts: int, block_m: int, with_unassigned: bool = False) -> int:
    """Returns the most tiles that ``num_rows`` rows of ``num_experts`` experts can need, computed on the host.

    ``n`` rows of one expert take at most ``1 + (n - 1) / block_m`` tiles, so the worst case gives one row to as
    many experts as there are rows for, and the rest to one of them. ``with_unassigned`` counts the tiles of the
    unassigned rows too.
    """
    groups = min(num_rows, num_experts + with_unassigned)
    return groups + (num_rows - groups) // block_m


def schedule_bounds(num_rows: int, num_experts: int, heights: Sequence[int]) -> list[int]:
    """Returns where the schedule of each height begins in one tensor that holds all of them, and where the last ends.

    There is room for the tiles of every expert and of the unassigned rows. No comparison is made, so that the number of
    rows may be symbolic.
    """
    bounds = [0]
    for height in heights:
        room = 1 + (num_experts + 1) + num_rows // height
        bounds.append(bounds[-1] + -(-room // ALIGNMENT) * ALIGNMENT)
    return bounds


@functools.lru_cache(maxsize=1024)
def _bounds(num_rows: int, num_experts: int, heights: tuple[int, ...]) -> list[int]:
    return schedule_bounds(num_rows, num_experts, heights)


def with_tiles(order: RowOrder) -> RowOrder:
    """Returns ``order`` with the schedules of every height in ``tiles``: by one launch, where the plan has none."""
    num_rows, heights = order.token_of_row.shape[0], tile_heights(current_target(order.offsets.device))
    if _schedules_in(order, num_rows, heights) is not None:
        return order
    return order._replace(tiles=_schedules(order.offsets, num_rows, heights))


def tiles_of(order: RowOrder, num_rows: int, height: int) -> Tensor:
    """Returns the schedule of one height: a part of ``order.tiles``, or by a launch what is missing there.

    Args:
        order: Of a plan.
        num_rows: ``N``, below ``2**31``.
        height: Of the tiles, in rows.

    Returns:
        As :func:`tile_schedules` has it.

    Raises:
        ValueError: If ``num_rows`` does not fit int32.
    """
    heights = tile_heights(current_target(order.offsets.device))
    tiles = _schedules_in(order, num_rows, heights) if height in heights else None
    if tiles is not None:
        bounds = _bounds(num_rows, order.offsets.shape[0] - 1, heights)
        index = heights.index(height)
        return tiles[bounds[index] : bounds[index + 1]]
    return tile_schedules(order.offsets, num_rows, (height,))[0]


def tile_schedules(offsets: Tensor, num_rows: int, heights: Sequence[int]) -> list[Tensor]:
    """Cuts the rows of every expert into tiles, for several tile heights at once, on the device.

    Args:
        offsets: ``(E + 1,)``, int32 or int64, contiguous: expert ``e`` owns the rows ``offsets[e] : offsets[e + 1]``.
        num_rows: ``N``, below ``2**31``.
        heights: Of the tiles; up to four different ones take one launch.

    Returns:
        For each height int32 pairs. Row 0 holds ``(tiles of the experts, all tiles)``; row ``1 + i`` holds
        ``(expert, first row)`` of tile ``i``, by expert and then by row. The rows ``offsets[E] : N``, which have no
        expert, are cut into the last tiles, and ``E`` stands for their expert. No tile straddles two experts. Rows
        after the last tile hold ``(-1, N)``.

    Raises:
        ValueError: If ``num_rows`` does not fit int32.
    """
    num_experts = offsets.shape[0] - 1
    schedules: dict[int, Tensor] = {}
    distinct = list(dict.fromkeys(heights))
    for i in range(0, len(distinct), _PER_LAUNCH):
        group = distinct[i : i + _PER_LAUNCH]
        tiles = _schedules(offsets, num_rows, group)
        bounds = pairwise(schedule_bounds(num_rows, num_experts, group))
        schedules.update({height: tiles[begin:end] for height, (begin, end) in zip(group, bounds, strict=True)})
    return [schedules[height] for height in heights]


def schedule_arguments(num_experts: int, heights: Sequence[int]) -> dict[str, int]:
    """Returns the arguments by which kernels write the schedules of up to four heights, many programs side by side."""
    block_e = min(_BLOCK_E, 1 << num_experts.bit_length())
    return {**height_arguments(heights), "BLOCK_T": BLOCK_T, "BLOCK_E": block_e}


def height_arguments(heights: Sequence[int]) -> dict[str, int]:
    """Returns up to four heights as compile-time arguments, 0 for none."""
    padded = (*heights, *[0] * (_PER_LAUNCH - len(heights)))
    return {f"HEIGHT_{i}": height for i, height in enumerate(padded)}


def _schedules_in(order: RowOrder, num_rows: int, heights: tuple[int, ...]) -> Tensor | None:
    """Returns ``order.tiles``, or None if there are none, or if they were made for another target."""
    size = _bounds(num_rows, order.offsets.shape[0] - 1, heights)[-1]
    return order.tiles if order.tiles is not None and order.tiles.shape[0] == size else None


def _schedules(offsets: Tensor, num_rows: int, heights: Sequence[int]) -> Tensor:
    """Returns the schedules of up to four heights in one tensor, cut at :func:`schedule_bounds`."""
    if num_rows >= 2**31:
        raise ValueError(f"num_rows must be below 2**31, got {num_rows}: give the tokens in several calls.")
    from moekit_kernels.plan import kernel_tiles

    num_experts = offsets.shape[0] - 1
    size = schedule_bounds(num_rows, num_experts, heights)[-1]
    tiles = torch.empty(size, 2, dtype=torch.int32, device=offsets.device)
    launch(
        kernel_tiles.tile_schedule_kernel,
        (size // BLOCK_T,),
        {
            "offsets": offsets,
            "tiles": tiles,
            "num_rows": num_rows,
            "NUM_EXPERTS": num_experts,
            **schedule_arguments(num_experts, heights),
        },
    )
    return tiles
