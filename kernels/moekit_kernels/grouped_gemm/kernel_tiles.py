"""The inside of every grouped GEMM kernel: which tile, and the product over it. Triton only.

A tile is ``BLOCK_M`` rows of one expert by ``BLOCK_N`` columns. Weights are ``(E, columns, K)`` by strides, so a
transposed view is served without a copy. Rows past the end of an expert repeat its first row of the tile, and
columns past the last repeat the last: loads stay in bounds without masks, and their results are never stored.
"""

import triton
import triton.language as tl

from moekit_kernels.kernel_language import dot


@triton.jit
def weight_descriptor(
    w_ptr, num_experts, num_columns, K, stride_we, stride_wn, stride_wk, K_MAJOR: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Describes weights to the copy engine, the contiguous dimension last; out of bounds it gives zeros."""
    if K_MAJOR:
        return tl.make_tensor_descriptor(
            w_ptr, [num_experts, num_columns, K], [stride_we, stride_wn, 1], [1, BLOCK_N, BLOCK_K]
        )
    else:
        return tl.make_tensor_descriptor(
            w_ptr, [num_experts, K, num_columns], [stride_we, stride_wk, 1], [1, BLOCK_K, BLOCK_N]
        )


@triton.jit
def load_weights(
    w, expert, column, k, K, stride_we, stride_wn, stride_wk, limit, TMA: tl.constexpr,
    K_MAJOR: tl.constexpr, EVEN_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``(BLOCK_K, BLOCK_N)`` of one expert: columns from ``column`` on, below ``limit``; depth from ``k``."""
    if TMA:
        if K_MAJOR:
            return tl.reshape(w.load([expert, column, k]), (BLOCK_N, BLOCK_K)).T
        else:
            return tl.reshape(w.load([expert, k, column]), (BLOCK_K, BLOCK_N))
    else:
        depth = tl.arange(0, BLOCK_K)
        n = tl.arange(0, BLOCK_N)
        # One 64-bit base, and 32-bit offsets inside the tile.
        base = w + tl.cast(expert, tl.int64) * stride_we
        base += tl.cast(column, tl.int64) * stride_wn + tl.cast(k, tl.int64) * stride_wk
        if K_MAJOR:
            n = tl.minimum(n, limit - 1 - column)
            places = base + depth[:, None] + n[None, :] * stride_wn
            return tl.load(places) if EVEN_K else tl.load(places, mask=(k + depth < K)[:, None], other=0.0)
        else:
            places = base + (depth[:, None] * stride_wk + n[None, :] * stride_wn)
            inside = (column + n < limit)[None, :]
            return tl.load(places, mask=inside if EVEN_K else inside & (k + depth < K)[:, None], other=0.0)


@triton.jit
def row_descriptor(x_ptr, num_rows, K, stride, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr):
    """Describes rows in the order of a plan to the copy engine; out of bounds it gives zeros."""
    return tl.make_tensor_descriptor(x_ptr, [num_rows, K], [stride, 1], [BLOCK_M, BLOCK_K])


@triton.jit
def load_rows(
    x, first_row, row_offsets, k, K, TMA: tl.constexpr, EVEN_K: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``(BLOCK_M, BLOCK_K)`` of the rows, depth from ``k``; ``row_offsets`` are 64-bit places of their starts."""
    if TMA:
        return x.load([first_row, k])
    else:
        depth = k + tl.arange(0, BLOCK_K)
        places = x + row_offsets[:, None] + depth[None, :]
        return tl.load(places) if EVEN_K else tl.load(places, mask=(depth < K)[None, :], other=0.0)


@triton.jit
def row_tile(index, num_m, tiles_ptr, offsets_ptr, num_n, BLOCK_M: tl.constexpr, GROUP_M: tl.constexpr):
    """The tile ``index`` in the order that keeps operands in L2: ``GROUP_M`` rows of tiles, column by column.

    ``num_m`` is the number of rows of tiles, the first number of the schedule, which callers load once.

    Returns ``(expert, first row, rows of the tile, end of the expert's rows, block of columns)``.
    """
    width = GROUP_M * num_n
    top = index // width * GROUP_M
    height = tl.minimum(num_m - top, GROUP_M)
    m = top + index % width % height
    block_n = index % width // height
    expert = tl.load(tiles_ptr + 2 + 2 * m)
    first_row = tl.load(tiles_ptr + 3 + 2 * m)
    rows = first_row + tl.arange(0, BLOCK_M)
    end = tl.load(offsets_ptr + expert + 1)
    return expert, first_row, rows, end, block_n


@triton.jit
def product(
    x, w, first_row, row_offsets, expert, column, K, k_tiles, stride_we, stride_wn, stride_wk, limit,
    X_TMA: tl.constexpr, W_TMA: tl.constexpr, K_MAJOR: tl.constexpr, EVEN_K: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``rows @ weights`` of one tile, in float32."""
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(0, k_tiles):
        k = step * BLOCK_K
        a = load_rows(x, first_row, row_offsets, k, K, X_TMA, EVEN_K, BLOCK_M, BLOCK_K)
        b = load_weights(
            w, expert, column, k, K, stride_we, stride_wn, stride_wk, limit, W_TMA, K_MAJOR, EVEN_K, BLOCK_N, BLOCK_K
        )
        acc = dot(a, b, acc, PRECISION)
    return acc


@triton.jit
def pair_product(
    x, w, first_row, row_offsets, expert, column, num_columns, K, k_tiles, stride_we, stride_wn, stride_wk,
    X_TMA: tl.constexpr, W_TMA: tl.constexpr, K_MAJOR: tl.constexpr, EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The products of gates and of values that stand apart, over the same rows, which are loaded once."""
    gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    value = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(0, k_tiles):
        k = step * BLOCK_K
        a = load_rows(x, first_row, row_offsets, k, K, X_TMA, EVEN_K, BLOCK_M, BLOCK_K)
        b = load_weights(
            w, expert, column, k, K, stride_we, stride_wn, stride_wk, 2 * num_columns, W_TMA, K_MAJOR, EVEN_K, BLOCK_N,
            BLOCK_K,
        )  # fmt: skip
        c = load_weights(
            w, expert, num_columns + column, k, K, stride_we, stride_wn, stride_wk, 2 * num_columns, W_TMA, K_MAJOR,
            EVEN_K, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        gate = dot(a, b, gate, PRECISION)
        value = dot(a, c, value, PRECISION)
    return gate, value


@triton.jit
def halves(tile, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The left and the right half of the columns."""
    return tl.split(tl.permute(tl.reshape(tile, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1)))


@triton.jit
def strips(tile, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STRIP: tl.constexpr):
    """The tile as a tuple of ``STRIP`` columns each."""
    if BLOCK_N > STRIP:
        left, right = halves(tile, BLOCK_M, BLOCK_N)
        return strips(left, BLOCK_M, BLOCK_N // 2, STRIP) + strips(right, BLOCK_M, BLOCK_N // 2, STRIP)
    else:
        return (tile,)
