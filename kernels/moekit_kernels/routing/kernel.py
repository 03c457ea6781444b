"""Triton kernels of routing: one program holds some whole rows of logits in registers."""

import triton
import triton.language as tl

from moekit_kernels.routing.kernel_decision import decide
from moekit_kernels.routing.kernel_gradient import logit_gradients
from moekit_kernels.routing.kernel_scores import keep_finite, load_rows
from moekit_kernels.routing.kernel_sums import add_up


@triton.jit
def route_fwd_kernel(
    logits,
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
    partials,
    counters,
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
    GROUP_SCORE: tl.constexpr,
    GROUP: tl.constexpr,
    ONE_GROUP: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Decides about all rows of tokens, a block of rows at a time, and adds the sums up."""
    cols = tl.arange(0, EP)[None, :]
    count = tl.zeros((ROWS, EP), tl.int32)
    prob = tl.zeros((ROWS, EP), tl.float32)
    gate = tl.zeros((ROWS, EP), tl.float32)
    entropy = tl.zeros((ROWS, EP), tl.float32)
    logsumexp_sq = tl.zeros((ROWS, 1), tl.float32)
    tokens = tl.zeros((ROWS, 1), tl.int32)
    nonfinite = tl.zeros((ROWS, 1), tl.int32)
    for block in tl.range(tl.program_id(0), tl.cdiv(num_tokens, ROWS), tl.num_programs(0), disable_licm=True):
        rows = block * ROWS + tl.arange(0, ROWS)
        x = load_rows(logits, rows, cols, num_tokens, stride_t, stride_e, E)
        more = decide(
            x, rows, num_tokens, selection_bias, mask, stride_mask, scaling_factor,
            gates, ids, finite_logits, probs, valid_rows,
            E, EP, ROWS, TOP_K, KP, SCORING, RENORMALIZE, GROUPS, TOP_GROUPS, GROUP_SCORE,
        )  # fmt: skip
        count += more[0]
        prob += more[1]
        gate += more[2]
        entropy += more[3]
        logsumexp_sq += more[4]
        tokens += more[5]
        nonfinite += more[6]
    add_up(
        tl.sum(count, axis=0),
        tl.sum(prob, axis=0),
        tl.sum(gate, axis=0),
        tl.sum(tl.sum(tokens, axis=1), axis=0),
        tl.sum(tl.sum(nonfinite, axis=1), axis=0),
        tl.sum(tl.sum(logsumexp_sq, axis=1), axis=0),
        tl.sum(tl.sum(entropy, axis=1), axis=0),
        tl.program_id(0),
        tl.num_programs(0),
        partials, counters, tokens_per_expert, load, prob_sum, gate_sum,
        num_routed, num_nonfinite, logsumexp_sq_sum, entropy_sum, E, EP, GROUP, ONE_GROUP, BLOCK_P,
    )  # fmt: skip


@triton.jit
def route_bwd_kernel(
    d_gates,
    d_finite_logits,
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
    """The gradient of the logits from those of all outputs."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, EP)[None, :]
    x, valid = keep_finite(load_rows(logits, rows, cols, num_tokens, stride_t, stride_e, E))
    d_x = logit_gradients(
        x, valid, rows, num_tokens,
        d_gates, d_finite_logits, d_probs, d_prob_sum, d_gate_sum, d_logsumexp_sq_sum, d_entropy_sum,
        ids, mask, stride_mask, stride_logits_t, stride_logits_e, stride_probs_t, stride_probs_e, scaling_factor,
        E, EP, ROWS, TOP_K, SCORING, RENORMALIZE,
    )  # fmt: skip
    row = rows.to(tl.int64)[:, None]
    tl.store(d_logits + row * E + cols, d_x, mask=(row < num_tokens) & (cols < E))
