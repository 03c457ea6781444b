"""The expert FFN for few rows: bound by reading the touched weights once. Triton only.

No tiles are planned: a program takes one expert and a strip of its weights, returns at once if the expert has no rows,
and multiplies all of the expert's rows, 16 at a time. Where there are fewer rows than experts, programs are counted by
rows, and the one of an expert's first row works. Weights are the left operand of the product (64 of their rows fill a
tensor core, 16 tokens do not), and the depth may be split over programs, whose partial results are added in a fixed
order by combine.
"""

import triton
import triton.language as tl

from moekit_kernels.grouped_gemm.kernel_tiles import load_weights, weight_descriptor
from moekit_kernels.kernel_language import act, act_with_value, dot


@triton.jit
def rows_of_program(place, offsets_ptr, num_experts, BLOCK_E: tl.constexpr):
    """Returns the expert of the programs with number ``place``, and where its rows begin and end.

    With ``BLOCK_E`` 0 the number is that of the expert. Else it is that of a row, which may be of no expert: its expert
    is found by comparing it with all offsets, at most ``BLOCK_E``, and the rows are none unless it is the first one.
    """
    if BLOCK_E == 0:
        return place, tl.load(offsets_ptr + place), tl.load(offsets_ptr + place + 1)
    else:
        experts = tl.arange(0, BLOCK_E)
        ends = tl.load(offsets_ptr + 1 + experts, mask=experts < num_experts, other=0)
        expert = tl.sum(((ends <= place) & (experts < num_experts)).to(tl.int32), 0)
        # In terms of the number, not of an offset loaded at ``expert``: Triton 3.8 knows nothing of the alignment of
        # what depends on a reduction, and would load the rows one number at a time.
        row = tl.cast(place, tl.int64)
        is_first = tl.load(offsets_ptr + expert) == row
        return expert, row, tl.where(is_first, tl.load(offsets_ptr + tl.minimum(expert + 1, num_experts)), row)


@triton.jit
def _load_rows(x_ptr, row_offsets, inside, k, K, EVEN_K: tl.constexpr, BLOCK_K: tl.constexpr):
    """``(BLOCK_M, BLOCK_K)``, depth from ``k``; only rows ``inside`` are read, the others are zeros."""
    depth = k + tl.arange(0, BLOCK_K)
    places = x_ptr + row_offsets[:, None] + depth[None, :]
    return tl.load(places, mask=inside[:, None] if EVEN_K else inside[:, None] & (depth < K)[None, :], other=0.0)


