"""The plan of some thousand slots in one launch: every program counts all slots by itself. Triton only."""

import triton
import triton.language as tl

from moekit_kernels.plan.kernel import expert_of, rank_in_part, slot_at
from moekit_kernels.plan.kernel_tiles import write_counted_entries


@triton.jit
def _keys(ids, kept, left, slot, inside, NUM_EXPERTS: tl.constexpr, TOP_K: tl.constexpr, KEPT_K: tl.constexpr):
    """The expert of each slot; ``left`` replaces ``ids`` and ``kept`` where slots were dropped, or is None."""
    if left is None:
        key = expert_of(ids, kept, slot, inside, NUM_EXPERTS, TOP_K, KEPT_K)
    else:
        key = tl.load(left + slot, mask=inside, other=NUM_EXPERTS)
    return key


@triton.jit
def _rank(key, PART: tl.constexpr):
    """How many slots of the part come before each of its slots and have its expert."""
    # A gather is not repeated for each layout, as loads of fewer slots than threads are: every thread would load all.
    return rank_in_part(tl.gather(key, tl.arange(0, PART), 0), PART)


@triton.jit
def _count(
    ids, kept, left, start, end, num_slots,
    NUM_EXPERTS: tl.constexpr, TOP_K: tl.constexpr, KEPT_K: tl.constexpr, BY_CHOICE: tl.constexpr,
    CHUNK: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    """How many slots of each expert stand before the place ``end`` of the order, and how many before ``start``.

    One chunk begins at ``start``, so that each chunk is counted once. The last bin takes what lies outside.
    """
    total = tl.zeros((BINS,), tl.int32)
    before = tl.zeros((BINS,), tl.int32)
    first = start - tl.cdiv(start, CHUNK) * CHUNK
    while first < end:
        place = first + tl.arange(0, CHUNK)
        inside = (place >= 0) & (place < end)
        slot = slot_at(place, num_slots, TOP_K, BY_CHOICE)
        key = _keys(ids, kept, left, slot, inside, NUM_EXPERTS, TOP_K, KEPT_K)
        count = tl.histogram(tl.where(inside, key, BINS - 1), BINS)
        total += count
        before += tl.where(first < start, count, 0)
        first += CHUNK
    return total, before


@triton.jit(do_not_specialize=["num_slots"])
def plan_count_all_kernel(
    ids,
    kept,
    left,
    token_of_row,
    slot_of_row,
    offsets,
    row_of_slot,
    tokens_per_expert,
    dropped_per_expert,
    tiles,
    num_slots,
    NUM_EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    KEPT_K: tl.constexpr,
    HEIGHT_0: tl.constexpr,
    HEIGHT_1: tl.constexpr,
    HEIGHT_2: tl.constexpr,
    HEIGHT_3: tl.constexpr,
    PART: tl.constexpr,
    CHUNK: tl.constexpr,
    BINS: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """The first programs place a part of the slots each, the next write the schedules, the last one what is counted.

    Each counts all slots, so that none waits for another. The row of a slot is where its expert begins, plus the slots
    of the expert before the part, plus those before it in the part. ``left`` replaces ``ids`` and ``kept`` where slots
    were dropped, or is None.
    """
    program = tl.program_id(0)
    num_parts = tl.cdiv(num_slots, PART)
    start = tl.where(program < num_parts, program * PART, 0)
    total, before = _count(
        ids, kept, left, start, num_slots, num_slots, NUM_EXPERTS, TOP_K, KEPT_K, False, CHUNK, BINS
    )  # fmt: skip
    begin = tl.cumsum(total, 0) - total
    if program < num_parts:
        slot = start + tl.arange(0, PART)
        inside = slot < num_slots
        key = _keys(ids, kept, left, slot, inside, NUM_EXPERTS, TOP_K, KEPT_K)
        here = tl.gather(begin + before, key, 0) + _rank(key, PART)
        tl.store(row_of_slot + slot, here.to(tl.int64), mask=inside)
        tl.store(slot_of_row + here, slot.to(tl.int64), mask=inside)
        tl.store(token_of_row + here, (slot // TOP_K).to(tl.int64), mask=inside)
    elif program < tl.num_programs(0) - 1:
        write_counted_entries(
            total, begin, tiles, (program - num_parts) * BLOCK_T, num_slots, NUM_EXPERTS, HEIGHT_0, HEIGHT_1, HEIGHT_2,
            HEIGHT_3, BLOCK_T, BINS,
        )  # fmt: skip
    else:
        expert = tl.arange(0, BINS)
        routed = total
        if left is not None:
            routed, _ = _count(
                ids, kept, None, 0, num_slots, num_slots, NUM_EXPERTS, TOP_K, KEPT_K, False, CHUNK, BINS
            )  # fmt: skip
        tl.store(offsets + expert, begin.to(tl.int64), mask=expert <= NUM_EXPERTS)
        tl.store(tokens_per_expert + expert, routed.to(tl.int64), mask=expert < NUM_EXPERTS)
        tl.store(dropped_per_expert + expert, (routed - total).to(tl.int64), mask=expert < NUM_EXPERTS)


@triton.jit(do_not_specialize=["num_slots", "limit"])
def plan_count_all_drop_kernel(
    ids,
    kept,
    limit,
    limit_at,
    left,
    num_slots,
    NUM_EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    KEPT_K: tl.constexpr,
    PART: tl.constexpr,
    CHUNK: tl.constexpr,
    BINS: tl.constexpr,
):
    """``left[slot]``: its expert, or ``NUM_EXPERTS`` where ``limit`` slots of it stand before it in the queue.

    The queue is by choice and then by token; each program counts those of its places that come before its part.
    """
    start = tl.program_id(0) * PART
    _, before = _count(ids, kept, None, start, start, num_slots, NUM_EXPERTS, TOP_K, KEPT_K, True, CHUNK, BINS)
    place = start + tl.arange(0, PART)
    inside = place < num_slots
    slot = slot_at(place, num_slots, TOP_K, True)
    key = expert_of(ids, kept, slot, inside, NUM_EXPERTS, TOP_K, KEPT_K)
    rank = tl.gather(before, key, 0) + _rank(key, PART)
    if limit_at is not None:
        limit = tl.load(limit_at)
    tl.store(left + slot, tl.where(rank < limit, key, NUM_EXPERTS), mask=inside)
