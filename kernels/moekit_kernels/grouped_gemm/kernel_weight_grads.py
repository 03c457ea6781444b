"""Kernels of the gradients of weights and biases: the depth of their products are the rows of an expert. Triton only.

Persistent: a fixed number of programs walks over the tiles of all experts. In GEMM terms M and N are the two widths of
a weight matrix, K the rows.
"""

import triton
import triton.language as tl

from moekit_kernels.kernel_language import dot


@triton.jit
def _weight_tile(index, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """Returns ``(expert, first of M, first of N)`` of a tile: expert by expert, ``GROUP_M`` rows of tiles at a time."""
    num_m, num_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    expert, place = index // (num_m * num_n), index % (num_m * num_n)
    width = GROUP_M * num_n
    top = place // width * GROUP_M
    height = tl.minimum(num_m - top, GROUP_M)
    return expert, (top + place % width % height) * BLOCK_M, place % width // height * BLOCK_N


@triton.jit
def _store_weight_tile(
    dw_ptr, acc, expert, first_m, first_n, M, N, stride_de, stride_dm, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """Writes a tile of the gradient of one expert, as far as it lies in the matrix."""
    m, n = first_m + tl.arange(0, BLOCK_M), first_n + tl.arange(0, BLOCK_N)
    out = dw_ptr + tl.cast(expert, tl.int64) * stride_de + m.to(tl.int64)[:, None] * stride_dm + n[None, :]
    tl.store(out, acc, mask=(m < M)[:, None] & (n < N)[None, :])


@triton.jit(do_not_specialize=["num_experts"])
def grouped_gemm_bwd_dw_rows_kernel(
    dy_ptr, x_ptr, dw_ptr, offsets_ptr, num_experts, M, N, stride_dy, stride_x, stride_de, stride_dm,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):  # fmt: skip
    """``dw[e] = sum over the rows r of e: outer(dy[r], x[r])``, both operands through tensor descriptors.

    The descriptors of a tile end with the rows of its expert. What lies behind reads as zero, so there is no tail and
    no mask: neither the next expert's rows nor memory that was never written is added.
    """
    tiles = num_experts * tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N)
    for index in range(tl.program_id(0), tiles, tl.num_programs(0)):
        expert, first_m, first_n = _weight_tile(index, M, N, BLOCK_M, BLOCK_N, GROUP_M)
        start = tl.load(offsets_ptr + expert)
        rows = (tl.load(offsets_ptr + expert + 1) - start).to(tl.int32)
        first = start.to(tl.int64)
        height = tl.maximum(rows, 1)  # no dimension may be empty; an expert without rows loads nothing
        dy = tl.make_tensor_descriptor(dy_ptr + first * stride_dy, [height, M], [stride_dy, 1], [BLOCK_K, BLOCK_M])
        x = tl.make_tensor_descriptor(x_ptr + first * stride_x, [height, N], [stride_x, 1], [BLOCK_K, BLOCK_N])
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for row in range(0, rows, BLOCK_K):
            acc = dot(dy.load([row, first_m]).T, x.load([row, first_n]), acc, PRECISION)
        _store_weight_tile(dw_ptr, acc, expert, first_m, first_n, M, N, stride_de, stride_dm, BLOCK_M, BLOCK_N)


@triton.jit
def _walk_by_pointers(
    first_index, dy_ptr, x_ptr, dw_ptr, dy_gather_ptr, x_gather_ptr, offsets_ptr, num_experts, M, N, stride_dy,
    stride_x, stride_de, stride_dm, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """Every tile of one problem from ``first_index`` on that belongs to this program; returns how many tiles it has.

    All full steps without masks, then the rest.
    """
    tiles = num_experts * tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N)
    for index in range(first_index, tiles, tl.num_programs(0)):
        expert, first_m, first_n = _weight_tile(index, M, N, BLOCK_M, BLOCK_N, GROUP_M)
        m, n = first_m + tl.arange(0, BLOCK_M), first_n + tl.arange(0, BLOCK_N)
        start = tl.load(offsets_ptr + expert).to(tl.int32)
        end = tl.load(offsets_ptr + expert + 1).to(tl.int32)
        full = start + (end - start) // BLOCK_K * BLOCK_K
        steps = tl.arange(0, BLOCK_K)
        in_m, in_n = (m < M)[:, None], (n < N)[None, :]
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for row in range(start, full, BLOCK_K):
            rows = row + steps
            dy_rows = rows if dy_gather_ptr is None else tl.load(dy_gather_ptr + rows)
            x_rows = rows if x_gather_ptr is None else tl.load(x_gather_ptr + rows)
            dy = tl.load(dy_ptr + dy_rows.to(tl.int64)[None, :] * stride_dy + m[:, None], mask=in_m, other=0.0)
            x = tl.load(x_ptr + x_rows.to(tl.int64)[:, None] * stride_x + n[None, :], mask=in_n, other=0.0)
            acc = dot(dy, x, acc, PRECISION)
        if full < end:
            rows = full + steps
            inside = rows < end
            dy_rows = rows if dy_gather_ptr is None else tl.load(dy_gather_ptr + rows, mask=inside, other=0)
            x_rows = rows if x_gather_ptr is None else tl.load(x_gather_ptr + rows, mask=inside, other=0)
            dy_places = dy_ptr + dy_rows.to(tl.int64)[None, :] * stride_dy + m[:, None]
            x_places = x_ptr + x_rows.to(tl.int64)[:, None] * stride_x + n[None, :]
            dy = tl.load(dy_places, mask=in_m & inside[None, :], other=0.0)
            x = tl.load(x_places, mask=in_n & inside[:, None], other=0.0)
            acc = dot(dy, x, acc, PRECISION)
        _store_weight_tile(dw_ptr, acc, expert, first_m, first_n, M, N, stride_de, stride_dm, BLOCK_M, BLOCK_N)
    return tiles


@triton.jit(do_not_specialize=["num_experts"])
def grouped_gemm_bwd_dw_kernel(
    dy_ptr, x_ptr, dw_ptr, dy_gather_ptr, x_gather_ptr, dy2_ptr, x2_ptr, dw2_ptr, dy2_gather_ptr, x2_gather_ptr,
    offsets_ptr, num_experts, M, N, stride_dy, stride_x, stride_de, stride_dm,
    M2, N2, stride_dy2, stride_x2, stride_de2, stride_dm2,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):  # fmt: skip
    """``dw[e] = sum over the rows r of e: outer(dy[dy_gather[r]], x[x_gather[r]])``, by pointers; zeros without rows.

    With ``dw2_ptr`` the same of a second pair of operands: programs that have no more tiles of the first begin with it.
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    tiles = _walk_by_pointers(
        program, dy_ptr, x_ptr, dw_ptr, dy_gather_ptr, x_gather_ptr, offsets_ptr, num_experts, M, N, stride_dy,
        stride_x, stride_de, stride_dm, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K, GROUP_M,
    )  # fmt: skip
    if dw2_ptr is not None:
        _walk_by_pointers(
            (program + programs - tiles % programs) % programs, dy2_ptr, x2_ptr, dw2_ptr, dy2_gather_ptr,
            x2_gather_ptr, offsets_ptr, num_experts, M2, N2, stride_dy2, stride_x2, stride_de2, stride_dm2, PRECISION,
            BLOCK_M, BLOCK_N, BLOCK_K, GROUP_M,
        )  # fmt: skip


@triton.jit
def grouped_gemm_bwd_db_kernel(
    dy_ptr, db_ptr, gates_ptr, slot_ptr, gather_ptr, offsets_ptr, N, stride_dy, stride_be,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """``db[e] = sum over the rows r of e: gates[slot[r]] * dy[gather[r]]``; one program per expert and columns."""
    expert = tl.program_id(1)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    start, end = tl.load(offsets_ptr + expert), tl.load(offsets_ptr + expert + 1)
    acc = tl.zeros((BLOCK_N,), tl.float32)
    for row in range(start, end, BLOCK_R):
        rows = row + tl.arange(0, BLOCK_R)
        inside = rows < end
        sources = rows if gather_ptr is None else tl.load(gather_ptr + rows, mask=inside, other=0)
        places = dy_ptr + sources.to(tl.int64)[:, None] * stride_dy + n[None, :]
        dy = tl.load(places, mask=inside[:, None] & (n < N)[None, :], other=0.0).to(tl.float32)
        if gates_ptr is not None:
            slots = rows if slot_ptr is None else tl.load(slot_ptr + rows, mask=inside, other=0)
            dy *= tl.load(gates_ptr + slots, mask=inside, other=0.0).to(tl.float32)[:, None]
        acc += tl.sum(dy, 0)
    tl.store(db_ptr + tl.cast(expert, tl.int64) * stride_be + n, acc, mask=n < N)