@triton.jit
def _load_strip(
    w, expert, column, k, K, stride_we, stride_wn, stride_wk, limit, TMA: tl.constexpr, K_MAJOR: tl.constexpr,
    EVEN_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``(BLOCK_N, BLOCK_K)`` of one expert's weights, as :func:`load_weights` loads their transpose."""
    if TMA or K_MAJOR:
        return load_weights(
            w, expert, column, k, K, stride_we, stride_wn, stride_wk, limit, TMA, K_MAJOR, EVEN_K, BLOCK_N, BLOCK_K
        ).T
    else:  # as a transpose, these loads would wait in registers: the compiler makes no asynchronous copy of them
        n, depth = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
        base = w + tl.cast(expert, tl.int64) * stride_we
        base += tl.cast(column, tl.int64) * stride_wn + tl.cast(k, tl.int64) * stride_wk
        inside = (column + n < limit)[:, None]
        places = base + n[:, None] * stride_wn + depth[None, :] * stride_wk
        return tl.load(places, mask=inside if EVEN_K else inside & (k + depth < K)[None, :], other=0.0)


@triton.jit
def strip_product(
    x_ptr, w, row_offsets, inside, expert, column, first_k, last_k, K, stride_we, stride_wn, stride_wk, limit,
    W_TMA: tl.constexpr, K_MAJOR: tl.constexpr, EVEN_K: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``weights @ rows.T``, ``(BLOCK_N, BLOCK_M)``, of one strip over the depth ``first_k : last_k``, in float32."""
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for k in range(first_k, last_k, BLOCK_K):  # weights are loaded before rows, whose places may still be on their way
        b = _load_strip(
            w, expert, column, k, K, stride_we, stride_wn, stride_wk, limit, W_TMA, K_MAJOR, EVEN_K, BLOCK_N, BLOCK_K
        )
        x = _load_rows(x_ptr, row_offsets, inside, k, K, EVEN_K, BLOCK_K)
        acc = dot(b, x.T, acc, PRECISION)
    return acc


@triton.jit
def _pair_product(
    x_ptr, w, row_offsets, inside, expert, column, num_columns, first_k, last_k, K, stride_we, stride_wn, stride_wk,
    INTERLEAVED: tl.constexpr, W_TMA: tl.constexpr, K_MAJOR: tl.constexpr, EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The products of a gated activation, gates and values, over the same rows.

    Where they are in turn, both are one strip of ``2 * BLOCK_N`` columns, whose product is split.
    """
    if INTERLEAVED:
        both = strip_product(
            x_ptr, w, row_offsets, inside, expert, 2 * column, first_k, last_k, K, stride_we, stride_wn, stride_wk,
            2 * num_columns, W_TMA, K_MAJOR, EVEN_K, PRECISION, BLOCK_M, 2 * BLOCK_N, BLOCK_K,
        )  # fmt: skip
        gate, value = tl.split(tl.permute(tl.reshape(both, (BLOCK_N, 2, BLOCK_M)), (0, 2, 1)))
    else:
        gate = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        value = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        for k in range(first_k, last_k, BLOCK_K):
            b = _load_strip(
                w, expert, column, k, K, stride_we, stride_wn, stride_wk, 2 * num_columns, W_TMA, K_MAJOR, EVEN_K,
                BLOCK_N, BLOCK_K,
            )  # fmt: skip
            c = _load_strip(
                w, expert, num_columns + column, k, K, stride_we, stride_wn, stride_wk, 2 * num_columns, W_TMA, K_MAJOR,
                EVEN_K, BLOCK_N, BLOCK_K,
            )  # fmt: skip
            x = _load_rows(x_ptr, row_offsets, inside, k, K, EVEN_K, BLOCK_K)
            gate = dot(b, x.T, gate, PRECISION)
            value = dot(c, x.T, value, PRECISION)
    return gate, value


@triton.jit(do_not_specialize=["num_rows", "num_experts"])
def few_rows_fwd_kernel(
    x_ptr, w_ptr, bias_ptr, out_ptr, pre_ptr, gather_ptr, offsets_ptr,
    num_rows, num_experts, num_columns, weight_columns, K,
    stride_xm, stride_we, stride_wn, stride_wk, stride_be, split_k,
    ACTIVATION: tl.constexpr, PAIR: tl.constexpr, INTERLEAVED: tl.constexpr, W_TMA: tl.constexpr,
    K_MAJOR: tl.constexpr, EVEN_K: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """``out[s, r] = act(w[e(r)] x[gather[r]] + bias[e(r)])`` over the part ``s`` of the depth; the first adds the bias.

    ``pre_ptr`` takes the pre-activations. ``split_k`` is the depth of a part, a multiple of ``BLOCK_K``; where
    there is an activation there is one part. The second number of a program is that of :func:`rows_of_program`.
    """
    part = tl.program_id(2)
    expert, start, end = rows_of_program(tl.program_id(1), offsets_ptr, num_experts, BLOCK_E)
    if start < end:
        w = w_ptr
        if W_TMA:
            w = weight_descriptor(
                w_ptr, num_experts, weight_columns, K, stride_we, stride_wn, stride_wk, K_MAJOR,
                2 * BLOCK_N if PAIR and INTERLEAVED else BLOCK_N, BLOCK_K,
            )  # fmt: skip
        column = tl.program_id(0) * BLOCK_N
        columns = column + tl.arange(0, BLOCK_N)
        known = columns < num_columns
        STEP: tl.constexpr = 2 if PAIR and INTERLEAVED else 1
        gap = 1 if INTERLEAVED else num_columns
        depth_end = tl.minimum((part + 1) * split_k, K)
        for first_row in range(start, end, BLOCK_M):
            rows = first_row + tl.arange(0, BLOCK_M)
            inside = rows < end
            sources = rows if gather_ptr is None else tl.load(gather_ptr + rows, mask=inside, other=0)
            row_offsets = sources.to(tl.int64) * stride_xm
            if PAIR:
                result, value = _pair_product(
                    x_ptr, w, row_offsets, inside, expert, column, num_columns, part * split_k, depth_end, K, stride_we,
                    stride_wn, stride_wk, INTERLEAVED, W_TMA, K_MAJOR, EVEN_K, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
                )  # fmt: skip
            else:
                result = strip_product(
                    x_ptr, w, row_offsets, inside, expert, column, part * split_k, depth_end, K, stride_we, stride_wn,
                    stride_wk, weight_columns, W_TMA, K_MAJOR, EVEN_K, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
                )  # fmt: skip
                value = result
            if bias_ptr is not None:
                bias = bias_ptr + tl.cast(expert, tl.int64) * stride_be
                given = known & (columns < tl.where(part == 0, num_columns, 0))
                result += tl.load(bias + columns * STEP, mask=given, other=0.0).to(tl.float32)[:, None]
                if PAIR:
                    value += tl.load(bias + columns * STEP + gap, mask=given, other=0.0).to(tl.float32)[:, None]
            mask = known[:, None] & inside[None, :]
            if ACTIVATION != "none":
                gate = result.to(x_ptr.dtype.element_ty)
                result = act(gate.to(tl.float32), ACTIVATION)
                if PAIR:
                    value_seen = value.to(x_ptr.dtype.element_ty)
                    result = act_with_value(result, value_seen.to(tl.float32), ACTIVATION)
                if pre_ptr is not None:
                    pre = pre_ptr + rows.to(tl.int64)[None, :] * weight_columns + (columns * STEP)[:, None]
                    tl.store(pre, gate, mask=mask)
                    if PAIR:
                        tl.store(pre + gap, value_seen, mask=mask)
            out = out_ptr + (tl.cast(part, tl.int64) * num_rows + rows)[None, :] * num_columns + columns[:, None]
            tl.store(out, result, mask=mask)
