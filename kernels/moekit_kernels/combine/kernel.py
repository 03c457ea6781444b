"""The kernels of combine: the weighted sum over the rows of each token, and its gradients. Triton only.

Loops whose end is no compile-time constant are ``while`` loops: the interpreter of Triton 3.6 cannot make a ``range``
of any other number.
"""

import triton
import triton.language as tl


@triton.jit
def _span(starts, token, inside, TOP_K: tl.constexpr):
    """Where the slots of every token begin in ``row``, and how many there are."""
    if starts is None:
        begin = token * TOP_K
        count = tl.where(inside, TOP_K, 0)
    else:
        begin = tl.load(starts + token, mask=inside, other=0).to(tl.int64)
        count = (tl.load(starts + token + 1, mask=inside, other=0) - begin).to(tl.int32)
    return begin, count


@triton.jit
def _place(row, slot, begin, count, k):
    """Row and slot of the ``k``-th slot of every token, and which tokens have one."""
    has = k < count
    place = begin + k
    r = tl.load(row + place, mask=has, other=0).to(tl.int64)
    if slot is not None:
        place = tl.load(slot + r, mask=has, other=0).to(tl.int64)
    return r, place, has


@triton.jit
def _add_slot(
    acc, k, rows, row, gates, slot, begin, count, num_live, column, width, stride_s, stride_n, SPLITS: tl.constexpr,
    CACHE: tl.constexpr,
):  # fmt: skip
    """``acc`` plus the ``k``-th slot of every token, in float32."""
    r, place, has = _place(row, slot, begin, count, k)
    # A row of no expert may be uninitialised memory, so it is not read; it counts as zeros.
    read = (has & (r < num_live))[:, None] & (column < width)[None, :]
    source = rows + r[:, None] * stride_n + column[None, :]
    value = tl.load(source, mask=read, other=0.0, cache_modifier=CACHE).to(tl.float32)
    for split in tl.static_range(1, SPLITS):
        value += tl.load(source + split * stride_s, mask=read, other=0.0, cache_modifier=CACHE).to(tl.float32)
    if gates is not None:
        value *= tl.load(gates + place, mask=has, other=0.0).to(tl.float32)[:, None]
    return acc + value


