"""Triton kernels of routing: one program holds some whole rows of logits in registers.

What has been chosen is marked inside the tile of sort keys, so sums are made in the layout of the logits,
without reading memory again.
"""

import triton
import triton.language as tl

from moekit_kernels.routing.kernel_ranking import CHOSEN, PADDING, first_of_largest, limit_to_groups, sort_key


@triton.jit
def softmax(z, where):
    """Softmax of each row over the columns ``where``, 0 in the others; the maximum, the log-sum-exp past it."""
    z = tl.where(where, z, -float("inf"))
    largest = tl.max(z, axis=1)[:, None]
    exps = tl.exp(z - largest)
    total = tl.sum(exps, axis=1)[:, None]
    return exps * (1.0 / total), largest, tl.log(total)


@triton.jit
def log_sigmoid(x):
    """``log(sigmoid(x))`` without overflow; its absolute error is that of one rounding."""
    return tl.minimum(x, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def sigmoid(x):
    """``1 / (1 + exp(-x))`` by an exponential that cannot overflow."""
    exps = tl.exp(-tl.abs(x))
    return tl.where(x >= 0.0, 1.0, exps) / (1.0 + exps)


@triton.jit
def load_rows(logits, rows, cols, num_tokens, stride_t, stride_e, E: tl.constexpr):
    """Some rows of logits in float32, rows that are not all finite set to zero; ``(ROWS, 1)`` rows kept."""
    inside = (rows < num_tokens)[:, None] & (cols < E)
    places = rows.to(tl.int64)[:, None] * stride_t + cols.to(tl.int64) * stride_e
    x = tl.load(logits + places, mask=inside, other=0.0).to(tl.float32)
    finite = (tl.abs(x) < float("inf")).to(tl.int32)
    valid = tl.min(finite, axis=1)[:, None] > 0
    return tl.where(valid, x, 0.0), valid


@triton.jit
def load_counted(mask, rows, num_tokens, stride_mask):
    """``(ROWS, 1)``: real rows that are in the mask."""
    inside = rows < num_tokens
    if mask is not None:
        inside = inside & (tl.load(mask + rows.to(tl.int64) * stride_mask, mask=inside, other=0) != 0)
    return inside[:, None]


@triton.jit
def route_fwd_kernel(
    logits,
    selection_bias,
    mask,
    gates,
    ids,
    probs,
    valid_rows,
    counts,
    sums,
    scalars,
    num_tokens,
    stride_t,
    stride_e,
    stride_mask,
    scaling_factor,
    E: tl.constexpr,
    EP: tl.constexpr,
    ROWS: tl.constexpr,
    TOP_K: tl.constexpr,
    KP: tl.constexpr,
    SCORING: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    GROUPS: tl.constexpr,
    TOP_GROUPS: tl.constexpr,
):
    """Decides about rows of tokens, and leaves one partial sum per program: the loop is over blocks of rows."""
    cols = tl.arange(0, EP)[None, :]
    places = tl.arange(0, KP)[None, :]
    is_expert = cols < E
    count = tl.zeros((ROWS, EP), tl.int32)
    prob_sum = tl.zeros((ROWS, EP), tl.float32)
    gate_sum = tl.zeros((ROWS, EP), tl.float32)
    logsumexp_sq = tl.zeros((ROWS, 1), tl.float32)
    entropy = tl.zeros((ROWS, EP), tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(num_tokens, ROWS), tl.num_programs(0)):
        rows = block * ROWS + tl.arange(0, ROWS)
        row = rows.to(tl.int64)[:, None]
        inside = row < num_tokens
        x, valid = load_rows(logits, rows, cols, num_tokens, stride_t, stride_e, E)
        z = log_sigmoid(x) if SCORING == "sigmoid" else x
        p, largest, rest = softmax(z, is_expert)
        tl.store(valid_rows + row, valid, mask=inside)
        tl.store(probs + row * E + cols, tl.where(valid, p, 0.0), mask=inside & is_expert)

        # Ranked by the logits where the scores grow with them, so that rounding of exp cannot reorder.
        score = x
        if selection_bias is not None or GROUPS > 0:
            if SCORING == "softmax":
                score = p
            elif SCORING == "sigmoid":
                score = sigmoid(x)
        if selection_bias is not None:
            score += tl.load(selection_bias + cols, mask=is_expert, other=0.0).to(tl.float32)
        key = tl.where(is_expert, sort_key(score), PADDING)
        if GROUPS > 0:
            key = limit_to_groups(key, score, cols, E, EP, ROWS, GROUPS, TOP_GROUPS)
        gate = z
        if not RENORMALIZE:
            gate = sigmoid(x) if SCORING == "sigmoid" else p
        top = tl.zeros((ROWS, KP), tl.int32)
        top_gate = tl.zeros((ROWS, KP), tl.float32)
        for k in range(TOP_K):
            first = first_of_largest(key, cols, EP)
            is_next = cols == first
            key = tl.where(is_next, CHOSEN, key)
            top = tl.where(places == k, first, top)
            top_gate = tl.where(places == k, tl.sum(tl.where(is_next, gate, 0.0), axis=1)[:, None], top_gate)
        chosen = key == CHOSEN
        if RENORMALIZE:
            gate, _, _ = softmax(z, chosen)
            top_gate, _, _ = softmax(top_gate, places < TOP_K)
        gate *= scaling_factor
        top_gate = tl.where(valid, top_gate * scaling_factor, float("nan"))
        is_place = inside & (places < TOP_K)
        tl.store(ids + row * TOP_K + places, top.to(tl.int64), mask=is_place)
        tl.store(gates + row * TOP_K + places, top_gate, mask=is_place)

        counted = load_counted(mask, rows, num_tokens, stride_mask) & valid
        count += (chosen & counted).to(tl.int32)
        prob_sum += tl.where(counted, p, 0.0)
        gate_sum += tl.where(chosen & counted, gate, 0.0)
        entropy += tl.where(counted & (p > 0.0), p * (largest - z + rest), 0.0)
        if SCORING == "sigmoid":
            _, largest, rest = softmax(x, is_expert)
        lse = largest + rest
        logsumexp_sq += tl.where(counted, lse * lse, 0.0)

    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, EP)
    tl.store(counts + program * E + column, tl.sum(count, axis=0), mask=column < E)
    tl.store(sums + program * 2 * E + column, tl.sum(prob_sum, axis=0), mask=column < E)
    tl.store(sums + (program * 2 + 1) * E + column, tl.sum(gate_sum, axis=0), mask=column < E)
    tl.store(scalars + program * 2, tl.sum(tl.reshape(logsumexp_sq, (ROWS,)), axis=0))
    tl.store(scalars + program * 2 + 1, tl.sum(tl.sum(entropy, axis=1), axis=0))


