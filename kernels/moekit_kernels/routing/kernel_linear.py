"""Triton kernel of routing with the gate's linear layer in it: ``logits = x W^T + bias``."""

import triton
import triton.language as tl

from moekit_kernels.kernel_language import arrives_last
from moekit_kernels.routing.kernel_decision import decide
from moekit_kernels.routing.kernel_products import minus_product
from moekit_kernels.routing.kernel_sums import add_up


@triton.jit
def linear_tile(
    x,
    weight,
    rows,
    num_tokens,
    stride_x,
    first,
    last,
    DIM: tl.constexpr,
    E: tl.constexpr,
    EP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    X_PARTS: tl.constexpr,
    W_PARTS: tl.constexpr,
):
    """``(ROWS, EP)``, the product of some rows of ``x`` with all experts over the steps ``first`` to ``last`` of D."""
    expert = tl.arange(0, EP)[None, :]
    x_rows = x + rows.to(tl.int64)[:, None] * stride_x
    inside = (rows < num_tokens)[:, None]
    minus = tl.zeros((ROWS, EP), tl.float32)
    for step in range(first, last):
        k = step * BLOCK_K + tl.arange(0, BLOCK_K)
        x_tile = tl.load(x_rows + k[None, :], mask=inside & (k[None, :] < DIM), other=0.0)
        w_tile = tl.load(weight + expert * DIM + k[:, None], mask=(expert < E) & (k[:, None] < DIM), other=0.0)
        minus = minus_product(x_tile, w_tile, minus, X_PARTS, W_PARTS, 3)
    return -minus


@triton.jit
def route_linear_fwd_kernel(
    x,
    weight,
    bias,
    selection_bias,
    mask,
    gates,
    ids,
    finite_logits,
    probs,
    valid_rows,
    tokens_per_expert,
    load,
    prob_sum,
    gate_sum,
    num_routed,
    num_nonfinite,
    logsumexp_sq_sum,
    entropy_sum,
    parts,
    partials,
    counters,
    num_tokens,
    stride_x,
    stride_mask,
    scaling_factor,
    DIM: tl.constexpr,
    E: tl.constexpr,
    EP: tl.constexpr,
    ROWS: tl.constexpr,
    SUB_ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    X_PARTS: tl.constexpr,
    W_PARTS: tl.constexpr,
    SPLITS: tl.constexpr,
    SCRATCH: tl.constexpr,
    TOP_K: tl.constexpr,
    KP: tl.constexpr,
    SCORING: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    GROUPS: tl.constexpr,
    TOP_GROUPS: tl.constexpr,
    GROUP_SCORE: tl.constexpr,
    GROUP: tl.constexpr,
    ONE_GROUP: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Decides about all tokens from the input of the gate, and adds the sums up.

    The logits of a block of rows pass through ``parts``, so that decisions are made on few rows at a time, in
    registers: where ``SCRATCH``, a buffer ``(programs, ROWS, E)``; else the logits asked for, or ``(SPLITS, T, E)``.
    Where there are few blocks of rows, ``SPLITS`` programs share each, with a part of D for every one, and the last of
    them decides.
    """
    STEPS: tl.constexpr = (DIM + BLOCK_K - 1) // BLOCK_K
    SHARE: tl.constexpr = (STEPS + SPLITS - 1) // SPLITS
    expert = tl.arange(0, EP)[None, :]
    tiles = tl.cdiv(num_tokens, ROWS)
    program = tl.program_id(0) // SPLITS
    programs = tl.num_programs(0) // SPLITS
    split = tl.program_id(0) % SPLITS
    size = tl.cast(num_tokens, tl.int64) * E  # a number has no method `to`
    count = tl.zeros((EP,), tl.int32)
    prob = tl.zeros((EP,), tl.float32)
    gate = tl.zeros((EP,), tl.float32)
    entropy = 0.0
    logsumexp_sq = 0.0
    tokens = 0
    nonfinite = 0
    decides = num_tokens >= 0
    for tile in range(program, tiles, programs):
        rows = tile * ROWS + tl.arange(0, ROWS)
        acc = linear_tile(
            x, weight, rows, num_tokens, stride_x, split * SHARE, tl.minimum((split + 1) * SHARE, STEPS),
            DIM, E, EP, ROWS, BLOCK_K, X_PARTS, W_PARTS,
        )  # fmt: skip
        start = (program if SCRATCH else tile) * ROWS
        tl.debug_barrier()  # the decisions on the block before have been read out of the buffer
        own = parts + split * size + (start + tl.arange(0, ROWS)).to(tl.int64)[:, None] * E + expert
        tl.store(own, acc, mask=(rows < num_tokens)[:, None] & (expert < E))
        if SPLITS == 1:
            tl.debug_barrier()
        else:
            decides = arrives_last(counters + tile, SPLITS)
        # Summands of the block stay apart: few registers hold sums while the product is computed.
        slots = tl.zeros((SUB_ROWS, EP), tl.int32)
        probabilities = tl.zeros((SUB_ROWS, EP), tl.float32)
        weights = tl.zeros((SUB_ROWS, EP), tl.float32)
        entropies = tl.zeros((SUB_ROWS, EP), tl.float32)
        squares = tl.zeros((SUB_ROWS, 1), tl.float32)
        counted = tl.zeros((SUB_ROWS, 1), tl.int32)
        others = tl.zeros((SUB_ROWS, 1), tl.int32)
        for first in range(0, tl.where(decides, ROWS, 0), SUB_ROWS):
            sub_rows = tile * ROWS + first + tl.arange(0, SUB_ROWS)
            inside = (sub_rows < num_tokens)[:, None] & (expert < E)
            at = parts + (start + first + tl.arange(0, SUB_ROWS)).to(tl.int64)[:, None] * E + expert
            z = tl.load(at, mask=inside, other=0.0, cache_modifier=".cg")
            for one in range(1, SPLITS):
                z += tl.load(at + one * size, mask=inside, other=0.0, cache_modifier=".cg")
            if bias is not None:
                z += tl.load(bias + expert, mask=expert < E, other=0.0).to(tl.float32)
            more = decide(
                z, sub_rows, num_tokens, selection_bias, mask, stride_mask, scaling_factor,
                gates, ids, finite_logits, probs, valid_rows,
                E, EP, SUB_ROWS, TOP_K, KP, SCORING, RENORMALIZE, GROUPS, TOP_GROUPS, GROUP_SCORE,
            )  # fmt: skip
            slots += more[0]
            probabilities += more[1]
            weights += more[2]
            entropies += more[3]
            squares += more[4]
            counted += more[5]
            others += more[6]
        count += tl.sum(slots, axis=0)
        prob += tl.sum(probabilities, axis=0)
        gate += tl.sum(weights, axis=0)
        entropy += tl.sum(tl.sum(entropies, axis=1), axis=0)
        logsumexp_sq += tl.sum(tl.sum(squares, axis=1), axis=0)
        tokens += tl.sum(tl.sum(counted, axis=1), axis=0)
        nonfinite += tl.sum(tl.sum(others, axis=1), axis=0)
    if decides:
        add_up(
            count, prob, gate, tokens, nonfinite, logsumexp_sq, entropy, program, programs,
            partials, counters if SPLITS == 1 else counters + programs,
            tokens_per_expert, load, prob_sum, gate_sum, num_routed, num_nonfinite, logsumexp_sq_sum, entropy_sum,
            E, EP, GROUP, ONE_GROUP, BLOCK_P,
        )  # fmt: skip
