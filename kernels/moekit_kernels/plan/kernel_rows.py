"""Kernels that copy tokens into the rows of a plan. Triton only."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_tokens", "num_experts"])
def copy_to_rows_kernel(
    x_ptr, rows_ptr, row_ptr, offsets_ptr, num_tokens, num_experts, width, stride_xt, stride_xd, TOP_K: tl.constexpr,
    UNROLL: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """``rows[row[t, k]] = x[t]`` for rows that have an expert: each token is read once and written up to K times."""
    tokens = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    exists, inside = tokens < num_tokens, (columns < width)[None, :]
    places = x_ptr + tokens.to(tl.int64)[:, None] * stride_xt + columns.to(tl.int64)[None, :] * stride_xd
    x = tl.load(places, mask=exists[:, None] & inside)
    end = tl.load(offsets_ptr + num_experts)
    slots = tokens.to(tl.int64) * TOP_K
    if UNROLL:
        for k in tl.static_range(TOP_K):
            row = tl.load(row_ptr + slots + k, mask=exists, other=end)
            out = rows_ptr + row.to(tl.int64)[:, None] * width + columns[None, :]
            tl.store(out, x, mask=(row < end)[:, None] & inside)
    else:
        for k in range(0, TOP_K):
            row = tl.load(row_ptr + slots + k, mask=exists, other=end)
            out = rows_ptr + row.to(tl.int64)[:, None] * width + columns[None, :]
            tl.store(out, x, mask=(row < end)[:, None] & inside)


@triton.jit(do_not_specialize=["num_rows", "num_experts"])
def gather_rows_kernel(
    x_ptr, rows_ptr, token_ptr, offsets_ptr, num_rows, num_experts, width, stride_xt, stride_xd, BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """``rows[r] = x[token[r]]`` for the rows that have an expert, where tokens have no fixed number of them."""
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    exists = rows < tl.minimum(tl.load(offsets_ptr + num_experts), num_rows)
    inside = exists[:, None] & (columns < width)[None, :]
    token = tl.load(token_ptr + rows, mask=exists, other=0).to(tl.int64)
    x = tl.load(x_ptr + token[:, None] * stride_xt + columns.to(tl.int64)[None, :] * stride_xd, mask=inside)
    tl.store(rows_ptr + rows.to(tl.int64)[:, None] * width + columns[None, :], x, mask=inside)
