"""The gradients of the expert FFN for few rows: bound by reading and writing the touched weights once. Triton only.

Two launches: through the activation, which reads the down matrices, then everything else by ranges of programs. As in
forward (:mod:`moekit_kernels.moe_ffn.kernel_few_rows`) no tiles are planned, and weights are the left operand.
"""

import triton
import triton.language as tl

from moekit_kernels.combine.kernel import add_parts, add_rows
from moekit_kernels.grouped_gemm.kernel_tiles import halves, weight_descriptor
from moekit_kernels.kernel_language import act_and_slope, arrives_last, dot
from moekit_kernels.moe_ffn.kernel_few_rows import rows_of_program, strip_product


@triton.jit
def _bias_product(x_ptr, bias, row_offsets, K, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr):
    """``<row, bias>`` for each row, ``(BLOCK_M,)``."""
    acc = tl.zeros((BLOCK_M,), tl.float32)
    for k in range(0, K, BLOCK_K):
        depth = k + tl.arange(0, BLOCK_K)
        known = depth < K
        x = tl.load(x_ptr + row_offsets[:, None] + depth[None, :], mask=known[None, :], other=0.0).to(tl.float32)
        acc += tl.sum(x * tl.load(bias + depth, mask=known, other=0.0).to(tl.float32)[None, :], 1)
    return acc


