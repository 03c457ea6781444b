"""The rows that each program of a grouped GEMM computes: one list of tiles for each tile height."""

import torch
from torch import Tensor

from moekit_kernels.runtime import launch

_PER_LAUNCH = 4
_ALIGNMENT = 16  # pairs, so that every schedule begins at a multiple of 128 bytes
_BLOCK_T = 32
_BLOCK_E = 64


def max_tiles(num_rows: int, num_experts: int, block_m: int, with_unassigned: bool = False) -> int:
    """Returns the most tiles that ``num_rows`` rows of ``num_experts`` experts can need, computed on the host.

    ``n`` rows of one expert take at most ``1 + (n - 1) / block_m`` tiles, so the worst case gives one row to as
    many experts as there are rows for, and the rest to one of them. ``with_unassigned`` counts the tiles of the
    unassigned rows too.
    """
    groups = min(num_rows, num_experts + with_unassigned)
    return groups + (num_rows - groups) // block_m


def tile_schedules(
    offsets: Tensor, num_rows: int, block_ms: tuple[int, ...], with_unassigned: bool = False
) -> list[Tensor]:
    """Cuts the rows of every expert into tiles, for several tile heights at once, on the device.

    Args:
        offsets: ``(E + 1,)``, int32 or int64, contiguous: expert ``e`` owns the rows ``offsets[e] : offsets[e + 1]``.
        num_rows: ``N``, below ``2**31``.
        block_ms: Tile heights; up to four different ones take one launch.
        with_unassigned: Whether the rows ``offsets[E] : N``, which have no expert, are cut into tiles too.

    Returns:
        For each height an int32 ``(1 + max_tiles, 2)``. Row 0 holds ``(number of tiles, height)``; row ``1 + i`` holds
        ``(expert, first row)`` of tile ``i``, by expert and then by row, the expert ``E`` standing for none.
        No tile straddles two experts. Rows after the last tile hold ``(-1, N)``.

    Raises:
        ValueError: If ``num_rows`` does not fit int32.
    """
    if num_rows >= 2**31:
        raise ValueError(f"num_rows must be below 2**31, got {num_rows}: give the tokens in several calls.")
    num_experts = offsets.shape[0] - 1
    schedules: dict[int, Tensor] = {}
    heights = list(dict.fromkeys(block_ms))
    for i in range(0, len(heights), _PER_LAUNCH):
        group = heights[i : i + _PER_LAUNCH]
        schedules.update(zip(group, _launch(offsets, num_rows, num_experts, group, with_unassigned), strict=True))
    return [schedules[height] for height in block_ms]


def _launch(
    offsets: Tensor, num_rows: int, num_experts: int, heights: list[int], with_unassigned: bool
) -> list[Tensor]:
    from moekit_kernels.plan import kernel

    sizes = [1 + max_tiles(num_rows, num_experts, height, with_unassigned) for height in heights]
    begins = [0]
    for size in sizes:
        begins.append(begins[-1] + -(-size // _ALIGNMENT) * _ALIGNMENT)
    schedules = torch.empty(begins[-1], 2, dtype=torch.int32, device=offsets.device)
    heights_4 = heights + [_ALIGNMENT] * (_PER_LAUNCH - len(heights))
    begins_5 = begins + begins[-1:] * (_PER_LAUNCH + 1 - len(begins))
    launch(
        kernel.tile_schedule_kernel,
        (-(-max(sizes) // _BLOCK_T), len(heights)),
        {
            "offsets": offsets,
            "schedules": schedules,
            "num_rows": num_rows,
            **{f"block_m_{i}": height for i, height in enumerate(heights_4)},
            "begin_1": begins_5[1],
            "begin_2": begins_5[2],
            "begin_3": begins_5[3],
            "end": begins_5[4],
            "NUM_EXPERTS": num_experts,
            "NUM_GROUPS": num_experts + with_unassigned,
            "BLOCK_T": _BLOCK_T,
            "BLOCK_E": min(_BLOCK_E, 1 << num_experts.bit_length()),
        },
    )
    return [schedules[begin : begin + size] for begin, size in zip(begins, sizes, strict=False)]
