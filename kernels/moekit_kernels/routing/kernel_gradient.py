"""The gradient of a tile of logits, shared by the routing kernels. Triton only."""

import triton
import triton.language as tl

from moekit_kernels.routing.kernel_scores import load_counted, log_score, log_score_slope, score_of, softmax


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
def logit_gradients(
    x,
    valid,
    rows,
    num_tokens,
    d_gates,
    d_logits,
    d_probs,
    d_prob_sum,
    d_gate_sum,
    d_logsumexp_sq_sum,
    d_entropy_sum,
    ids,
    mask,
    stride_mask,
    stride_logits_t,
    stride_logits_e,
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
    """``(ROWS, EP)``, the gradient of the finite logits ``x`` of ``rows``; everything but the choice is computed anew.

    It is zero for tokens that are not ``valid``, and in rows and columns outside.
    """
    cols = tl.arange(0, EP)[None, :]
    is_expert = cols < E
    counted = load_counted(mask, rows, num_tokens, stride_mask) & valid
    row = rows.to(tl.int64)[:, None]
    inside = (row < num_tokens) & is_expert
    ELEMENTWISE: tl.constexpr = SCORING == "sigmoid" or SCORING == "sqrt_softplus"
    z = log_score(x, SCORING)
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
        elif ELEMENTWISE:
            d_x += d_gate * score_of(x, SCORING) * log_score_slope(x, SCORING)
        else:
            d_p += d_gate
    d_z += p * (d_p - tl.sum(tl.where(is_expert, p * d_p, 0.0), axis=1)[:, None])
    d_x += d_z * log_score_slope(x, SCORING) if ELEMENTWISE else d_z
    if d_logsumexp_sq_sum is not None:
        if ELEMENTWISE:
            p, largest, rest = softmax(x, is_expert)
        d_x += tl.where(counted, 2.0 * (largest + rest) * tl.load(d_logsumexp_sq_sum) * p, 0.0)
    if d_logits is not None:
        places = row * stride_logits_t + cols.to(tl.int64) * stride_logits_e
        d_x += tl.load(d_logits + places, mask=inside, other=0.0)
    return tl.where(valid & inside, d_x, 0.0)