@triton.jit
def _through_activation(
    grad, first, end, gates_ptr, slot_ptr, columns, num_columns, pre, hidden, dpre, weighted, stride_pm,
    ACTIVATION: tl.constexpr, PAIR: tl.constexpr, INTERLEAVED: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Writes ``dPre`` and ``gate * A`` of the rows from ``first`` on; returns ``<dA', A>`` of each over the columns.

    Rows count from the first one of the expert, to which the pointers lead, and in 32 bits: there are few. ``hidden``
    is where A was kept, or None, and ``weighted`` None where it is not read.
    """
    rows = first + tl.arange(0, BLOCK_M)
    inside = rows < end
    mask = (columns < num_columns)[:, None] & inside[None, :]
    gate = tl.load(gates_ptr + tl.load(slot_ptr + rows, mask=inside, other=0)).to(tl.float32)[None, :]
    WIDE: tl.constexpr = 2 if PAIR else 1
    STEP: tl.constexpr = 2 if PAIR and INTERLEAVED else 1
    gap = 1 if INTERLEAVED else num_columns
    seen = pre + (rows[None, :] * stride_pm + (columns * STEP)[:, None])
    out = dpre + (rows[None, :] * (num_columns * WIDE) + (columns * STEP)[:, None])
    narrow = rows[None, :] * num_columns + columns[:, None]
    a, slope = act_and_slope(tl.load(seen, mask=mask, other=0.0).to(tl.float32), ACTIVATION)
    weighted_grad = grad * gate
    if PAIR:
        value = tl.load(seen + gap, mask=mask, other=0.0).to(tl.float32)
        if ACTIVATION.takes_value:
            a, by_gate, by_value = ACTIVATION.with_derivatives(a, value, *ACTIVATION.constants)
            tl.store(out, weighted_grad * by_gate, mask=mask)
            tl.store(out + gap, weighted_grad * by_value, mask=mask)
        else:
            tl.store(out, weighted_grad * value * slope, mask=mask)
            tl.store(out + gap, weighted_grad * a, mask=mask)
            a = a * value
    else:
        tl.store(out, weighted_grad * slope, mask=mask)
    if hidden is not None:
        a = tl.load(hidden + narrow, mask=mask, other=0.0).to(tl.float32)
    else:  # as it was rounded for the second product
        a = a.to(dpre.dtype.element_ty).to(tl.float32)
    if weighted is not None:
        tl.store(weighted + narrow, a * gate, mask=mask)
    # Columns past the last repeat it; only those that exist count.
    return tl.sum(tl.where(mask, grad * a, 0.0), 0)


@triton.jit(do_not_specialize=["num_rows", "num_experts"])
def few_rows_bwd_act_kernel(
    dout_ptr, w_ptr, bias_ptr, pre_ptr, hidden_ptr, gates_ptr, dpre_ptr, weighted_ptr, partial_ptr, token_ptr, slot_ptr,
    offsets_ptr, num_rows, num_experts, num_columns, K,
    stride_dm, stride_we, stride_wn, stride_wk, stride_pm,
    ACTIVATION: tl.constexpr, PAIR: tl.constexpr, INTERLEAVED: tl.constexpr, W_TMA: tl.constexpr,
    K_MAJOR: tl.constexpr, EVEN_K: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """With ``dA' = dout[token[r]] W_down[e(r)]``: ``<dA', A>`` of these columns, ``gate * A`` and ``dPre``.

    ``num_columns`` is F, the depth is the width of the output. ``hidden_ptr`` is A where it was kept. The first strip
    adds ``<dout, bias>`` to its part. ``weighted_ptr`` and ``partial_ptr`` are None where nothing reads them.
    """
    block_n = tl.program_id(0)
    expert, start, end = rows_of_program(tl.program_id(1), offsets_ptr, num_experts, BLOCK_E)
    num = (end - start).to(tl.int32)
    if num > 0:
        w = w_ptr
        if W_TMA:
            w = weight_descriptor(
                w_ptr, num_experts, num_columns, K, stride_we, stride_wn, stride_wk, K_MAJOR, BLOCK_N, BLOCK_K
            )
        column = block_n * BLOCK_N
        columns = column + tl.arange(0, BLOCK_N)
        base = start.to(tl.int64)
        pre, slots = pre_ptr + base * stride_pm, slot_ptr + base
        dpre = dpre_ptr + base * (2 * num_columns if PAIR else num_columns)
        hidden = None if hidden_ptr is None else hidden_ptr + base * num_columns
        weighted = None if weighted_ptr is None else weighted_ptr + base * num_columns
        HALF: tl.constexpr = BLOCK_M // 2
        for first in range(0, num, BLOCK_M):
            rows = first + tl.arange(0, BLOCK_M)
            inside = rows < num
            row_offsets = tl.load(token_ptr + base + rows, mask=inside, other=0).to(tl.int64) * stride_dm
            grad = strip_product(
                dout_ptr, w, row_offsets, inside, expert, column, 0, K, K, stride_we, stride_wn, stride_wk, num_columns,
                W_TMA, K_MAJOR, EVEN_K, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
            # Half by half: gradients, pre-activations and addresses of a whole tile do not fit the registers.
            left, right = halves(grad, BLOCK_N, BLOCK_M)
            left = _through_activation(
                left, first, num, gates_ptr, slots, columns, num_columns, pre, hidden, dpre, weighted, stride_pm,
                ACTIVATION, PAIR, INTERLEAVED, HALF,
            )  # fmt: skip
            right = _through_activation(
                right, first + HALF, num, gates_ptr, slots, columns, num_columns, pre, hidden, dpre, weighted,
                stride_pm, ACTIVATION, PAIR, INTERLEAVED, HALF,
            )  # fmt: skip
            if partial_ptr is not None:
                part = tl.reshape(tl.permute(tl.join(left, right), (1, 0)), (BLOCK_M,))
                if bias_ptr is not None:  # noqa: SIM102 (known when compiled)
                    if block_n == 0:
                        bias = bias_ptr + tl.cast(expert, tl.int64) * K
                        part += _bias_product(dout_ptr, bias, row_offsets, K, BLOCK_M, BLOCK_K)
                tl.store(partial_ptr + tl.cast(block_n, tl.int64) * num_rows + base + rows, part, mask=inside)


@triton.jit
def _outer_products(
    index, dy_ptr, x_ptr, dy_gather_ptr, x_gather_ptr, gates_ptr, slot_ptr, dw_ptr, db_ptr, offsets_ptr, M, N,
    stride_dy, stride_x, PRECISION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    TILES: tl.constexpr,
):  # fmt: skip
    """``dw[e] = sum over the rows r of e: outer(dy[dy_gather[r]], x[x_gather[r]])`` of ``TILES`` tiles side by side.

    Zeros without rows. The first tiles write ``db[e]`` too: the sum of the rows of ``dy``, times gates if there are.
    """
    groups = tl.cdiv(N, BLOCK_N * TILES)
    per_expert = tl.cdiv(M, BLOCK_M) * groups
    expert, place = index // per_expert, index % per_expert
    first_m, group_n = place // groups * BLOCK_M, place % groups * (BLOCK_N * TILES)
    in_m = first_m + tl.arange(0, BLOCK_M) < M
    start, end = tl.load(offsets_ptr + expert), tl.load(offsets_ptr + expert + 1)
    top = tl.cast(expert, tl.int64) * M + first_m
    for first_n in range(group_n, tl.minimum(group_n + BLOCK_N * TILES, N), BLOCK_N):
        n = first_n + tl.arange(0, BLOCK_N)
        in_n = n < N
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        bias = tl.zeros((BLOCK_M,), tl.float32)
        row = start
        while row < end:  # no pipeline: all rows of an expert are mostly one step
            rows = row + tl.arange(0, BLOCK_R)
            inside = rows < end
            dy_rows = rows if dy_gather_ptr is None else tl.load(dy_gather_ptr + rows, mask=inside, other=0)
            x_rows = rows if x_gather_ptr is None else tl.load(x_gather_ptr + rows, mask=inside, other=0)
            dy_places = dy_ptr + first_m + dy_rows.to(tl.int64)[None, :] * stride_dy + tl.arange(0, BLOCK_M)[:, None]
            x_places = x_ptr + x_rows.to(tl.int64)[:, None] * stride_x + n[None, :]
            dy = tl.load(dy_places, mask=in_m[:, None] & inside[None, :], other=0.0)
            x = tl.load(x_places, mask=inside[:, None] & in_n[None, :], other=0.0)
            acc = dot(dy, x, acc, PRECISION)
            if db_ptr is not None:
                dy = dy.to(tl.float32)
                if gates_ptr is not None:
                    slots = tl.load(slot_ptr + rows, mask=inside, other=0)
                    dy *= tl.load(gates_ptr + slots, mask=inside, other=0.0).to(tl.float32)[None, :]
                bias += tl.sum(dy, 1)
            row += BLOCK_R
        out = dw_ptr + top * N + (tl.arange(0, BLOCK_M)[:, None] * N + n[None, :])
        tl.store(out, acc, mask=in_m[:, None] & in_n[None, :])
        if db_ptr is not None:
            tl.store(db_ptr + top + tl.arange(0, BLOCK_M), bias, mask=in_m & (first_n == 0))


@triton.jit
def _strip_of_rows(
    index, dpre_ptr, w_ptr, parts_ptr, dx_ptr, row_of_slot_ptr, offsets_ptr, arrivals_ptr, num_rows, num_tokens,
    num_experts, num_places, D, K, num_strips, split_k, stride_we, stride_wn, stride_wk,
    W_TMA: tl.constexpr, K_MAJOR: tl.constexpr, EVEN_K: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_E: tl.constexpr, TOP_K: tl.constexpr, PARTS: tl.constexpr,
    UNROLL: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """One part of the depth of ``dPre W_up`` for the rows of one expert and a strip of ``BLOCK_N`` columns.

    The last of the programs of a strip adds up the rows of every token there, where ``dx_ptr`` is not None.
    """
    strip = index % num_strips
    part = index // num_strips // num_places
    expert, start, end = rows_of_program(index // num_strips % num_places, offsets_ptr, num_experts, BLOCK_E)
    if start < end:
        w = w_ptr
        if W_TMA:
            w = weight_descriptor(w_ptr, num_experts, D, K, stride_we, stride_wn, stride_wk, K_MAJOR, BLOCK_N, BLOCK_K)
        columns = strip * BLOCK_N + tl.arange(0, BLOCK_N)
        depth_end = tl.minimum((part + 1) * split_k, K)
        for first_row in range(start, end, BLOCK_M):
            rows = first_row + tl.arange(0, BLOCK_M)
            inside = rows < end
            row_offsets = rows.to(tl.int64) * K
            result = strip_product(
                dpre_ptr, w, row_offsets, inside, expert, strip * BLOCK_N, part * split_k, depth_end, K, stride_we,
                stride_wn, stride_wk, D, W_TMA, K_MAJOR, EVEN_K, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
            places = parts_ptr + (tl.cast(part, tl.int64) * num_rows + start) * D
            places += (rows - start).to(tl.int32)[None, :] * D + columns[:, None]
            tl.store(places, result, mask=(columns < D)[:, None] & inside[None, :])
    if dx_ptr is not None:  # noqa: SIM102 (known when compiled)
        if arrives_last(arrivals_ptr + strip, num_places * PARTS):
            tile = tl.zeros((), tl.int32)
            while tile * BLOCK_T < num_tokens:
                add_rows(
                    tile, strip, parts_ptr, row_of_slot_ptr, None, None, None, offsets_ptr, dx_ptr, num_tokens,
                    num_rows, D, num_experts, tl.cast(num_rows, tl.int64) * D, D, TOP_K, PARTS, UNROLL, BLOCK_T,
                    BLOCK_N, ".cg",
                )  # fmt: skip
                tile += 1


@triton.jit(
    do_not_specialize=[
        "num_rows", "num_tokens", "num_experts", "num_places", "num_parts", "num_strips", "gates_begin", "down_begin",
        "up_begin",
    ]
)  # fmt: skip
def few_rows_bwd_rest_kernel(
    dout_ptr, x_ptr, dpre_ptr, weighted_ptr, w_ptr, parts_ptr, dx_ptr, partial_ptr, dgates_ptr, dw_down_ptr,
    db_down_ptr, dw_up_ptr, db_up_ptr, gates_ptr, token_ptr, slot_ptr, row_of_slot_ptr, offsets_ptr, arrivals_ptr,
    num_rows, num_tokens, num_experts, num_places, num_parts, num_strips, gates_begin, down_begin, up_begin,
    D, D2, F, K, split_k, stride_dm, stride_xm, stride_we, stride_wn, stride_wk,
    W_TMA: tl.constexpr, K_MAJOR: tl.constexpr, EVEN_K: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_E: tl.constexpr, GRAD_N: tl.constexpr, TILES: tl.constexpr,
    TOP_K: tl.constexpr, PARTS: tl.constexpr, UNROLL: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_R: tl.constexpr,
):  # fmt: skip
    """What follows ``dPre``: the gradients of tokens, gates, down and up matrices and biases, by ranges of programs.

    Programs before ``gates_begin`` compute strips of ``dPre W_up``, whose depth is ``K``, the width of ``dPre``. Then
    come the gates (``partial_ptr``), the down matrices ``(D2, F)`` and the up matrices ``(K, D)``, ``TILES`` tiles
    of ``BLOCK_N`` by ``GRAD_N`` each. A range without programs has None for what it would write.
    """
    index = tl.program_id(0)
    if index < gates_begin:
        if parts_ptr is not None:
            _strip_of_rows(
                index, dpre_ptr, w_ptr, parts_ptr, dx_ptr, row_of_slot_ptr, offsets_ptr, arrivals_ptr, num_rows,
                num_tokens, num_experts, num_places, D, K, num_strips, split_k, stride_we, stride_wn, stride_wk, W_TMA,
                K_MAJOR, EVEN_K, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K, BLOCK_E, TOP_K, PARTS, UNROLL, BLOCK_T,
            )  # fmt: skip
    elif index < down_begin:
        if dgates_ptr is not None:
            num_live = tl.load(offsets_ptr + num_experts)
            add_parts(
                index - gates_begin, partial_ptr, slot_ptr, dgates_ptr, num_rows, num_live, num_parts, BLOCK_P, BLOCK_R
            )
    elif index < up_begin:
        if dw_down_ptr is not None:
            _outer_products(
                index - down_begin, dout_ptr, weighted_ptr, token_ptr, None, gates_ptr, slot_ptr, dw_down_ptr,
                db_down_ptr, offsets_ptr, D2, F, stride_dm, F, PRECISION, BLOCK_M, BLOCK_N, GRAD_N, TILES,
            )  # fmt: skip
    else:
        if dw_up_ptr is not None:
            _outer_products(
                index - up_begin, dpre_ptr, x_ptr, None, token_ptr, None, None, dw_up_ptr, db_up_ptr, offsets_ptr, K,
                D, K, stride_xm, PRECISION, BLOCK_M, BLOCK_N, GRAD_N, TILES,
            )  # fmt: skip
