"""The grouped GEMM kernel: forward with bias and activation.

Persistent: a fixed number of programs walks over the tiles, whose number only the device knows. In GEMM terms
M are rows of a plan, N columns of the output, K the depth.
"""

import triton
import triton.language as tl

from moekit_kernels.grouped_gemm.kernel_pairs import both_products, load_pair_row, pair_descriptor, store_pair_tile
from moekit_kernels.grouped_gemm.kernel_tiles import (
    halves,
    pair_product,
    product,
    row_descriptor,
    row_tile,
    strips,
    weight_descriptor,
)
from moekit_kernels.kernel_language import act, act_with_value


@triton.jit
def _finish(
    result, value, bias, pre, out, inside, column, num_columns, stride_om, stride_pm,
    ACTIVATION: tl.constexpr, PAIR: tl.constexpr, INTERLEAVED: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """What follows the product of a strip of columns: bias, activation, stores.

    ``pre`` and ``out`` point to the first row of the tile. Pre-activations are rounded, kept or not: with and without
    gradients, the same bits.
    """
    columns = column + tl.arange(0, BLOCK_N)
    mask = inside[:, None] & (columns < num_columns)[None, :]
    dtype: tl.constexpr = out.dtype.element_ty
    if PAIR:
        if bias is not None:
            gate_bias, value_bias = load_pair_row(bias, column, num_columns, INTERLEAVED, BLOCK_N)
            result += gate_bias[None, :]
            value += value_bias[None, :]
        seen, seen_value = result.to(dtype), value.to(dtype)
        if pre is not None:
            store_pair_tile(
                pre, inside, stride_pm, column, num_columns, seen, seen_value, INTERLEAVED, BLOCK_M, BLOCK_N
            )
        result = act_with_value(act(seen.to(tl.float32), ACTIVATION), seen_value.to(tl.float32), ACTIVATION)
    else:
        if bias is not None:
            result += tl.load(bias + columns, mask=columns < num_columns, other=0.0).to(tl.float32)[None, :]
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
    writes zeros to the output of unassigned rows, which else stays as it is.

    Where both operands come through descriptors, the loops over tiles and over the depth are one pipelined loop, so
    that the loads of the next tile overlap with the end of this one. That needs a depth of at least one step, which
    descriptors imply, and the same number of steps for every tile.
    """
    FLATTEN: tl.constexpr = X_TMA and W_TMA
    # Gate and value as one product of twice the columns: two strips of contiguous columns would not be one in memory.
    BOTH: tl.constexpr = PAIR and not INTERLEAVED and W_TMA and K_MAJOR
    WIDTH: tl.constexpr = 2 * BLOCK_N if PAIR and INTERLEAVED else BLOCK_N
    # Beside 128 x 256 sums, the epilogues of unpaired functions and of TF32 spill by halves under Triton 3.9.
    SUMS: tl.constexpr = BLOCK_M * BLOCK_N * (2 if PAIR else 1)
    SHORT: tl.constexpr = ACTIVATION != "none" and SUMS >= 128 * 256 and (not PAIR or PRECISION == "tf32")
    STRIP: tl.constexpr = BLOCK_N // (4 if SHORT else 2)
    w, x = w_ptr, x_ptr
    if BOTH:
        w = pair_descriptor(w_ptr, num_experts, num_columns, K, stride_we, stride_wn, BLOCK_N, BLOCK_K)
    elif W_TMA:
        w = weight_descriptor(
            w_ptr, num_experts, weight_columns, K, stride_we, stride_wn, stride_wk, K_MAJOR, WIDTH, BLOCK_K
        )
    if X_TMA:
        x = row_descriptor(x_ptr, num_inputs, K, stride_xm, BLOCK_M, BLOCK_K)
    num_n = tl.cdiv(num_columns, BLOCK_N)
    num_m = tl.load(tiles_ptr)
    k_tiles = tl.cdiv(K, BLOCK_K)
    if FLATTEN:
        tl.assume(k_tiles > 0)
    for index in tl.range(tl.program_id(0), num_m * num_n, tl.num_programs(0), flatten=FLATTEN):
        expert, first_row, rows, end, block_n = row_tile(index, num_m, tiles_ptr, offsets_ptr, num_n, BLOCK_M, GROUP_M)
        inside = rows < end
        row_offsets = None
        if not X_TMA:
            places = tl.where(inside, rows, first_row)
            sources = places if gather_ptr is None else tl.load(gather_ptr + places)
            row_offsets = sources.to(tl.int64) * stride_xm
        column = block_n * BLOCK_N
        if PAIR and not (BOTH or INTERLEAVED):
            gate, value = pair_product(
                x, w, first_row, row_offsets, expert, column, num_columns, K, k_tiles, stride_we, stride_wn, stride_wk,
                X_TMA, W_TMA, K_MAJOR, EVEN_K, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
            gates, values = strips(gate, BLOCK_M, BLOCK_N, STRIP), strips(value, BLOCK_M, BLOCK_N, STRIP)
        elif BOTH:
            result = both_products(
                x, w, first_row, row_offsets, expert, column, K, k_tiles, X_TMA, EVEN_K, PRECISION, BLOCK_M, BLOCK_N,
                BLOCK_K,
            )  # fmt: skip
            gate, value = halves(result, BLOCK_M, 2 * BLOCK_N)
            gates, values = strips(gate, BLOCK_M, BLOCK_N, STRIP), strips(value, BLOCK_M, BLOCK_N, STRIP)
        else:
            result = product(
                x, w, first_row, row_offsets, expert, column * (WIDTH // BLOCK_N), K, k_tiles, stride_we, stride_wn,
                stride_wk, weight_columns, X_TMA, W_TMA, K_MAJOR, EVEN_K, PRECISION, BLOCK_M, WIDTH, BLOCK_K,
            )  # fmt: skip
            gates = strips(result, BLOCK_M, WIDTH, STRIP * (WIDTH // BLOCK_N))
            values = gates
        bias = None if bias_ptr is None else bias_ptr + tl.cast(expert, tl.int64) * stride_be
        pre = None if pre_ptr is None else pre_ptr + tl.cast(first_row, tl.int64) * stride_pm
        out = out_ptr + tl.cast(first_row, tl.int64) * stride_om
        # Strip by strip: a whole tile, its neighbours in the epilogue and all addresses do not fit the registers.
        for i in tl.static_range(BLOCK_N // STRIP):
            left, left_value = gates[i], values[i]
            if PAIR and INTERLEAVED:
                left, left_value = tl.split(tl.reshape(gates[i], (BLOCK_M, STRIP, 2)))
            _finish(
                left, left_value, bias, pre, out, inside, column + i * STRIP, num_columns, stride_om, stride_pm,
                ACTIVATION, PAIR, INTERLEAVED, BLOCK_M, STRIP,
            )  # fmt: skip
    if ALL_ROWS:
        num_zeros = tl.load(tiles_ptr + 1) - num_m
        for index in range(tl.program_id(0), num_zeros * num_n, tl.num_programs(0)):
            first_row = tl.load(tiles_ptr + 3 + 2 * (num_m + index // num_n))
            columns = index % num_n * BLOCK_N + tl.arange(0, BLOCK_N)
            in_tile = tl.arange(0, BLOCK_M)[:, None]
            mask = (first_row + in_tile < num_rows) & (columns < num_columns)[None, :]
            out = out_ptr + tl.cast(first_row, tl.int64) * stride_om
            tl.store(out + (in_tile * stride_om + columns[None, :]), 0.0, mask=mask)
