"""Starts the kernels that copy tokens into the rows of a plan, so that the copy engine can read the rows later."""

import torch
from torch import Tensor

from moekit_kernels.configs import is_aligned
from moekit_kernels.plan.dispatch_plan import RowOrder
from moekit_kernels.runtime import current_target, launch

_UNROLLED = 16  # the most rows of a token whose indices are all loaded before the first store
_BYTES = 8192  # of a program: four loads of 16 bytes for each of its 128 threads; a quarter where loads are narrower
_WIDEST = 2048  # bytes of a row that one program copies, one load of 16 bytes for each thread


def rows_of_tokens(x: Tensor, order: RowOrder) -> Tensor:
    """Copies tokens into the rows of a plan: ``rows[r] = x[order.token_of_row[r]]``.

    One launch. Where each token has the same number of rows it is read once and written to all of them, which moves
    ``(T + N) * D`` numbers; else (expert choice) ``2 * N * D``. Rows without an expert are left unwritten: what they
    hold has no meaning, and only tiles whose results are not stored read it.

    Args:
        x: ``(T, D)``, of any strides and dtype.
        order: The plan's.

    Returns:
        ``(N, D)``, contiguous, in the dtype of ``x``.

    Raises:
        ValueError: If no kernel runs on the device of ``x``.
    """
    current_target(x.device)
    import triton

    from moekit_kernels.plan import kernel_rows

    num_tokens, width = x.shape
    num_rows = order.token_of_row.shape[0]
    rows_ND = torch.empty(num_rows, width, dtype=x.dtype, device=x.device)
    if 0 in (num_rows, width):
        return rows_ND
    block_d = min(triton.next_power_of_2(width), _WIDEST // x.element_size())
    aligned = is_aligned(x.dtype, width, x.stride(0))
    block_rows = max(1, _BYTES // (1 if aligned else 4) // x.element_size() // block_d)
    arguments = {
        "x_ptr": x,
        "rows_ptr": rows_ND,
        "offsets_ptr": order.offsets,
        "num_experts": order.offsets.shape[0] - 1,
        "width": width,
        "stride_xt": x.stride(0),
        "stride_xd": x.stride(1),
        "BLOCK_D": block_d,
    }
    strips = -(-width // block_d)
    if order.row_of_slot is None:
        arguments |= {"token_ptr": order.token_of_row, "num_rows": num_rows, "BLOCK_R": block_rows}
        launch(kernel_rows.gather_rows_kernel, (-(-num_rows // block_rows), strips), arguments)
        return rows_ND
    top_k = order.row_of_slot.shape[1]
    arguments |= {
        "row_ptr": order.row_of_slot.contiguous(),
        "num_tokens": num_tokens,
        "TOP_K": top_k,
        "UNROLL": top_k <= _UNROLLED,
        "BLOCK_T": block_rows,
    }
    launch(kernel_rows.copy_to_rows_kernel, (-(-num_tokens // block_rows), strips), arguments)
    return rows_ND
