"""What a tile of logits decides, and what it adds to the sums: shared by the routing kernels. Triton only.

What has been chosen is marked inside the tile of sort keys, so sums are made in the layout of the logits,
without reading memory again.
"""

import triton
import triton.language as tl

from moekit_kernels.routing.kernel_ranking import CHOSEN, PADDING, first_of_largest, limit_to_groups, sort_key
from moekit_kernels.routing.kernel_scores import keep_finite, load_counted, log_score, score_of, softmax


@triton.jit
def decide(
    x,
    rows,
    num_tokens,
    selection_bias,
    mask,
    stride_mask,
    scaling_factor,
    gates,
    ids,
    finite_logits,
    probs,
    valid_rows,
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
):
    """Decides about the ``rows`` of tokens whose logits are ``x (ROWS, EP)`` and stores the decisions.

    Returns the summands of the rows that count: ``(ROWS, EP)`` of slots, probabilities, gates and entropy, and
    ``(ROWS, 1)`` of squared log-sum-exp, tokens and non-finite tokens.
    """
    cols = tl.arange(0, EP)[None, :]
    places = tl.arange(0, KP)[None, :]
    is_expert = cols < E
    row = rows.to(tl.int64)[:, None]
    inside = row < num_tokens
    x, valid = keep_finite(tl.where(inside & is_expert, x, 0.0))
    ELEMENTWISE: tl.constexpr = SCORING == "sigmoid" or SCORING == "sqrt_softplus"
    z = log_score(x, SCORING)
    p, largest, rest = softmax(z, is_expert)
    tl.store(valid_rows + row, valid, mask=inside)
    if finite_logits is not None:
        tl.store(finite_logits + row * E + cols, x, mask=inside & is_expert)
    if probs is not None:
        tl.store(probs + row * E + cols, tl.where(valid, p, 0.0), mask=inside & is_expert)

    # Ranked by the logits where the scores grow with them, so that rounding of exp cannot reorder.
    score = x
    if selection_bias is not None or (GROUPS > 0 and GROUP_SCORE == "top2_sum"):
        if SCORING == "softmax":
            score = p
        elif ELEMENTWISE:
            score = score_of(x, SCORING)
    if selection_bias is not None:
        score += tl.load(selection_bias + cols, mask=is_expert, other=0.0).to(tl.float32)
    key = tl.where(is_expert, sort_key(score), PADDING)
    if GROUPS > 0:
        key = limit_to_groups(key, score, cols, E, EP, ROWS, GROUPS, TOP_GROUPS, GROUP_SCORE)
    gate = z
    if not RENORMALIZE:
        gate = x if ELEMENTWISE else p  # a score would take more registers in the loop
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
    elif ELEMENTWISE:
        gate = score_of(x, SCORING)
        top_gate = score_of(top_gate, SCORING)
    gate *= scaling_factor
    top_gate = tl.where(valid, top_gate * scaling_factor, float("nan"))
    is_place = inside & (places < TOP_K)
    tl.store(ids + row * TOP_K + places, top.to(tl.int64), mask=is_place)
    tl.store(gates + row * TOP_K + places, top_gate, mask=is_place)

    real = load_counted(mask, rows, num_tokens, stride_mask)
    counted = real & valid
    entropy = tl.where(counted & (p > 0.0), p * (largest - z + rest), 0.0)
    if ELEMENTWISE:
        _, largest, rest = softmax(x, is_expert)
    lse = largest + rest
    return (
        (chosen & counted).to(tl.int32),
        tl.where(counted, p, 0.0),
        tl.where(chosen & counted, gate, 0.0),
        entropy,
        tl.where(counted, lse * lse, 0.0),
        counted.to(tl.int32),
        (real & (valid == 0)).to(tl.int32),
    )
