"""Gates and values of a gated activation in memory: all values after all gates, or in turn. Triton only.

In turn (``INTERLEAVED``) a tile of both is one contiguous strip, which is read and written as a whole.
"""

import triton
import triton.language as tl


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
def load_pair_row(row, column, known, num_columns, INTERLEAVED: tl.constexpr, BLOCK_N: tl.constexpr):
    """Gate and value ``(BLOCK_N,)`` of one row, a bias, in float32; 0 from the column ``known`` on."""
    columns = column + tl.arange(0, BLOCK_N)
    STEP: tl.constexpr = 2 if INTERLEAVED else 1
    places = row + columns * STEP
    mask = columns < known
    gate = tl.load(places, mask=mask, other=0.0)
    value = tl.load(places + (1 if INTERLEAVED else num_columns), mask=mask, other=0.0)
    return gate.to(tl.float32), value.to(tl.float32)
