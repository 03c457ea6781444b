"""The kernels of the plan of many slots: a counting sort. Triton only."""

import triton
import triton.language as tl

from moekit_kernels.kernel_language import arrives_last
from moekit_kernels.plan.kernel_tiles import write_entries


@triton.jit
def expert_of(ids, kept, slot, inside, NUM_EXPERTS: tl.constexpr, TOP_K: tl.constexpr, KEPT_K: tl.constexpr):
    """Expert of each slot; ``NUM_EXPERTS`` for unassigned slots, those out of bounds and ids out of range included."""
    key = tl.load(ids + slot, mask=inside, other=0)
    live = inside & (key >= 0) & (key < NUM_EXPERTS)
    if kept is not None:
        live &= tl.load(kept + (slot if KEPT_K == TOP_K else slot // TOP_K), mask=inside, other=0) != 0
    return tl.where(live, key, NUM_EXPERTS).to(tl.int32)


@triton.jit
def slot_at(place, num_slots, TOP_K: tl.constexpr, BY_CHOICE: tl.constexpr):
    """The slot at a place of the order: its own, or with all first choices before all second choices."""
    if BY_CHOICE:
        num_tokens = num_slots // TOP_K
        slot = place % num_tokens * TOP_K + place // num_tokens
    else:
        slot = place
    return slot


@triton.jit(do_not_specialize=["num_slots", "num_blocks"])
def plan_count_kernel(
    ids,
    kept,
    counts,
    num_slots,
    num_blocks,
    NUM_EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    KEPT_K: tl.constexpr,
    BY_CHOICE: tl.constexpr,
    BLOCK: tl.constexpr,
    BINS: tl.constexpr,
):
    """``counts[e, b]``: slots of expert ``e`` in the block ``b`` of the order. The last bin takes what is elsewhere."""
    block = tl.program_id(0)
    place = block * BLOCK + tl.arange(0, BLOCK)
    inside = place < num_slots
    slot = slot_at(place, num_slots, TOP_K, BY_CHOICE)
    first = tl.program_id(1) * (BINS - 1)
    bin_of = expert_of(ids, kept, slot, inside, NUM_EXPERTS, TOP_K, KEPT_K) - first
    bin_of = tl.where(inside & (bin_of >= 0) & (bin_of < BINS - 1), bin_of, BINS - 1)
    count = tl.histogram(bin_of, BINS)
    lane = tl.arange(0, BINS)
    expert = (first + lane).to(tl.int64)
    tl.store(counts + expert * num_blocks + block, count, mask=(lane < BINS - 1) & (expert <= NUM_EXPERTS))


@triton.jit
def _write_offsets(
    totals, routed, offsets, tokens_per_expert, dropped_per_expert, NUM_EXPERTS: tl.constexpr, BLOCK: tl.constexpr
):
    """``offsets`` by a running sum of ``totals``; ``routed`` are the totals before slots were dropped, or None."""
    begin = tl.zeros((), tl.int32)
    for first in range(0, NUM_EXPERTS + 1, BLOCK):
        expert = first + tl.arange(0, BLOCK)
        inside = expert < NUM_EXPERTS
        total = tl.load(totals + expert, mask=inside, other=0, cache_modifier=".cg")
        before = begin + tl.cumsum(total, 0) - total
        tl.store(offsets + expert, before.to(tl.int64), mask=expert <= NUM_EXPERTS)
        num_routed = total
        if routed is not None:
            num_routed = tl.load(routed + expert, mask=inside, other=0)
        tl.store(tokens_per_expert + expert, num_routed.to(tl.int64), mask=inside)
        tl.store(dropped_per_expert + expert, (num_routed - total).to(tl.int64), mask=inside)
        begin += tl.sum(total, 0)


@triton.jit(do_not_specialize=["num_blocks"])
def plan_scan_kernel(
    counts,
    before,
    totals,
    routed,
    offsets,
    tokens_per_expert,
    dropped_per_expert,
    arrivals,
    num_blocks,
    NUM_EXPERTS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """``before[e, b]``: slots of expert ``e`` in the blocks before ``b``; ``totals[e]``: those in all blocks.

    The last of the programs, one for each expert, computes the offsets from the totals.
    """
    expert = tl.program_id(0).to(tl.int64)
    total = tl.zeros((), tl.int32)
    first = 0
    while first < num_blocks:
        block = first + tl.arange(0, BLOCK)
        here = expert * num_blocks + block
        count = tl.load(counts + here, mask=block < num_blocks, other=0)
        tl.store(before + here, total + tl.cumsum(count, 0) - count, mask=block < num_blocks)
        total += tl.sum(count, 0)
        first += BLOCK
    tl.store(totals + expert, total)
    if arrives_last(arrivals, NUM_EXPERTS + 1):
        _write_offsets(totals, routed, offsets, tokens_per_expert, dropped_per_expert, NUM_EXPERTS, BLOCK_E)


@triton.jit
def rank_in_part(key, PART: tl.constexpr):
    """How many slots of a part come before each of its slots and have its expert, by comparison.

    The others lie along the first dimension, which one thread has whole: it adds up without asking other threads.
    """
    lane = tl.arange(0, PART)
    earlier = (key[:, None] == key[None, :]) & (lane[:, None] < lane[None, :])
    return tl.sum(earlier.to(tl.int32), 0)


@triton.jit
def _rank(
    ids, kept, key, part, num_slots,
    NUM_EXPERTS: tl.constexpr, TOP_K: tl.constexpr, KEPT_K: tl.constexpr, BY_CHOICE: tl.constexpr,
    BLOCK: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """How many slots of its block come before each slot of a part of the block and have its expert."""
    rank = rank_in_part(key, PART)
    if PART < BLOCK:
        first = part * PART // BLOCK * BLOCK
        while first < part * PART:
            place = first + tl.arange(0, PART)
            slot = slot_at(place, num_slots, TOP_K, BY_CHOICE)
            earlier_key = expert_of(ids, kept, slot, place < num_slots, NUM_EXPERTS, TOP_K, KEPT_K)
            rank += tl.sum((earlier_key[:, None] == key[None, :]).to(tl.int32), 0)
            first += PART
    return rank


@triton.jit(do_not_specialize=["num_slots", "num_blocks"])
def plan_place_kernel(
    ids,
    kept,
    before,
    offsets,
    token_of_row,
    slot_of_row,
    row_of_slot,
    tiles,
    num_slots,
    num_blocks,
    NUM_EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    KEPT_K: tl.constexpr,
    HEIGHT_0: tl.constexpr,
    HEIGHT_1: tl.constexpr,
    HEIGHT_2: tl.constexpr,
    HEIGHT_3: tl.constexpr,
    BLOCK: tl.constexpr,
    PART: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """Puts each slot into its row: where its expert begins, plus earlier blocks, plus earlier slots of its block.

    The programs after those of the parts write the schedules of tiles.
    """
    part = tl.program_id(0)
    num_parts = tl.cdiv(num_slots, PART)
    if part < num_parts:
        slot = part * PART + tl.arange(0, PART)
        inside = slot < num_slots
        key = expert_of(ids, kept, slot, inside, NUM_EXPERTS, TOP_K, KEPT_K)
        here = tl.load(offsets + key, mask=inside, other=0)
        here += tl.load(before + key.to(tl.int64) * num_blocks + part * PART // BLOCK, mask=inside, other=0)
        here += _rank(ids, kept, key, part, num_slots, NUM_EXPERTS, TOP_K, KEPT_K, False, BLOCK, PART)
        tl.store(row_of_slot + slot, here, mask=inside)
        tl.store(slot_of_row + here, slot.to(tl.int64), mask=inside)
        tl.store(token_of_row + here, (slot // TOP_K).to(tl.int64), mask=inside)
    elif tiles is not None:
        write_entries(
            offsets, tiles, (part - num_parts) * BLOCK_T, num_slots, NUM_EXPERTS, HEIGHT_0, HEIGHT_1, HEIGHT_2,
            HEIGHT_3, BLOCK_T, BLOCK_E,
        )  # fmt: skip


@triton.jit(do_not_specialize=["num_slots", "num_blocks", "limit"])
def plan_drop_late_kernel(
    ids,
    kept,
    before,
    limit,
    limit_at,
    left,
    num_slots,
    num_blocks,
    NUM_EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    KEPT_K: tl.constexpr,
    BLOCK: tl.constexpr,
    PART: tl.constexpr,
):
    """``left[slot]``: its expert, or ``NUM_EXPERTS`` where ``limit`` slots of it stand before it in the queue."""
    part = tl.program_id(0)
    place = part * PART + tl.arange(0, PART)
    inside = place < num_slots
    slot = slot_at(place, num_slots, TOP_K, True)
    key = expert_of(ids, kept, slot, inside, NUM_EXPERTS, TOP_K, KEPT_K)
    rank = tl.load(before + key.to(tl.int64) * num_blocks + part * PART // BLOCK, mask=inside, other=0)
    rank += _rank(ids, kept, key, part, num_slots, NUM_EXPERTS, TOP_K, KEPT_K, True, BLOCK, PART)
    if limit_at is not None:
        limit = tl.load(limit_at)
    tl.store(left + slot, tl.where(rank < limit, key, NUM_EXPERTS), mask=inside)


@triton.jit
def gate_of(gates, slot, inside, LARGEST: tl.constexpr):
    """Gates as ``nan_to_num`` leaves them: NaN is 0, infinities are the largest numbers of the dtype."""
    gate = tl.load(gates + slot, mask=inside, other=0.0)
    if gate.dtype != tl.float64:
        gate = gate.to(tl.float32)
    gate = tl.where(gate == gate, gate, 0.0)
    gate = tl.where(gate > LARGEST, LARGEST, gate)
    return tl.where(gate < -LARGEST, -LARGEST, gate)


@triton.jit(do_not_specialize=["num_slots", "limit"])
def plan_drop_small_kernel(
    ids,
    gates,
    slot_of_row,
    offsets,
    limit,
    limit_at,
    left,
    num_slots,
    NUM_EXPERTS: tl.constexpr,
    LARGEST: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """``left[slot]``: its expert, or ``NUM_EXPERTS`` where ``limit`` slots of it stand before it in the queue.

    The queue is by gate and then by slot. A row is compared with all rows of its expert, where these are more
    than ``limit``.
    """
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < num_slots
    slot = tl.load(slot_of_row + row, mask=inside, other=0)
    live = inside & (row < tl.load(offsets + NUM_EXPERTS))
    key = tl.load(ids + slot, mask=live, other=0).to(tl.int32)
    begin = tl.load(offsets + key, mask=live, other=0).to(tl.int32)
    end = tl.load(offsets + key + 1, mask=live, other=0).to(tl.int32)
    if limit_at is not None:
        limit = tl.load(limit_at)
    full = live & (end - begin > limit)
    gate = gate_of(gates, slot, live, LARGEST)
    rank = tl.zeros((BLOCK,), tl.int32)
    first = tl.min(tl.where(full, begin, num_slots), 0)
    last = tl.max(tl.where(full, end, 0), 0)
    while first < last:
        other = first + tl.arange(0, CHUNK)
        other_gate = gate_of(gates, tl.load(slot_of_row + other, mask=other < last, other=0), other < last, LARGEST)
        mine = (other[None, :] >= begin[:, None]) & (other[None, :] < end[:, None])
        tied = (other_gate[None, :] == gate[:, None]) & (other[None, :] < row[:, None])
        before = mine & (tied | (other_gate[None, :] > gate[:, None]))
        rank += tl.sum(before.to(tl.int32), 1)
        first += CHUNK
    stays = live & ((rank < limit) | ~full)
    tl.store(left + slot, tl.where(stays, key, NUM_EXPERTS), mask=inside)
