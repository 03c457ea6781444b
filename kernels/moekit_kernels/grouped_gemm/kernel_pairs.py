"""Gates and values of a gated activation in memory: all values after all gates, or in turn. Triton only.

In turn (``INTERLEAVED``) a tile of both is one contiguous strip, which is read and written as a whole. Weights of both
come through one descriptor as one block, so that one product of twice the columns gives both.
"""

import triton
import triton.language as tl

from moekit_kernels.grouped_gemm.kernel_tiles import load_rows
from moekit_kernels.kernel_language import dot


@triton.jit
def pair_descriptor(
    w_ptr, num_experts, num_columns, K, stride_we, stride_wn, stride_wk, INTERLEAVED: tl.constexpr,
    K_MAJOR: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Describes weights to the copy engine, gate and value as a dimension of their own; out of bounds it gives zeros.

    A block holds both for ``BLOCK_N`` columns. Where columns are contiguous, gates and values must alternate: blocks of
    two separate strips would not have the layout in shared memory that the product reads.
    """
    if not K_MAJOR:
        tl.static_assert(INTERLEAVED)
        return tl.make_tensor_descriptor(
            w_ptr, [num_experts, K, 2 * num_columns], [stride_we, stride_wk, 1], [1, BLOCK_K, 2 * BLOCK_N]
        )
    elif INTERLEAVED:
        return tl.make_tensor_descriptor(
            w_ptr, [num_experts, num_columns, 2, K], [stride_we, 2 * stride_wn, stride_wn, 1], [1, BLOCK_N, 2, BLOCK_K]
        )
    else:
        half = tl.cast(num_columns, tl.int64) * stride_wn
        return tl.make_tensor_descriptor(
            w_ptr, [num_experts, 2, num_columns, K], [stride_we, half, stride_wn, 1], [1, 2, BLOCK_N, BLOCK_K]
        )


@triton.jit
def _load_both(
    w, expert, column, k, INTERLEAVED: tl.constexpr, K_MAJOR: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``(BLOCK_K, 2 * BLOCK_N)`` of one expert through :func:`pair_descriptor`."""
    if not K_MAJOR:
        return tl.reshape(w.load([expert, k, 2 * column]), (BLOCK_K, 2 * BLOCK_N))
    elif INTERLEAVED:
        return tl.reshape(w.load([expert, column, 0, k]), (2 * BLOCK_N, BLOCK_K)).T
    else:
        return tl.reshape(w.load([expert, 0, column, k]), (2 * BLOCK_N, BLOCK_K)).T


@triton.jit
def both_products(
    x, w, first_row, row_offsets, expert, column, K, k_tiles, INTERLEAVED: tl.constexpr, X_TMA: tl.constexpr,
    K_MAJOR: tl.constexpr, EVEN_K: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Gate and value of one tile as one product, in float32; ``w`` is a :func:`pair_descriptor`."""
    acc = tl.zeros((BLOCK_M, 2 * BLOCK_N), tl.float32)
    for step in range(0, k_tiles):
        k = step * BLOCK_K
        a = load_rows(x, first_row, row_offsets, k, K, X_TMA, EVEN_K, BLOCK_M, BLOCK_K)
        b = _load_both(w, expert, column, k, INTERLEAVED, K_MAJOR, BLOCK_N, BLOCK_K)
        acc = dot(a, b, acc, PRECISION)
    if INTERLEAVED:
        return tl.split(tl.reshape(acc, (BLOCK_M, BLOCK_N, 2)))
    else:
        return tl.split(tl.permute(tl.reshape(acc, (BLOCK_M, 2, BLOCK_N)), (0, 2, 1)))


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
