"""Schedules of tiles: which rows of which expert each tile of a grouped GEMM has. Triton only.

The schedules of up to four tile heights lie one after the other, each in the room that :func:`schedule_end` gives it:
pairs ``(tiles of experts, all tiles)``, then ``(expert, first row)`` of each tile, then ``(-1, num_rows)``.
``HEIGHT_i`` is 0 where there are fewer heights. Offsets may be written by other programs of the same launch, so they
are read past the first level of cache.
"""

import triton
import triton.language as tl

ALIGNMENT = tl.constexpr(32)  # plan.schedule.ALIGNMENT: a kernel file imports kernels alone


@triton.jit
def schedule_end(begin, num_rows, NUM_EXPERTS: tl.constexpr, HEIGHT: tl.constexpr):
    """Where the schedule that begins at ``begin`` ends, in pairs; without a height where it begins."""
    if HEIGHT == 0:
        return begin
    room = NUM_EXPERTS + 2 + num_rows // HEIGHT
    return begin + (room + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


@triton.jit
def _bounds(offsets, group, num_rows, NUM_EXPERTS: tl.constexpr):
    """First row of each group and the row after its last; the group ``NUM_EXPERTS`` has the rows of no expert."""
    low = tl.load(offsets + group, mask=group <= NUM_EXPERTS, other=0, cache_modifier=".cg").to(tl.int32)
    high = tl.load(offsets + group + 1, mask=group < NUM_EXPERTS, other=0, cache_modifier=".cg").to(tl.int32)
    return low, tl.where(group == NUM_EXPERTS, num_rows, high)


@triton.jit
def _schedule_at(
    entry, num_rows, NUM_EXPERTS: tl.constexpr, HEIGHT_0: tl.constexpr, HEIGHT_1: tl.constexpr, HEIGHT_2: tl.constexpr,
    HEIGHT_3: tl.constexpr,
):  # fmt: skip
    """Height and first entry of the schedule that ``entry`` belongs to."""
    end_0 = schedule_end(0, num_rows, NUM_EXPERTS, HEIGHT_0)
    end_1 = schedule_end(end_0, num_rows, NUM_EXPERTS, HEIGHT_1)
    end_2 = schedule_end(end_1, num_rows, NUM_EXPERTS, HEIGHT_2)
    height = tl.where(entry < end_0, HEIGHT_0, tl.where(entry < end_1, HEIGHT_1, HEIGHT_2))
    height = tl.where(entry < end_2, height, HEIGHT_3)
    begin = tl.where(entry < end_0, 0, tl.where(entry < end_1, end_0, end_1))
    return height, tl.where(entry < end_2, begin, end_2)


@triton.jit
def _groups_ended(tile, last, group, NUM_EXPERTS: tl.constexpr):
    """How many groups end, in tiles, at or before each tile, and where the last of them ends.

    Groups lie along the first dimension: a thread has many of them, and adds up before it asks other threads.
    """
    ended = (last[:, None] <= tile[None, :]) & (group <= NUM_EXPERTS)[:, None]
    return tl.sum(ended.to(tl.int32), 0), tl.max(tl.where(ended, last[:, None], 0), 0)


@triton.jit
def _store_entries(tiles, entry, tile, group, first_row, first_tile, height, num_tiles, of_experts, num_rows):
    """Stores one entry for each tile; tile -1 is the entry with the numbers of tiles."""
    live = (tile >= 0) & (tile < num_tiles)
    left = tl.where(live, group, tl.where(tile < 0, of_experts, -1))
    right = tl.where(live, first_row + (tile - first_tile) * height, tl.where(tile < 0, num_tiles, num_rows))
    tl.store(tiles + 2 * entry, left)
    tl.store(tiles + 2 * entry + 1, right)


@triton.jit
def write_entries(
    offsets, tiles, first_entry, num_rows, NUM_EXPERTS: tl.constexpr, HEIGHT_0: tl.constexpr, HEIGHT_1: tl.constexpr,
    HEIGHT_2: tl.constexpr, HEIGHT_3: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Writes ``BLOCK_T`` entries from ``first_entry`` on, which are of one schedule: for many programs side by side.

    The tile ``t`` belongs to the group for which exactly as many groups end, in tiles, at or before ``t``: a
    comparison of ``t`` with every end, which is balanced however the rows are spread.
    """
    height, begin = _schedule_at(first_entry, num_rows, NUM_EXPERTS, HEIGHT_0, HEIGHT_1, HEIGHT_2, HEIGHT_3)
    entry = first_entry + tl.arange(0, BLOCK_T)
    tile = entry - begin - 1
    before = tl.zeros((BLOCK_T,), tl.int32)
    first_tile = tl.zeros((BLOCK_T,), tl.int32)
    num_tiles = 0
    of_experts = 0
    for chunk in range(0, NUM_EXPERTS + 1, BLOCK_E):
        group = chunk + tl.arange(0, BLOCK_E)
        low, high = _bounds(offsets, group, num_rows, NUM_EXPERTS)
        count = (high - low + height - 1) // height
        ended, last_end = _groups_ended(tile, num_tiles + tl.cumsum(count, 0), group, NUM_EXPERTS)
        before += ended
        first_tile = tl.maximum(first_tile, last_end)
        num_tiles += tl.sum(count, 0)
        of_experts += tl.sum(tl.where(group < NUM_EXPERTS, count, 0), 0)
    live = (tile >= 0) & (tile < num_tiles)
    first_row = tl.load(offsets + before, mask=live, other=0, cache_modifier=".cg").to(tl.int32)
    _store_entries(tiles, entry, tile, before, first_row, first_tile, height, num_tiles, of_experts, num_rows)


@triton.jit
def write_counted_entries(
    counts, begins, tiles, first_entry, num_rows, NUM_EXPERTS: tl.constexpr, HEIGHT_0: tl.constexpr,
    HEIGHT_1: tl.constexpr, HEIGHT_2: tl.constexpr, HEIGHT_3: tl.constexpr, BLOCK_T: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    """:func:`write_entries` from the rows of all groups and where they begin, ``(BINS,)``, held by the program."""
    height, begin = _schedule_at(first_entry, num_rows, NUM_EXPERTS, HEIGHT_0, HEIGHT_1, HEIGHT_2, HEIGHT_3)
    entry = first_entry + tl.arange(0, BLOCK_T)
    tile = entry - begin - 1
    group = tl.arange(0, BINS)
    count = tl.where(group <= NUM_EXPERTS, (counts + height - 1) // height, 0)
    before, first_tile = _groups_ended(tile, tl.cumsum(count, 0), group, NUM_EXPERTS)
    of_experts = tl.sum(tl.where(group < NUM_EXPERTS, count, 0), 0)
    first_row = tl.gather(begins, before, 0)
    _store_entries(
        tiles, entry, tile, before, first_row, first_tile, height, tl.sum(count, 0), of_experts, num_rows
    )  # fmt: skip


@triton.jit
def _write_schedule(
    offsets, tiles, begin, num_rows, NUM_EXPERTS: tl.constexpr, HEIGHT: tl.constexpr, BLOCK_E: tl.constexpr
):
    """Writes one schedule group by group: as many steps as the largest group has tiles. Returns its end."""
    end = schedule_end(begin, num_rows, NUM_EXPERTS, HEIGHT)
    if HEIGHT > 0:
        num_tiles = 0
        of_experts = 0
        for chunk in range(0, NUM_EXPERTS + 1, BLOCK_E):
            group = chunk + tl.arange(0, BLOCK_E)
            low, high = _bounds(offsets, group, num_rows, NUM_EXPERTS)
            count = (high - low + HEIGHT - 1) // HEIGHT
            place = tiles + 2 * (begin + 1 + num_tiles + tl.cumsum(count, 0) - count)
            longest = tl.max(count, 0)
            step = 0
            while step < longest:
                tl.store(place + 2 * step, group, mask=step < count)
                tl.store(place + 2 * step + 1, low + step * HEIGHT, mask=step < count)
                step += 1
            num_tiles += tl.sum(count, 0)
            of_experts += tl.sum(tl.where(group < NUM_EXPERTS, count, 0), 0)
        tl.store(tiles + 2 * begin, of_experts)
        tl.store(tiles + 2 * begin + 1, num_tiles)
        entry = begin + 1 + num_tiles + tl.arange(0, BLOCK_E)
        dead = begin + 1 + num_tiles
        while dead < end:
            tl.store(tiles + 2 * entry, -1, mask=entry < end)
            tl.store(tiles + 2 * entry + 1, num_rows, mask=entry < end)
            entry += BLOCK_E
            dead += BLOCK_E
    return end


@triton.jit
def write_schedules(
    offsets, tiles, num_rows, NUM_EXPERTS: tl.constexpr, HEIGHT_0: tl.constexpr, HEIGHT_1: tl.constexpr,
    HEIGHT_2: tl.constexpr, HEIGHT_3: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Writes the schedules of all heights by one program: for few rows."""
    end = _write_schedule(offsets, tiles, 0, num_rows, NUM_EXPERTS, HEIGHT_0, BLOCK_E)
    end = _write_schedule(offsets, tiles, end, num_rows, NUM_EXPERTS, HEIGHT_1, BLOCK_E)
    end = _write_schedule(offsets, tiles, end, num_rows, NUM_EXPERTS, HEIGHT_2, BLOCK_E)
    _write_schedule(offsets, tiles, end, num_rows, NUM_EXPERTS, HEIGHT_3, BLOCK_E)


@triton.jit(do_not_specialize=["num_rows"])
def tile_schedule_kernel(
    offsets, tiles, num_rows, NUM_EXPERTS: tl.constexpr, HEIGHT_0: tl.constexpr, HEIGHT_1: tl.constexpr,
    HEIGHT_2: tl.constexpr, HEIGHT_3: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Program ``i`` writes the entries from ``i * BLOCK_T`` on."""
    write_entries(
        offsets, tiles, tl.program_id(0) * BLOCK_T, num_rows, NUM_EXPERTS, HEIGHT_0, HEIGHT_1, HEIGHT_2, HEIGHT_3,
        BLOCK_T, BLOCK_E,
    )  # fmt: skip
