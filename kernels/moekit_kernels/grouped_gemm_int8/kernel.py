"""The grouped GEMM kernel of int8 weights: they are widened in registers, after they were loaded.

In GEMM terms M are rows of a plan, N columns of the output, K the depth. One program computes one tile.
"""

import triton
import triton.language as tl

from moekit_kernels.grouped_gemm.kernel_tiles import load_rows, load_weights
from moekit_kernels.kernel_language import dot


@triton.jit(do_not_specialize=["num_rows"])
def grouped_gemm_int8_kernel(
    x_ptr, w_ptr, scale_ptr, bias_ptr, out_ptr, offsets_ptr, tiles_ptr,
    num_rows, num_columns, K, stride_xm, stride_we, stride_wn, stride_wk, stride_se, stride_om,
    SCALE_ROWS: tl.constexpr, K_MAJOR: tl.constexpr, EVEN_K: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``out[r] = scale[e(r)] * (w[e(r)] x[r]) + bias[e(r)]``; zeros in unassigned rows.

    With ``SCALE_ROWS`` the scales belong to the depth: ``out[r] = w[e(r)] (scale[e(r)] * x[r])``.
    """
    num_n = tl.cdiv(num_columns, BLOCK_N)
    index = tl.program_id(0)
    m, block_n = index // num_n, index % num_n
    num_tiles, num_all = tl.load(tiles_ptr), tl.load(tiles_ptr + 1)
    if m < num_all:
        expert = tl.load(tiles_ptr + 2 + 2 * m)
        first_row = tl.load(tiles_ptr + 3 + 2 * m)
        rows = first_row + tl.arange(0, BLOCK_M)
        columns = block_n * BLOCK_N + tl.arange(0, BLOCK_N)
        end = tl.cast(num_rows, tl.int64)
        result = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        if m < num_tiles:
            end = tl.load(offsets_ptr + expert + 1).to(tl.int64)
            # Rows past the end repeat one that exists; their results are not stored.
            places = tl.where(rows < end, rows, first_row)
            row_offsets = places.to(tl.int64) * stride_xm
            scales = scale_ptr + tl.cast(expert, tl.int64) * stride_se
            for step in range(0, tl.cdiv(K, BLOCK_K)):
                k = step * BLOCK_K
                a = load_rows(x_ptr, first_row, row_offsets, k, K, False, EVEN_K, BLOCK_M, BLOCK_K)
                if SCALE_ROWS:
                    depth = k + tl.arange(0, BLOCK_K)
                    factor = tl.load(scales + depth, mask=depth < K, other=0.0)
                    a = (a.to(tl.float32) * factor[None, :]).to(x_ptr.dtype.element_ty)
                b = load_weights(
                    w_ptr, expert, block_n * BLOCK_N, k, K, stride_we, stride_wn, stride_wk, num_columns, False,
                    K_MAJOR, EVEN_K, BLOCK_N, BLOCK_K,
                )  # fmt: skip
                # Through float32, which no processor does without, and the interpreter knows.
                result = dot(a, b.to(tl.float32).to(x_ptr.dtype.element_ty), result, PRECISION)
            if not SCALE_ROWS:
                result *= tl.load(scales + columns, mask=columns < num_columns, other=0.0)[None, :]
            if bias_ptr is not None:
                bias = bias_ptr + tl.cast(expert, tl.int64) * num_columns + columns
                result += tl.load(bias, mask=columns < num_columns, other=0.0).to(tl.float32)[None, :]
        out = out_ptr + tl.cast(first_row, tl.int64) * stride_om
        inside = (rows < end)[:, None] & (columns < num_columns)[None, :]
        tl.store(out + (tl.arange(0, BLOCK_M)[:, None] * stride_om + columns[None, :]), result, mask=inside)