@triton.jit
def add_rows(
    tile, strip, rows, row, starts, gates, slot, live, out, num_tokens, num_rows, width, last, stride_s, stride_n,
    TOP_K: tl.constexpr, SPLITS: tl.constexpr, UNROLL: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
    CACHE: tl.constexpr,
):  # fmt: skip
    """``out[t] = sum over k of gate * row`` of one tile of tokens and of one strip of columns, slots in their order.

    ``CACHE`` is the modifier by which rows are loaded: ".cg" where other programs of the same launch wrote them.
    """
    token = tile.to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    column = strip * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = token < num_tokens
    num_live = num_rows
    if live is not None:
        num_live = tl.load(live + last)
    begin, count = _span(starts, token, inside, TOP_K)
    acc = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
    if UNROLL:
        for k in tl.static_range(TOP_K):
            acc = _add_slot(
                acc, k, rows, row, gates, slot, begin, count, num_live, column, width, stride_s, stride_n, SPLITS, CACHE
            )  # fmt: skip
    else:
        longest = tl.max(count, 0)
        k = 0
        while k < longest:
            acc = _add_slot(
                acc, k, rows, row, gates, slot, begin, count, num_live, column, width, stride_s, stride_n, SPLITS, CACHE
            )  # fmt: skip
            k += 1
    mask = inside[:, None] & (column < width)[None, :]
    tl.store(out + token[:, None] * width + column[None, :], acc.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_tokens", "num_rows", "last"])
def combine_fwd_kernel(
    rows,
    row,
    starts,
    gates,
    slot,
    live,
    out,
    num_tokens,
    num_rows,
    width,
    last,
    stride_s,
    stride_n,
    TOP_K: tl.constexpr,
    SPLITS: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """``out[t] = sum over k of gate * row``: one tile of tokens and columns, slots in their order."""
    add_rows(
        tl.program_id(0), tl.program_id(1), rows, row, starts, gates, slot, live, out, num_tokens, num_rows, width,
        last, stride_s, stride_n, TOP_K, SPLITS, UNROLL, BLOCK_T, BLOCK_D, "",
    )  # fmt: skip


@triton.jit
def add_parts(
    block, partial, slot_of_row, d_gates, num_rows, num_live, num_parts, BLOCK_P: tl.constexpr, BLOCK_R: tl.constexpr
):
    """``d_gates[slot_of_row[r]] = sum of the parts of r``, in a fixed order; zero from the row ``num_live`` on."""
    r = block.to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = r < num_rows
    lane = tl.arange(0, BLOCK_P).to(tl.int64)
    acc = tl.zeros((BLOCK_R,), tl.float32)
    first = 0
    while first < num_parts:
        read = (first + lane < num_parts)[:, None] & (r < num_live)[None, :]
        acc += tl.sum(tl.load(partial + (first + lane)[:, None] * num_rows + r[None, :], mask=read, other=0.0), 0)
        first += BLOCK_P
    place = tl.load(slot_of_row + r, mask=inside, other=0)
    tl.store(d_gates + place, acc.to(d_gates.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_tokens", "num_rows", "last", "gate_blocks"])
def combine_inputs_kernel(
    rows,
    row,
    starts,
    live,
    out,
    partial,
    slot_of_row,
    d_gates,
    num_tokens,
    num_rows,
    width,
    last,
    num_parts,
    gate_blocks,
    stride_s,
    stride_n,
    TOP_K: tl.constexpr,
    SPLITS: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """The gradients of tokens, sums over their rows, and of gates, sums over the parts of each row.

    The first ``gate_blocks`` programs have a block of rows each, the others a tile of tokens.
    """
    block = tl.program_id(0)
    if block < gate_blocks:
        if tl.program_id(1) == 0:
            num_live = tl.load(live + last)
            add_parts(block, partial, slot_of_row, d_gates, num_rows, num_live, num_parts, BLOCK_P, BLOCK_R)
    else:
        add_rows(
            block - gate_blocks, tl.program_id(1), rows, row, starts, None, None, live, out, num_tokens, num_rows,
            width, last, stride_s, stride_n, TOP_K, SPLITS, UNROLL, BLOCK_T, BLOCK_D, "",
        )  # fmt: skip


@triton.jit
def _send_chunk(dot, grad, d_rows, rows, gate, r, has, column, width, stride_n):
    """Writes one slot's columns of ``d_rows``; returns ``dot`` plus their part of ``<grad, row>``."""
    here = has[:, None] & (column < width)[None, :]
    if d_rows is not None:
        sent = gate[:, None] * grad
        tl.store(d_rows + r[:, None] * width + column[None, :], sent.to(d_rows.dtype.element_ty), mask=here)
    if rows is not None:
        value = tl.load(rows + r[:, None] * stride_n + column[None, :], mask=here, other=0.0).to(tl.float32)
        dot += tl.sum(tl.where(here, value * grad, 0.0), 1)
    return dot


@triton.jit(do_not_specialize=["num_tokens"])
def combine_bwd_kernel(
    grad,
    rows,
    row,
    starts,
    gates,
    slot,
    d_rows,
    d_gates,
    num_tokens,
    width,
    stride_n,
    TOP_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ONE_CHUNK: tl.constexpr,
):
    """``d_rows = gate * grad`` and ``d_gates = <grad, row>`` of all slots of one tile of tokens.

    By token, not by row, so that a token's gradient is read from memory once for all of its slots.
    ``d_rows`` or ``d_gates`` (then ``rows`` too) is None where it is not needed.
    """
    token = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    inside = token < num_tokens
    lane = tl.arange(0, BLOCK_D)
    source = grad + token[:, None] * width
    if ONE_CHUNK:
        whole = tl.load(source + lane[None, :], mask=inside[:, None] & (lane < width)[None, :], other=0.0)
        whole = whole.to(tl.float32)
    begin, count = _span(starts, token, inside, TOP_K)
    longest = tl.max(count, 0)
    k = 0
    while k < longest:
        r, place, has = _place(row, slot, begin, count, k)
        gate = tl.load(gates + place, mask=has, other=0.0).to(tl.float32)
        dot = tl.zeros((BLOCK_T,), tl.float32)
        if ONE_CHUNK:
            dot = _send_chunk(dot, whole, d_rows, rows, gate, r, has, lane, width, stride_n)
        else:
            first = 0
            while first < width:
                column = first + lane
                part = tl.load(source + column[None, :], mask=inside[:, None] & (column < width)[None, :], other=0.0)
                dot = _send_chunk(dot, part.to(tl.float32), d_rows, rows, gate, r, has, column, width, stride_n)
                first += BLOCK_D
        if d_gates is not None:
            tl.store(d_gates + place, dot.to(d_gates.dtype.element_ty), mask=has)
        k += 1
