"""Backward kernels that only the whole expert FFN needs: through the activation, and gates through a bias.

The gradient of a gate is ``<dA', A>`` with ``dA' = dOut W_down`` before weighting (SonicMoE,
https://arxiv.org/abs/2512.14080), so neither the experts' output nor the activation is kept from forward.
"""

import triton
import triton.language as tl

from moekit_kernels.grouped_gemm.kernel_pairs import load_pair_tile, store_pair_tile
from moekit_kernels.grouped_gemm.kernel_tiles import halves, product, row_tile, weight_descriptor
from moekit_kernels.kernel_language import act_and_derivative


@triton.jit
def _through_activation(
    grad, gate, column, inside, pre, hidden, dpre, weighted, num_columns, stride_pm,
    ACTIVATION: tl.constexpr, PAIR: tl.constexpr, INTERLEAVED: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Writes ``dPre`` and ``gate * A`` of a strip of columns; returns ``<dA', A>`` over them for each row.

    Pointers are to the first row of the tile; ``hidden`` is where A was kept, or None.
    """
    columns = column + tl.arange(0, BLOCK_N)
    mask = inside[:, None] & (columns < num_columns)[None, :]
    in_tile = tl.arange(0, BLOCK_M)[:, None]
    narrow = in_tile * num_columns + columns[None, :]
    if PAIR:
        seen, value = load_pair_tile(pre, inside, stride_pm, column, num_columns, INTERLEAVED, BLOCK_M, BLOCK_N)
        value = value.to(tl.float32)
        a, slope = act_and_derivative(seen.to(tl.float32), ACTIVATION)
        weighted_grad = grad * gate
        store_pair_tile(
            dpre, inside, stride_pm, column, num_columns, weighted_grad * value * slope, weighted_grad * a, INTERLEAVED,
            BLOCK_M, BLOCK_N,
        )  # fmt: skip
        a = a * value
    else:
        wide = in_tile * stride_pm + columns[None, :]
        a, slope = act_and_derivative(tl.load(pre + wide, mask=mask, other=0.0).to(tl.float32), ACTIVATION)
        tl.store(dpre + wide, grad * gate * slope, mask=mask)
    if hidden is not None:
        a = tl.load(hidden + narrow, mask=mask, other=0.0).to(tl.float32)
    else:  # as it was rounded for the second product
        a = a.to(dpre.dtype.element_ty).to(tl.float32)
    tl.store(weighted + narrow, a * gate, mask=mask)
    # Columns past the last repeat it; only those that exist count.
    return tl.sum(tl.where(mask, grad * a, 0.0), 1)


@triton.jit(do_not_specialize=["num_rows", "num_experts"])
def moe_ffn_bwd_act_kernel(
    dout_ptr, w_ptr, pre_ptr, hidden_ptr, gates_ptr, dpre_ptr, weighted_ptr, partial_ptr, token_ptr, slot_ptr,
    offsets_ptr, tiles_ptr, num_rows, num_experts, num_columns, K,
    stride_dm, stride_we, stride_wn, stride_wk, stride_pm,
    ACTIVATION: tl.constexpr, PAIR: tl.constexpr, INTERLEAVED: tl.constexpr, W_TMA: tl.constexpr,
    K_MAJOR: tl.constexpr, EVEN_K: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """With ``dA' = dout[token[r]] W_down[e(r)]``: ``<dA', A>`` of these columns, ``gate * A`` and ``dPre``.

    Without ``token_ptr`` the rows of ``dout`` have the order of the plan.

    ``num_columns`` is F, the depth is the width of the output. ``hidden_ptr`` is A where it was kept.
    """
    w = w_ptr
    if W_TMA:
        w = weight_descriptor(
            w_ptr, num_experts, num_columns, K, stride_we, stride_wn, stride_wk, K_MAJOR, BLOCK_N, BLOCK_K, False
        )
    num_n = tl.cdiv(num_columns, BLOCK_N)
    num_tiles = tl.load(tiles_ptr) * num_n
    for index in range(tl.program_id(0), num_tiles, tl.num_programs(0)):
        expert, first_row, rows, end, block_n = row_tile(
            index, tiles_ptr, offsets_ptr, num_rows, num_n, num_experts, False, BLOCK_M, GROUP_M
        )
        inside = rows < end
        places = tl.where(inside, rows, first_row)
        sources = places if token_ptr is None else tl.load(token_ptr + places)
        row_offsets = sources.to(tl.int64) * stride_dm
        column = block_n * BLOCK_N
        grad = product(
            dout_ptr, w, first_row, row_offsets, expert, column, K, tl.cdiv(K, BLOCK_K), stride_we, stride_wn,
            stride_wk, num_columns, False, W_TMA, K_MAJOR, EVEN_K, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        gate = tl.load(gates_ptr + tl.load(slot_ptr + places)).to(tl.float32)[:, None]
        first = tl.cast(first_row, tl.int64)
        pre, dpre = pre_ptr + first * stride_pm, dpre_ptr + first * stride_pm
        weighted = weighted_ptr + first * num_columns
        hidden = None if hidden_ptr is None else hidden_ptr + first * num_columns
        per_row = tl.zeros((BLOCK_M,), tl.float32)
        # Strip by strip: a whole tile of gradients, pre-activations and addresses does not fit the registers.
        left, right = halves(grad, BLOCK_M, BLOCK_N)
        for half in tl.static_range(2):
            strip_a, strip_b = halves(left if half == 0 else right, BLOCK_M, BLOCK_N // 2)
            for quarter in tl.static_range(2):
                per_row += _through_activation(
                    strip_a if quarter == 0 else strip_b, gate, column + (2 * half + quarter) * (BLOCK_N // 4),
                    inside, pre, hidden, dpre, weighted, num_columns, stride_pm, ACTIVATION, PAIR, INTERLEAVED,
                    BLOCK_M, BLOCK_N // 4,
                )  # fmt: skip
        tl.store(partial_ptr + block_n.to(tl.int64) * num_rows + rows, per_row, mask=inside)


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
