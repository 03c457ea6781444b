"""The grouped GEMM kernel: forward with bias and activation.

Persistent: a fixed number of programs walks over the tiles, whose number only the device knows. In GEMM terms
M are rows of a plan, N columns of the output, K the depth.
"""

import triton
import triton.language as tl

from moekit_kernels.grouped_gemm.kernel_pairs import load_pair_row, store_pair_tile
from moekit_kernels.grouped_gemm.kernel_tiles import halves, pair_product, product, row_tile, weight_descriptor
from moekit_kernels.kernel_language import act


@triton.jit
def _finish(
    result, value, bias, pre, out, inside, column, known, num_columns, stride_om, stride_pm,
    ACTIVATION: tl.constexpr, PAIR: tl.constexpr, INTERLEAVED: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """What follows the product of a strip of columns: bias, activation, stores.

    ``pre`` and ``out`` point to the first row of the tile. The bias ends at the column ``known``. Pre-activations are
    rounded, kept or not: with and without gradients, the same bits.
    """
    columns = column + tl.arange(0, BLOCK_N)
    mask = inside[:, None] & (columns < num_columns)[None, :]
    dtype: tl.constexpr = out.dtype.element_ty
    if PAIR:
        if bias is not None:
            gate_bias, value_bias = load_pair_row(bias, column, known, num_columns, INTERLEAVED, BLOCK_N)
            result += gate_bias[None, :]
            value += value_bias[None, :]
        seen, seen_value = result.to(dtype), value.to(dtype)
        if pre is not None:
            store_pair_tile(
                pre, inside, stride_pm, column, num_columns, seen, seen_value, INTERLEAVED, BLOCK_M, BLOCK_N
            )
        result = act(seen.to(tl.float32), ACTIVATION) * seen_value.to(tl.float32)
    else:
        if bias is not None:
            result += tl.load(bias + columns, mask=columns < known, other=0.0).to(tl.float32)[None, :]
        if ACTIVATION != "none" or pre is not None:
            seen = result.to(dtype)
            if pre is not None:
                places = tl.arange(0, BLOCK_M)[:, None] * stride_pm + columns[None, :]
                tl.store(pre + places, seen, mask=mask)
            result = act(seen.to(tl.float32), ACTIVATION)
    in_tile = tl.arange(0, BLOCK_M)[:, None] * stride_om
    tl.store(out + (in_tile + columns[None, :]), result, mask=mask)


@triton.jit(do_not_specialize=["num_rows", "num_inputs", "num_experts"])
def grouped_gemm_fwd_kernel(
    x_ptr, w_ptr, bias_ptr, out_ptr, pre_ptr, gather_ptr, offsets_ptr, tiles_ptr,
    num_rows, num_inputs, num_experts, num_columns, weight_columns, K,
    stride_xm, stride_we, stride_wn, stride_wk, stride_be, stride_om, stride_pm,
    ACTIVATION: tl.constexpr, PAIR: tl.constexpr, INTERLEAVED: tl.constexpr, X_TMA: tl.constexpr, W_TMA: tl.constexpr,
    K_MAJOR: tl.constexpr, EVEN_K: tl.constexpr, PRECISION: tl.constexpr, ALL_ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """``out[r] = act(w[e(r)] x[gather[r]] + bias[e(r)])``; without ``gather_ptr`` row ``r`` of ``x``.

    ``PAIR`` reads two columns for one, a gate and its value; ``pre_ptr`` takes the pre-activations. ``ALL_ROWS``
    writes zeros to unassigned rows, which else stay as they are.
    """
    w, x = w_ptr, x_ptr
    if W_TMA:
        w = weight_descriptor(
            w_ptr, num_experts, weight_columns, K, stride_we, stride_wn, stride_wk, K_MAJOR, BLOCK_N, BLOCK_K,
            PAIR and INTERLEAVED,
        )  # fmt: skip
    if X_TMA:
        x = tl.make_tensor_descriptor(x_ptr, [num_inputs, K], [stride_xm, 1], [BLOCK_M, BLOCK_K])
    num_n = tl.cdiv(num_columns, BLOCK_N)
    num_tiles = tl.load(tiles_ptr + ALL_ROWS) * num_n
    for index in range(tl.program_id(0), num_tiles, tl.num_programs(0)):
        expert, first_row, rows, end, block_n = row_tile(
            index, tiles_ptr, offsets_ptr, num_rows, num_n, num_experts, ALL_ROWS, BLOCK_M, GROUP_M
        )
        inside = rows < end
        places = tl.where(inside, rows, first_row)
        sources = places if gather_ptr is None else tl.load(gather_ptr + places)
        row_offsets = sources.to(tl.int64) * stride_xm
        alive = expert < num_experts
        k_tiles = tl.where(alive, tl.cdiv(K, BLOCK_K), 0)
        column = block_n * BLOCK_N
        if PAIR:
            result, value = pair_product(
                x, w, first_row, row_offsets, expert, column, num_columns, K, k_tiles, stride_we, stride_wn, stride_wk,
                INTERLEAVED, X_TMA, W_TMA, K_MAJOR, EVEN_K, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
        else:
            result = product(
                x, w, first_row, row_offsets, expert, column, K, k_tiles, stride_we, stride_wn, stride_wk,
                weight_columns, X_TMA, W_TMA, K_MAJOR, EVEN_K, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
            value = result
        bias = None if bias_ptr is None else bias_ptr + tl.cast(expert, tl.int64) * stride_be
        pre = None if pre_ptr is None else pre_ptr + tl.cast(first_row, tl.int64) * stride_pm
        out = out_ptr + tl.cast(first_row, tl.int64) * stride_om
        known = tl.where(alive, num_columns, 0)
        # Half by half: a whole tile, its neighbours in the epilogue and all addresses do not fit the registers.
        left, right = halves(result, BLOCK_M, BLOCK_N)
        left_value, right_value = halves(value, BLOCK_M, BLOCK_N)
        _finish(
            left, left_value, bias, pre, out, inside, column, known, num_columns, stride_om, stride_pm, ACTIVATION,
            PAIR, INTERLEAVED, BLOCK_M, BLOCK_N // 2,
        )  # fmt: skip
        _finish(
            right, right_value, bias, pre, out, inside, column + BLOCK_N // 2, known, num_columns, stride_om,
            stride_pm, ACTIVATION, PAIR, INTERLEAVED, BLOCK_M, BLOCK_N // 2,
        )  # fmt: skip