@triton.jit
def route_sums_fwd_kernel(
    counts,
    sums,
    scalars,
    tokens_per_expert,
    prob_sum,
    gate_sum,
    logsumexp_sq_sum,
    entropy_sum,
    num_partials,
    E: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Adds up the partial sums of all programs, always in the same order."""
    column = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    count = tl.zeros((BLOCK_E,), tl.int64)
    probs = tl.zeros((BLOCK_E,), tl.float32)
    gates = tl.zeros((BLOCK_E,), tl.float32)
    logsumexp_sq = tl.zeros((BLOCK_P,), tl.float32)
    entropy = tl.zeros((BLOCK_P,), tl.float32)
    for start in range(0, num_partials, BLOCK_P):
        partial = (start + tl.arange(0, BLOCK_P)).to(tl.int64)
        inside = (partial < num_partials)[:, None] & (column < E)[None, :]
        row, col = partial[:, None], column[None, :]
        count += tl.sum(tl.load(counts + row * E + col, mask=inside, other=0), axis=0)
        probs += tl.sum(tl.load(sums + row * 2 * E + col, mask=inside, other=0.0), axis=0)
        gates += tl.sum(tl.load(sums + (row * 2 + 1) * E + col, mask=inside, other=0.0), axis=0)
        logsumexp_sq += tl.load(scalars + partial * 2, mask=partial < num_partials, other=0.0)
        entropy += tl.load(scalars + partial * 2 + 1, mask=partial < num_partials, other=0.0)
    tl.store(tokens_per_expert + column, count, mask=column < E)
    tl.store(prob_sum + column, probs, mask=column < E)
    tl.store(gate_sum + column, gates, mask=column < E)
    if tl.program_id(0) == 0:
        tl.store(logsumexp_sq_sum, tl.sum(logsumexp_sq, axis=0))
        tl.store(entropy_sum, tl.sum(entropy, axis=0))


@triton.jit
def chosen_gradients(ids, d_gates, d_gate_sum, counted, rows, cols, num_tokens, E: tl.constexpr, TOP_K: tl.constexpr):
    """Which columns were chosen, and in these the gradient of the gate; 0 elsewhere."""
    inside = (rows < num_tokens)[:, None]
    row = rows.to(tl.int64)[:, None]
    chosen = (row < 0) & (cols < 0)
    gradient = tl.where(chosen, 1.0, 0.0)
    for k in range(TOP_K):
        is_chosen = cols == tl.load(ids + row * TOP_K + k, mask=inside, other=-1).to(tl.int32)
        chosen = chosen | is_chosen
        if d_gates is not None:
            gradient = tl.where(is_chosen, tl.load(d_gates + row * TOP_K + k, mask=inside, other=0.0), gradient)
    if d_gate_sum is not None:
        per_expert = tl.load(d_gate_sum + cols, mask=cols < E, other=0.0)
        gradient += tl.where(chosen & counted, per_expert, 0.0)
    return chosen, gradient


@triton.jit
def route_bwd_kernel(
    d_gates,
    d_probs,
    d_prob_sum,
    d_gate_sum,
    d_logsumexp_sq_sum,
    d_entropy_sum,
    logits,
    ids,
    mask,
    d_logits,
    num_tokens,
    stride_t,
    stride_e,
    stride_mask,
    stride_probs_t,
    stride_probs_e,
    scaling_factor,
    E: tl.constexpr,
    EP: tl.constexpr,
    ROWS: tl.constexpr,
    TOP_K: tl.constexpr,
    SCORING: tl.constexpr,
    RENORMALIZE: tl.constexpr,
):
    """The gradient of the logits from those of all outputs; everything but the choice is computed anew."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, EP)[None, :]
    is_expert = cols < E
    x, valid = load_rows(logits, rows, cols, num_tokens, stride_t, stride_e, E)
    counted = load_counted(mask, rows, num_tokens, stride_mask) & valid
    row = rows.to(tl.int64)[:, None]
    inside = (row < num_tokens) & is_expert
    z = log_sigmoid(x) if SCORING == "sigmoid" else x
    p, largest, rest = softmax(z, is_expert)

    d_z = tl.zeros((ROWS, EP), tl.float32)  # of the softmax's argument
    d_x = tl.zeros((ROWS, EP), tl.float32)  # of the logits, past that argument
    d_p = tl.zeros((ROWS, EP), tl.float32)
    if d_probs is not None:
        places = row * stride_probs_t + cols.to(tl.int64) * stride_probs_e
        d_p += tl.load(d_probs + places, mask=inside, other=0.0)
    if d_prob_sum is not None:
        d_p += tl.where(counted, tl.load(d_prob_sum + cols, mask=is_expert, other=0.0), 0.0)
    if d_entropy_sum is not None:
        log_p = tl.where(p > 0.0, z - largest - rest, 0.0)
        # The 1 of -(log p + 1) adds the same to every column, which the softmax below takes away.
        d_p -= tl.where(counted, tl.load(d_entropy_sum) * log_p, 0.0)
    if d_gates is not None or d_gate_sum is not None:
        chosen, d_gate = chosen_gradients(ids, d_gates, d_gate_sum, counted, rows, cols, num_tokens, E, TOP_K)
        d_gate *= scaling_factor
        if RENORMALIZE:
            q, _, _ = softmax(z, chosen | ((row >= num_tokens) & is_expert))
            d_z += q * (d_gate - tl.sum(q * d_gate, axis=1)[:, None])
        elif SCORING == "sigmoid":
            d_x += d_gate * sigmoid(x) * sigmoid(-x)
        else:
            d_p += d_gate
    d_z += p * (d_p - tl.sum(tl.where(is_expert, p * d_p, 0.0), axis=1)[:, None])
    d_x += d_z * sigmoid(-x) if SCORING == "sigmoid" else d_z
    if d_logsumexp_sq_sum is not None:
        if SCORING == "sigmoid":
            p, largest, rest = softmax(x, is_expert)
        d_x += tl.where(counted, 2.0 * (largest + rest) * tl.load(d_logsumexp_sq_sum) * p, 0.0)
    tl.store(d_logits + row * E + cols, tl.where(valid, d_x, 0.0), mask=inside)
