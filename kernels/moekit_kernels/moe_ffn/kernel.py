"""Backward kernels that only the whole expert FFN needs: through the activation, and gates through a bias.

The gradient of a gate is ``<dA', A>`` with ``dA' = dOut W_down`` before weighting (SonicMoE,
https://arxiv.org/abs/2512.14080), so neither the experts' output nor the activation is kept from forward.
"""

import triton
import triton.language as tl

from moekit_kernels.grouped_gemm.kernel_pairs import load_pair_tile, store_pair_tile
from moekit_kernels.grouped_gemm.kernel_tiles import product, row_descriptor, row_tile, strips, weight_descriptor
from moekit_kernels.kernel_language import act_and_slope, prefetch


@triton.jit
def _load_pre(
    pre, inside, stride_pm, column, num_columns, PAIR: tl.constexpr, INTERLEAVED: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Pre-activations of a strip, of the gate and of the value; the same twice where there is one."""
    if PAIR:
        return load_pair_tile(pre, inside, stride_pm, column, num_columns, INTERLEAVED, BLOCK_M, BLOCK_N)
    else:
        columns = column + tl.arange(0, BLOCK_N)
        mask = inside[:, None] & (columns < num_columns)[None, :]
        seen = tl.load(pre + (tl.arange(0, BLOCK_M)[:, None] * stride_pm + columns[None, :]), mask=mask, other=0.0)
        return seen, seen


@triton.jit
def _through_activation(
    parts, grad, gate, seen, value, column, inside, hidden, dpre, weighted, num_columns, stride_pm,
    ACTIVATION: tl.constexpr, PAIR: tl.constexpr, INTERLEAVED: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Writes ``dPre`` and ``gate * A`` of a strip of columns; adds ``<dA', A>`` over them to ``parts``.

    Pointers are to the first row of the tile; ``hidden`` is where A was kept, or None.
    """
    columns = column + tl.arange(0, BLOCK_N)
    mask = inside[:, None] & (columns < num_columns)[None, :]
    in_tile = tl.arange(0, BLOCK_M)[:, None]
    narrow = in_tile * num_columns + columns[None, :]
    weighted_grad = grad * gate
    a, slope = act_and_slope(seen.to(tl.float32), ACTIVATION)
    if PAIR:
        value = value.to(tl.float32)
        if ACTIVATION.takes_value:
            a, by_gate, by_value = ACTIVATION.with_derivatives(a, value, *ACTIVATION.constants)
            store_pair_tile(
                dpre, inside, stride_pm, column, num_columns, weighted_grad * by_gate, weighted_grad * by_value,
                INTERLEAVED, BLOCK_M, BLOCK_N,
            )  # fmt: skip
        else:
            store_pair_tile(
                dpre, inside, stride_pm, column, num_columns, weighted_grad * value * slope, weighted_grad * a,
                INTERLEAVED, BLOCK_M, BLOCK_N,
            )  # fmt: skip
            a = a * value
    else:
        tl.store(dpre + (in_tile * stride_pm + columns[None, :]), weighted_grad * slope, mask=mask)
    if hidden is not None:
        a = tl.load(hidden + narrow, mask=mask, other=0.0).to(tl.float32)
    tl.store(weighted + narrow, a * gate, mask=mask)
    # Columns past the last add nothing. Sums of 8 stay in one thread.
    WIDTH: tl.constexpr = 8 if BLOCK_N > 8 else BLOCK_N
    if not ACTIVATION.zero_at_zero:
        a = tl.where(mask, a, 0.0)
    return parts + tl.sum(tl.reshape(grad * a, (BLOCK_M, BLOCK_N // WIDTH, WIDTH)), 2)


@triton.jit
def _prefetch_pre(
    pre, rows, column, num_columns, stride_pm, PAIR: tl.constexpr, INTERLEAVED: tl.constexpr, BLOCK_N: tl.constexpr
):
    """Brings the pre-activations of a tile to the L2 cache while its product is computed."""
    # One in 64 bytes: whether the cache takes a longer line at once is not documented.
    NUMBERS: tl.constexpr = 64 // (pre.dtype.element_ty.primitive_bitwidth // 8)
    STEP: tl.constexpr = NUMBERS // 2 if PAIR and INTERLEAVED else NUMBERS
    LINES: tl.constexpr = BLOCK_N // STEP if BLOCK_N > STEP else 1
    columns = tl.minimum(column + tl.arange(0, LINES) * STEP, num_columns - 1)
    if PAIR and INTERLEAVED:
        columns *= 2
    places = pre + (rows.to(tl.int64)[:, None] * stride_pm + columns[None, :])
    prefetch(places)
    if PAIR and not INTERLEAVED:
        prefetch(places + num_columns)


@triton.jit(do_not_specialize=["num_rows", "num_experts"])
def moe_ffn_bwd_act_kernel(
    dout_ptr, w_ptr, pre_ptr, hidden_ptr, gates_ptr, dpre_ptr, weighted_ptr, partial_ptr, token_ptr, slot_ptr,
    offsets_ptr, tiles_ptr, num_rows, num_experts, num_columns, K,
    stride_dm, stride_we, stride_wn, stride_wk, stride_pm,
    ACTIVATION: tl.constexpr, PAIR: tl.constexpr, INTERLEAVED: tl.constexpr, X_TMA: tl.constexpr, W_TMA: tl.constexpr,
    K_MAJOR: tl.constexpr, EVEN_K: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr, STRIP: tl.constexpr,
):  # fmt: skip
    """With ``dA' = dout[token[r]] W_down[e(r)]``: ``<dA', A>`` of these columns, ``gate * A`` and ``dPre``.

    Without ``token_ptr`` the rows of ``dout`` have the order of the plan; only then may descriptors read them
    (``X_TMA``), and the loops are one, as in the grouped GEMM.

    ``num_columns`` is F, the depth is the width of the output. ``hidden_ptr`` is A where it was kept. A tile of
    gradients, pre-activations and addresses does not fit the registers, so the epilogue takes ``STRIP`` columns at a
    time.
    """
    FLATTEN: tl.constexpr = X_TMA and W_TMA
    w, dout = w_ptr, dout_ptr
    if W_TMA:
        w = weight_descriptor(
            w_ptr, num_experts, num_columns, K, stride_we, stride_wn, stride_wk, K_MAJOR, BLOCK_N, BLOCK_K
        )
    if X_TMA:
        dout = row_descriptor(dout_ptr, num_rows, K, stride_dm, BLOCK_M, BLOCK_K)
    num_n = tl.cdiv(num_columns, BLOCK_N)
    num_m = tl.load(tiles_ptr)
    k_tiles = tl.cdiv(K, BLOCK_K)
    if FLATTEN:
        tl.assume(k_tiles > 0)
    for index in tl.range(tl.program_id(0), num_m * num_n, tl.num_programs(0), flatten=FLATTEN):
        expert, first_row, rows, end, block_n = row_tile(index, num_m, tiles_ptr, offsets_ptr, num_n, BLOCK_M, GROUP_M)
        inside = rows < end
        places = tl.where(inside, rows, first_row)
        column = block_n * BLOCK_N
        row_offsets = None
        if not X_TMA:
            sources = places if token_ptr is None else tl.load(token_ptr + places)
            row_offsets = sources.to(tl.int64) * stride_dm
        if W_TMA:
            _prefetch_pre(pre_ptr, places, column, num_columns, stride_pm, PAIR, INTERLEAVED, BLOCK_N)
        grad = product(
            dout, w, first_row, row_offsets, expert, column, K, k_tiles, stride_we, stride_wn, stride_wk, num_columns,
            X_TMA, W_TMA, K_MAJOR, EVEN_K, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        gate = tl.load(gates_ptr + tl.load(slot_ptr + places)).to(tl.float32)[:, None]
        first = tl.cast(first_row, tl.int64)
        pre, dpre = pre_ptr + first * stride_pm, dpre_ptr + first * stride_pm
        weighted = weighted_ptr + first * num_columns
        hidden = None if hidden_ptr is None else hidden_ptr + first * num_columns
        parts = tl.zeros((BLOCK_M, STRIP // 8 if STRIP > 8 else 1), tl.float32)
        grads = strips(grad, BLOCK_M, BLOCK_N, STRIP)
        seen, value = _load_pre(pre, inside, stride_pm, column, num_columns, PAIR, INTERLEAVED, BLOCK_M, STRIP)
        for i in tl.static_range(BLOCK_N // STRIP):
            now, now_value = seen, value
            if i + 1 < BLOCK_N // STRIP:
                seen, value = _load_pre(
                    pre, inside, stride_pm, column + (i + 1) * STRIP, num_columns, PAIR, INTERLEAVED, BLOCK_M, STRIP
                )
            parts = _through_activation(
                parts, grads[i], gate, now, now_value, column + i * STRIP, inside, hidden, dpre, weighted,
                num_columns, stride_pm, ACTIVATION, PAIR, INTERLEAVED, BLOCK_M, STRIP,
            )  # fmt: skip
        tl.store(partial_ptr + tl.cast(block_n, tl.int64) * num_rows + rows, tl.sum(parts, 1), mask=inside)


@triton.jit(do_not_specialize=["num_rows"])
def moe_ffn_bwd_bias_dot_kernel(
    part_ptr, dout_ptr, bias_ptr, token_ptr, offsets_ptr, num_rows, D, stride_dm, NUM_EXPERTS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """``part[r] = <dout[token[r]], bias[e(r)]>``: what a bias of the output adds to the gradient of a row's gate.

    The expert of a row is the number of experts that end at or before it.
    """
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    expert = tl.zeros((BLOCK_M,), tl.int32)
    for first in range(0, NUM_EXPERTS, BLOCK_E):
        others = first + tl.arange(0, BLOCK_E)
        ends = tl.load(offsets_ptr + 1 + others, mask=others < NUM_EXPERTS, other=num_rows).to(tl.int32)
        expert += tl.sum(((ends[None, :] <= rows[:, None]) & (others < NUM_EXPERTS)[None, :]).to(tl.int32), 1)
    inside = expert < NUM_EXPERTS
    sources = tl.load(token_ptr + rows, mask=inside, other=0).to(tl.int64) * stride_dm
    bias = bias_ptr + expert.to(tl.int64) * D
    acc = tl.zeros((BLOCK_M,), tl.float32)
    for d in range(0, D, BLOCK_D):
        columns = d + tl.arange(0, BLOCK_D)
        mask = inside[:, None] & (columns < D)[None, :]
        dout = tl.load(dout_ptr + sources[:, None] + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        acc += tl.sum(dout * tl.load(bias[:, None] + columns[None, :], mask=mask, other=0.0).to(tl.float32), 1)
    tl.store(part_ptr + rows, acc, mask=inside)
