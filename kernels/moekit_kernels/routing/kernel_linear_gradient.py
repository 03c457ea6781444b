"""The gradient of the logits where the gate's linear layer is in the kernel, written as parts for tensor cores.

For few tokens the kernel of the products computes it. For many it is a launch of its own
(:func:`route_linear_grad_kernel`): along with the products it is computed anew for every slice of columns, a few rows
at a time, while the tensor cores wait (measured on an H200, 32,768 tokens of width 2048, 128 experts: 1.22 ms together,
0.24 ms apart).
"""

import triton
import triton.language as tl

from moekit_kernels.kernel_language import arrives_last
from moekit_kernels.routing.kernel_gradient import logit_gradients
from moekit_kernels.routing.kernel_products import part
from moekit_kernels.routing.kernel_scores import load_rows


@triton.jit
def add_bias(d_bias, partials, counter, total, chunk, E: tl.constexpr, EP: tl.constexpr, chunks):
    """Adds the gradient of the bias up over chunks."""
    expert = tl.arange(0, EP)
    tl.store(partials + chunk * EP + expert, total)
    if arrives_last(counter, chunks):
        total = tl.zeros((EP,), tl.float32)
        for start in range(0, chunks, 8):
            one = start + tl.arange(0, 8)[:, None]
            at = partials + one * EP + expert[None, :]
            total += tl.sum(tl.load(at, mask=one < chunks, other=0.0, cache_modifier=".cg"), axis=0)
        tl.store(d_bias + expert, total.to(d_bias.dtype.element_ty), mask=expert < E)


@triton.jit
def store_logit_gradients(
    d_gates,
    d_finite_logits,
    d_probs,
    d_prob_sum,
    d_gate_sum,
    d_logsumexp_sq_sum,
    d_entropy_sum,
    logits,
    valid_rows,
    ids,
    mask,
    grad_parts,
    start,
    end,
    num_tokens,
    stride_mask,
    stride_logits_t,
    stride_logits_e,
    stride_probs_t,
    stride_probs_e,
    scaling_factor,
    E: tl.constexpr,
    EP: tl.constexpr,
    SUB_ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    TOP_K: tl.constexpr,
    SCORING: tl.constexpr,
    RENORMALIZE: tl.constexpr,
):
    """Computes the gradient of the logits of the rows ``start``, ..., returns it, and writes its parts, if any."""
    expert = tl.arange(0, EP)
    rows = start + tl.arange(0, SUB_ROWS)
    inside = rows < end
    valid = tl.load(valid_rows + rows, mask=inside, other=0)[:, None] != 0
    z = load_rows(logits, rows, expert[None, :], end, E, 1, E)
    grad = logit_gradients(
        z, valid, rows, end,
        d_gates, d_finite_logits, d_probs, d_prob_sum, d_gate_sum, d_logsumexp_sq_sum, d_entropy_sum,
        ids, mask, stride_mask, stride_logits_t, stride_logits_e, stride_probs_t, stride_probs_e, scaling_factor,
        E, EP, SUB_ROWS, TOP_K, SCORING, RENORMALIZE,
    )  # fmt: skip
    if grad_parts is not None:
        at = grad_parts + rows.to(tl.int64)[:, None] * E + expert[None, :]
        for i in tl.static_range(PARTS):
            places = at + i * (tl.cast(num_tokens, tl.int64) * E)  # a number has no method `to`
            tl.store(places, part(grad, i), mask=inside[:, None] & (expert < E)[None, :])
    return grad


@triton.jit
def route_linear_grad_kernel(
    d_gates,
    d_finite_logits,
    d_probs,
    d_prob_sum,
    d_gate_sum,
    d_logsumexp_sq_sum,
    d_entropy_sum,
    logits,
    valid_rows,
    ids,
    mask,
    d_bias,
    grad_parts,
    bias_partials,
    counters,
    num_tokens,
    stride_mask,
    stride_logits_t,
    stride_logits_e,
    stride_probs_t,
    stride_probs_e,
    scaling_factor,
    E: tl.constexpr,
    EP: tl.constexpr,
    SUB_ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    TOP_K: tl.constexpr,
    SCORING: tl.constexpr,
    RENORMALIZE: tl.constexpr,
):
    """The gradient of the logits as bfloat16 parts, ``grad_parts (PARTS, T, E)``, and that of the bias, if any."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    bias_sum = tl.zeros((SUB_ROWS, EP), tl.float32)
    for start in range(program * SUB_ROWS, num_tokens, programs * SUB_ROWS):
        grad = store_logit_gradients(
            d_gates, d_finite_logits, d_probs, d_prob_sum, d_gate_sum, d_logsumexp_sq_sum, d_entropy_sum,
            logits, valid_rows, ids, mask, grad_parts, start, num_tokens, num_tokens,
            stride_mask, stride_logits_t, stride_logits_e, stride_probs_t, stride_probs_e, scaling_factor,
            E, EP, SUB_ROWS, PARTS, TOP_K, SCORING, RENORMALIZE,
        )  # fmt: skip
        if d_bias is not None:
            bias_sum += grad
    if d_bias is not None:
        add_bias(d_bias, bias_partials, counters, tl.sum(bias_sum, axis=0), program, E, EP, programs)
