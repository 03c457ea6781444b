"""The plan of few slots: every slot is compared with every other, in one launch. Triton only."""

import triton
import triton.language as tl

from moekit_kernels.kernel_language import arrives_last
from moekit_kernels.plan.kernel import expert_of, gate_of
from moekit_kernels.plan.kernel_tiles import write_schedules


@triton.jit(do_not_specialize=["num_slots"])
def plan_few_kernel(
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
    arrivals,
    num_slots,
    NUM_EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    KEPT_K: tl.constexpr,
    HEIGHT_0: tl.constexpr,
    HEIGHT_1: tl.constexpr,
    HEIGHT_2: tl.constexpr,
    HEIGHT_3: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """The first programs count for a block of experts each, the others place a block of slots each.

    The last program that has counted writes the schedules of tiles. The row of a slot is the number of slots with a
    smaller expert, or the same and a smaller index. ``left`` replaces ``ids`` and ``kept`` where slots were dropped, or
    is None.
    """
    program = tl.program_id(0)
    EXPERT_BLOCKS: tl.constexpr = (NUM_EXPERTS + BLOCK) // BLOCK
    lane = tl.arange(0, BLOCK)
    if program < EXPERT_BLOCKS:
        expert = program * BLOCK + lane
        before = tl.zeros((BLOCK,), tl.int32)
        mine = tl.zeros((BLOCK,), tl.int32)
        routed = tl.zeros((BLOCK,), tl.int32)
        first = 0
        while first < num_slots:
            other = first + tl.arange(0, CHUNK)
            exists = other < num_slots
            other_key = expert_of(ids, kept, other, exists, NUM_EXPERTS, TOP_K, KEPT_K)
            routed += tl.sum((other_key[None, :] == expert[:, None]).to(tl.int32), 1)
            if left is not None:
                other_key = tl.load(left + other, mask=exists, other=NUM_EXPERTS)
            before += tl.sum((other_key[None, :] < expert[:, None]).to(tl.int32), 1)
            mine += tl.sum((other_key[None, :] == expert[:, None]).to(tl.int32), 1)
            first += CHUNK
        tl.store(offsets + expert, before.to(tl.int64), mask=expert <= NUM_EXPERTS)
        tl.store(tokens_per_expert + expert, routed.to(tl.int64), mask=expert < NUM_EXPERTS)
        tl.store(dropped_per_expert + expert, (routed - mine).to(tl.int64), mask=expert < NUM_EXPERTS)
        if arrives_last(arrivals, EXPERT_BLOCKS):
            write_schedules(offsets, tiles, num_slots, NUM_EXPERTS, HEIGHT_0, HEIGHT_1, HEIGHT_2, HEIGHT_3, BLOCK_E)
    else:
        slot = (program - EXPERT_BLOCKS) * BLOCK + lane
        inside = slot < num_slots
        if left is None:
            key = expert_of(ids, kept, slot, inside, NUM_EXPERTS, TOP_K, KEPT_K)
        else:
            key = tl.load(left + slot, mask=inside, other=NUM_EXPERTS)
        here = tl.zeros((BLOCK,), tl.int32)
        first = 0
        while first < num_slots:
            other = first + tl.arange(0, CHUNK)
            exists = other < num_slots
            if left is None:
                other_key = expert_of(ids, kept, other, exists, NUM_EXPERTS, TOP_K, KEPT_K)
            else:
                other_key = tl.load(left + other, mask=exists, other=NUM_EXPERTS)
            tied = (other_key[None, :] == key[:, None]) & (other[None, :] < slot[:, None])
            before = (tied | (other_key[None, :] < key[:, None])) & exists[None, :]
            here += tl.sum(before.to(tl.int32), 1)
            first += CHUNK
        tl.store(row_of_slot + slot, here.to(tl.int64), mask=inside)
        tl.store(slot_of_row + here, slot.to(tl.int64), mask=inside)
        tl.store(token_of_row + here, (slot // TOP_K).to(tl.int64), mask=inside)


@triton.jit(do_not_specialize=["num_slots", "limit"])
def plan_few_drop_kernel(
    ids,
    kept,
    gates,
    limit,
    limit_at,
    left,
    num_slots,
    NUM_EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    KEPT_K: tl.constexpr,
    LARGEST: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """``left[slot]``: its expert, or ``NUM_EXPERTS`` where ``limit`` slots of it stand before it in the queue.

    The queue is by choice and then by token, or, with ``gates``, by gate and then by slot.
    """
    slot = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = slot < num_slots
    key = expert_of(ids, kept, slot, inside, NUM_EXPERTS, TOP_K, KEPT_K)
    num_tokens = num_slots // TOP_K
    place = slot % TOP_K * num_tokens + slot // TOP_K
    if gates is not None:
        gate = gate_of(gates, slot, inside, LARGEST)
    rank = tl.zeros((BLOCK,), tl.int32)
    first = 0
    while first < num_slots:
        other = first + tl.arange(0, CHUNK)
        exists = other < num_slots
        other_key = expert_of(ids, kept, other, exists, NUM_EXPERTS, TOP_K, KEPT_K)
        if gates is None:
            other_place = other % TOP_K * num_tokens + other // TOP_K
            before = other_place[:, None] < place[None, :]
        else:
            other_gate = gate_of(gates, other, exists, LARGEST)
            tied = (other_gate[:, None] == gate[None, :]) & (other[:, None] < slot[None, :])
            before = tied | (other_gate[:, None] > gate[None, :])
        # The others lie along the first dimension: a thread has many of them, and adds up before it asks other threads.
        before &= (other_key[:, None] == key[None, :]) & exists[:, None]
        rank += tl.sum(before.to(tl.int32), 0)
        first += CHUNK
    if limit_at is not None:
        limit = tl.load(limit_at)
    tl.store(left + slot, tl.where(rank < limit, key, NUM_EXPERTS), mask=inside)
