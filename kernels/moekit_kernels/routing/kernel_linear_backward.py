"""Triton kernel of the gradients of routing with the gate's linear layer in it."""

import triton
import triton.language as tl

from moekit_kernels.kernel_language import arrives_last, dot
from moekit_kernels.routing.kernel_linear_gradient import add_bias, store_logit_gradients
from moekit_kernels.routing.kernel_products import part


@triton.jit
def pick(first, second, third, INDEX: tl.constexpr):
    """One of three tiles."""
    return first if INDEX == 0 else second if INDEX == 1 else third


@triton.jit
def input_gradient_in_pieces(
    grad_parts,
    weight,
    row,
    is_row,
    column,
    size,
    DIM: tl.constexpr,
    E: tl.constexpr,
    EP: tl.constexpr,
    PIECE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PARTS: tl.constexpr,
    W_PARTS: tl.constexpr,
    X_ORDER: tl.constexpr,
):
    """The gradient ``(ROWS, BLOCK_D)`` of ``x``, from ``PIECE`` experts at a time.

    All parts of both operands for 256 experts at once are more than the registers hold. Pieces are added up by float32
    arithmetic: see :func:`minus_product`.
    """
    minus = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for first in tl.static_range(0, EP, PIECE):
        expert = first + tl.arange(0, PIECE)
        g_at = grad_parts + row * E + expert[None, :]
        is_grad = is_row & (expert < E)[None, :]
        g0 = tl.load(g_at, mask=is_grad, other=0.0)
        g1 = tl.load(g_at + size, mask=is_grad, other=0.0)
        g2 = g1
        if PARTS > 2:
            g2 = tl.load(g_at + 2 * size, mask=is_grad, other=0.0)
        w_at = weight + expert[:, None] * DIM + column[None, :]
        w_tile = tl.load(w_at, mask=(expert < E)[:, None] & (column < DIM)[None, :], other=0.0)
        total = tl.zeros((ROWS, BLOCK_D), tl.float32)
        for step in tl.static_range(X_ORDER + 1):
            for j in tl.static_range(W_PARTS):
                if X_ORDER - step - j >= 0 and X_ORDER - step - j < PARTS:
                    g = pick(g0, g1, g2, X_ORDER - step - j)
                    total = dot(g, w_tile if W_PARTS == 1 else part(w_tile, j), total, "ieee")
        minus -= total
    return -minus


