"""Gates and values of a gated activation in memory: all values after all gates, or in turn. Triton only.

In turn (``INTERLEAVED``) a tile of both is one contiguous strip, which is read, multiplied and written as a whole.
"""

import triton
import triton.language as tl

from moekit_kernels.grouped_gemm.kernel_tiles import load_rows
from moekit_kernels.kernel_language import dot


@triton.jit
def pair_descriptor(
    w_ptr, num_experts, num_columns, K, stride_we, stride_wn, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):
    """Describes K-major weights, values after gates, to the copy engine, gate and value as a dimension of their own.

    A block holds both for ``BLOCK_N`` columns. Past the last column it gives zeros, for gates too.
    """
    half = tl.cast(num_columns, tl.int64) * stride_wn
    return tl.make_tensor_descriptor(
        w_ptr, [num_experts, 2, num_columns, K], [stride_we, half, stride_wn, 1], [1, 2, BLOCK_N, BLOCK_K]
    )


@triton.jit
def both_products(
    x, w, first_row, row_offsets, expert, column, K, k_tiles, X_TMA: tl.constexpr, EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``(BLOCK_M, 2 * BLOCK_N)``: gates, then values, as one product; ``w`` is a :func:`pair_descriptor`."""
    acc = tl.zeros((BLOCK_M, 2 * BLOCK_N), tl.float32)
    for step in range(0, k_tiles):
        k = step * BLOCK_K
        a = load_rows(x, first_row, row_offsets, k, K, X_TMA, EVEN_K, BLOCK_M, BLOCK_K)
        b = tl.reshape(w.load([expert, 0, column, k]), (2 * BLOCK_N, BLOCK_K)).T
        acc = dot(a, b, acc, PRECISION)
    return acc


@triton.jit
def load_pair_tile(
    rows, inside, stride, column, num_columns, INTERLEAVED: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Gate and value ``(BLOCK_M, BLOCK_N)`` from ``column`` on; ``rows`` points to the first row, 0 where none is."""
    in_tile = tl.arange(0, BLOCK_M)[:, None] * stride
    if INTERLEAVED:
        both = 2 * column + tl.arange(0, 2 * BLOCK_N)
        mask = inside[:, None] & (both < 2 * num_columns)[None, :]
        pairs = tl.load(rows + (in_tile + both[None, :]), mask=mask, other=0.0)
        gate, value = tl.split(tl.reshape(pairs, (BLOCK_M, BLOCK_N, 2)))
    else:
        columns = column + tl.arange(0, BLOCK_N)
        mask = inside[:, None] & (columns < num_columns)[None, :]
        places = rows + (in_tile + columns[None, :])
        gate = tl.load(places, mask=mask, other=0.0)
        value = tl.load(places + num_columns, mask=mask, other=0.0)
    return gate, value


@triton.jit
def store_pair_tile(
    rows, inside, stride, column, num_columns, gate, value, INTERLEAVED: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Writes what :func:`load_pair_tile` reads."""
    in_tile = tl.arange(0, BLOCK_M)[:, None] * stride
    if INTERLEAVED:
        both = 2 * column + tl.arange(0, 2 * BLOCK_N)
        mask = inside[:, None] & (both < 2 * num_columns)[None, :]
        tl.store(rows + (in_tile + both[None, :]), tl.interleave(gate, value), mask=mask)
    else:
        columns = column + tl.arange(0, BLOCK_N)
        mask = inside[:, None] & (columns < num_columns)[None, :]
        places = rows + (in_tile + columns[None, :])
        tl.store(places, gate, mask=mask)
        tl.store(places + num_columns, value, mask=mask)


@triton.jit
def load_pair_row(row, column, num_columns, INTERLEAVED: tl.constexpr, BLOCK_N: tl.constexpr):
    """Gate and value ``(BLOCK_N,)`` of one row, a bias, in float32; 0 past the last column."""
    columns = column + tl.arange(0, BLOCK_N)
    STEP: tl.constexpr = 2 if INTERLEAVED else 1
    places = row + columns * STEP
    mask = columns < num_columns
    gate = tl.load(places, mask=mask, other=0.0)
    value = tl.load(places + (1 if INTERLEAVED else num_columns), mask=mask, other=0.0)
    return gate.to(tl.float32), value.to(tl.float32)
