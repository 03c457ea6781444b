"""Sums over all programs of a routing kernel, made by the last ones that arrive, in a fixed order. Triton only.

A program's row of partial sums is ``3 E + 4`` words of 32 bits: slots, probabilities and gates of each expert, then
tokens, non-finite tokens, squared log-sum-exp and entropy. Programs are added up in groups; the last program of a group
adds its rows, the last of all groups adds those of the groups.
"""

import triton
import triton.language as tl

from moekit_kernels.kernel_language import arrives_last


@triton.jit
def store_partial(
    partials, row, count, prob, gate, tokens, nonfinite, logsumexp_sq, entropy, E: tl.constexpr, EP: tl.constexpr
):
    """Writes one row of partial sums."""
    start = partials + row.to(tl.int64) * (3 * E + 4)
    column = tl.arange(0, EP)
    tl.store(start + column, count, mask=column < E)
    tl.store(start + E + column, prob.to(tl.int32, bitcast=True), mask=column < E)
    tl.store(start + 2 * E + column, gate.to(tl.int32, bitcast=True), mask=column < E)
    tl.store(start + 3 * E, tokens)
    tl.store(start + 3 * E + 1, nonfinite)
    tl.store(start + 3 * E + 2, logsumexp_sq.to(tl.int32, bitcast=True))
    tl.store(start + 3 * E + 3, entropy.to(tl.int32, bitcast=True))


@triton.jit
def sum_experts(partials, first, last, FIELD: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, BLOCK_P: tl.constexpr):
    """``(EP,)`` sums over the rows ``first`` to ``last`` of slots (0, int32), probabilities (1) or gates (2)."""
    column = tl.arange(0, EP)[None, :]
    total = tl.zeros((EP,), tl.int32 if FIELD == 0 else tl.float32)
    for start in range(first, last, BLOCK_P):
        row = (start + tl.arange(0, BLOCK_P))[:, None]
        values = partials + row.to(tl.int64) * (3 * E + 4) + FIELD * E + column
        # Past the L1 cache, which may hold what was there before another program wrote.
        values = tl.load(values, mask=(row < last) & (column < E), other=0, cache_modifier=".cg")
        if FIELD > 0:
            values = values.to(tl.float32, bitcast=True)
        total += tl.sum(values, axis=0)
    return total


@triton.jit
def sum_tokens(partials, first, last, FIELD: tl.constexpr, E: tl.constexpr, BLOCK_P: tl.constexpr):
    """The sum over rows of tokens (0, int32), non-finite ones (1, int32), squared log-sum-exp (2) or entropy (3)."""
    total = tl.zeros((BLOCK_P,), tl.int32 if FIELD < 2 else tl.float32)
    for start in range(first, last, BLOCK_P):
        row = start + tl.arange(0, BLOCK_P)
        values = partials + row.to(tl.int64) * (3 * E + 4) + 3 * E + FIELD
        values = tl.load(values, mask=row < last, other=0, cache_modifier=".cg")
        if FIELD >= 2:
            values = values.to(tl.float32, bitcast=True)
        total += values
    return tl.sum(total, axis=0)


@triton.jit
def store_sums(
    partials,
    first,
    last,
    tokens_per_expert,
    load,
    prob_sum,
    gate_sum,
    num_tokens,
    nonfinite_tokens,
    logsumexp_sq_sum,
    entropy_sum,
    E: tl.constexpr,
    EP: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Adds the rows ``first`` to ``last`` up and writes the results."""
    column = tl.arange(0, EP)
    count = sum_experts(partials, first, last, 0, E, EP, BLOCK_P)
    tl.store(tokens_per_expert + column, count.to(tl.int64), mask=column < E)
    tl.store(load + column, count.to(tl.float32), mask=column < E)
    tl.store(prob_sum + column, sum_experts(partials, first, last, 1, E, EP, BLOCK_P), mask=column < E)
    tl.store(gate_sum + column, sum_experts(partials, first, last, 2, E, EP, BLOCK_P), mask=column < E)
    tl.store(num_tokens, sum_tokens(partials, first, last, 0, E, BLOCK_P).to(tl.int64))
    tl.store(nonfinite_tokens, sum_tokens(partials, first, last, 1, E, BLOCK_P).to(tl.int64))
    tl.store(logsumexp_sq_sum, sum_tokens(partials, first, last, 2, E, BLOCK_P))
    tl.store(entropy_sum, sum_tokens(partials, first, last, 3, E, BLOCK_P))


@triton.jit
def add_up(
    count,
    prob,
    gate,
    tokens,
    nonfinite,
    logsumexp_sq,
    entropy,
    program,
    num_programs,
    partials,
    counters,
    tokens_per_expert,
    load,
    prob_sum,
    gate_sum,
    num_tokens,
    nonfinite_tokens,
    logsumexp_sq_sum,
    entropy_sum,
    E: tl.constexpr,
    EP: tl.constexpr,
    GROUP: tl.constexpr,
    ONE_GROUP: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Adds the partial sums of ``program`` to those of the others.

    ``partials`` has a row for each program and one for each group of ``GROUP``, ``counters`` one counter for all groups
    and one for each.
    """
    store_partial(partials, program, count, prob, gate, tokens, nonfinite, logsumexp_sq, entropy, E, EP)
    group = program // GROUP
    first = group * GROUP
    last = tl.minimum(first + GROUP, num_programs)
    if arrives_last(counters + 1 + group, last - first):
        if ONE_GROUP:
            store_sums(
                partials, first, last, tokens_per_expert, load, prob_sum, gate_sum,
                num_tokens, nonfinite_tokens, logsumexp_sq_sum, entropy_sum, E, EP, BLOCK_P,
            )  # fmt: skip
        else:
            store_partial(
                partials,
                num_programs + group,
                sum_experts(partials, first, last, 0, E, EP, BLOCK_P),
                sum_experts(partials, first, last, 1, E, EP, BLOCK_P),
                sum_experts(partials, first, last, 2, E, EP, BLOCK_P),
                sum_tokens(partials, first, last, 0, E, BLOCK_P),
                sum_tokens(partials, first, last, 1, E, BLOCK_P),
                sum_tokens(partials, first, last, 2, E, BLOCK_P),
                sum_tokens(partials, first, last, 3, E, BLOCK_P),
                E,
                EP,
            )
            groups = tl.cdiv(num_programs, GROUP)
            if arrives_last(counters, groups):
                store_sums(
                    partials, num_programs, num_programs + groups, tokens_per_expert, load, prob_sum, gate_sum,
                    num_tokens, nonfinite_tokens, logsumexp_sq_sum, entropy_sum, E, EP, BLOCK_P,
                )  # fmt: skip