@triton.jit
def add_weight(
    d_weight,
    partials,
    counter,
    acc,
    chunk,
    block,
    DIM: tl.constexpr,
    E: tl.constexpr,
    EP: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """Adds a block of columns ``(BLOCK_D, EP)`` of the gradient of the weight up over chunks."""
    expert = tl.arange(0, EP)[None, :]
    column = block * BLOCK_D + tl.arange(0, BLOCK_D)[:, None]
    inside = (expert < E) & (column < DIM)
    d_at = d_weight + expert * DIM + column
    if CHUNKS == 1:
        tl.store(d_at, acc.to(d_weight.dtype.element_ty), mask=inside)
    else:
        # Partial products are stored in the order of the tile.
        tile = tl.arange(0, BLOCK_D)[:, None] * EP + expert
        size = ((DIM + BLOCK_D - 1) // BLOCK_D) * BLOCK_D * EP
        at = partials + block * (BLOCK_D * EP) + tile
        tl.store(at + chunk.to(tl.int64) * size, acc)
        if arrives_last(counter, CHUNKS):
            acc = tl.zeros((BLOCK_D, EP), tl.float32)
            for one in range(CHUNKS):
                acc += tl.load(at + tl.full((), one, tl.int64) * size, cache_modifier=".cg")
            tl.store(d_at, acc.to(d_weight.dtype.element_ty), mask=inside)


@triton.jit
def route_linear_bwd_kernel(
    d_gates,
    d_finite_logits,
    d_probs,
    d_prob_sum,
    d_gate_sum,
    d_logsumexp_sq_sum,
    d_entropy_sum,
    x,
    weight,
    logits,
    valid_rows,
    ids,
    mask,
    d_x,
    d_weight,
    d_bias,
    grad_parts,
    partials,
    bias_partials,
    counters,
    num_tokens,
    rows_per_chunk,
    stride_x,
    stride_mask,
    stride_logits_t,
    stride_logits_e,
    stride_probs_t,
    stride_probs_e,
    scaling_factor,
    DIM: tl.constexpr,
    E: tl.constexpr,
    EP: tl.constexpr,
    ROWS: tl.constexpr,
    SUB_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SLICES: tl.constexpr,
    CHUNKS: tl.constexpr,
    PARTS: tl.constexpr,
    X_PARTS: tl.constexpr,
    W_PARTS: tl.constexpr,
    X_ORDER: tl.constexpr,
    W_ORDER: tl.constexpr,
    TOP_K: tl.constexpr,
    SCORING: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    APART: tl.constexpr,
):
    """The gradients of ``x``, ``weight`` and ``bias``, of those that are not None.

    A program has a chunk of tokens and a slice of the columns of D. First it computes the gradient of its logits and
    writes it as bfloat16 parts, ``grad_parts (PARTS, T, E)``; the programs of one chunk write the same numbers. Where
    ``APART``, that and the gradient of the bias are done. Then, for each block of columns, it multiplies these by the
    weight for the gradient of ``x``, and by ``x`` for that of the weight. Of several chunks, the last program of a
    block of columns adds the products up.
    """
    BLOCKS: tl.constexpr = (DIM + BLOCK_D - 1) // BLOCK_D
    SHARE: tl.constexpr = (BLOCKS + SLICES - 1) // SLICES
    # See input_gradient_in_pieces.
    PIECE: tl.constexpr = EP if X_PARTS == 1 or EP <= 128 else 64 if X_PARTS == 2 else 32
    slice_ = tl.program_id(0) % SLICES
    chunk = tl.program_id(0) // SLICES
    begin = chunk * rows_per_chunk
    end = tl.minimum(begin + rows_per_chunk, num_tokens)
    expert = tl.arange(0, EP)
    is_expert = expert < E
    size = tl.cast(num_tokens, tl.int64) * E  # a number has no method `to`
    if not APART:
        bias_sum = tl.zeros((SUB_ROWS, EP), tl.float32)
        for start in range(begin, end, SUB_ROWS):
            grad = store_logit_gradients(
                d_gates, d_finite_logits, d_probs, d_prob_sum, d_gate_sum, d_logsumexp_sq_sum, d_entropy_sum,
                logits, valid_rows, ids, mask, grad_parts, start, end, num_tokens,
                stride_mask, stride_logits_t, stride_logits_e, stride_probs_t, stride_probs_e, scaling_factor,
                E, EP, SUB_ROWS, PARTS, TOP_K, SCORING, RENORMALIZE,
            )  # fmt: skip
            if d_bias is not None:
                bias_sum += grad
        if d_bias is not None and slice_ == 0:
            add_bias(d_bias, bias_partials, counters + BLOCKS, tl.sum(bias_sum, axis=0), chunk, E, EP, CHUNKS)
        tl.debug_barrier()  # parts that other threads have stored are read below
    if d_x is not None or d_weight is not None:
        for block in tl.range(slice_ * SHARE, tl.minimum((slice_ + 1) * SHARE, BLOCKS), disable_licm=True):
            column = block * BLOCK_D + tl.arange(0, BLOCK_D)
            is_column = column < DIM
            if PIECE == EP:
                w_at = weight + expert[:, None] * DIM + column[None, :]
                w_tile = tl.load(w_at, mask=is_expert[:, None] & is_column[None, :], other=0.0)
            minus = tl.zeros((BLOCK_D, EP), tl.float32)
            for start in range(begin, end, ROWS):
                rows = start + tl.arange(0, ROWS)
                row = rows.to(tl.int64)[:, None]
                is_row = (rows < end)[:, None]
                g_at = grad_parts + row * E + expert[None, :]
                is_grad = is_row & is_expert[None, :]
                g0 = tl.load(g_at, mask=is_grad, other=0.0)
                g1 = tl.load(g_at + size, mask=is_grad, other=0.0)
                g2 = g1
                if PARTS > 2:
                    g2 = tl.load(g_at + 2 * size, mask=is_grad, other=0.0)
                whole = is_row & is_column[None, :]
                if d_x is not None:
                    if PIECE < EP:
                        d_tile = input_gradient_in_pieces(
                            grad_parts, weight, row, is_row, column, size,
                            DIM, E, EP, PIECE, ROWS, BLOCK_D, PARTS, W_PARTS, X_ORDER,
                        )  # fmt: skip
                    else:
                        d_tile = tl.zeros((ROWS, BLOCK_D), tl.float32)
                        for step in tl.static_range(X_ORDER + 1):
                            for j in tl.static_range(W_PARTS):
                                if X_ORDER - step - j >= 0 and X_ORDER - step - j < PARTS:
                                    g = pick(g0, g1, g2, X_ORDER - step - j)
                                    d_tile = dot(g, w_tile if W_PARTS == 1 else part(w_tile, j), d_tile, "ieee")
                    tl.store(d_x + row * DIM + column[None, :], d_tile.to(d_x.dtype.element_ty), mask=whole)
                if d_weight is not None:
                    x_tile = tl.trans(tl.load(x + row * stride_x + column[None, :], mask=whole, other=0.0))
                    total = tl.zeros((BLOCK_D, EP), tl.float32)
                    for step in tl.static_range(W_ORDER + 1):
                        for j in tl.static_range(X_PARTS):
                            if W_ORDER - step - j >= 0 and W_ORDER - step - j < PARTS:
                                g = pick(g0, g1, g2, W_ORDER - step - j)
                                total = dot(x_tile if X_PARTS == 1 else part(x_tile, j), g, total, "ieee")
                    minus -= total  # see minus_product
            if d_weight is not None:
                add_weight(d_weight, partials, counters + block, -minus, chunk, block, DIM, E, EP, BLOCK_D, CHUNKS)
