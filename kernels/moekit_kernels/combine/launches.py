"""Starts the kernels of combine: which tile, which of the optional tensors.

Letters: T tokens, K experts per token, N rows, D width, E experts, S parts of a product whose depth was split.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from moekit_kernels.combine.token_rows import TokenRows
from moekit_kernels.runtime import current_target, launch

_UNROLLED = 16  # the most slots of a token whose loads are all put in flight together
_GATE_ROWS = 128  # of one program of the gates' gradient
_BACKWARD_COLUMNS = 4096  # of a gradient that one program keeps in registers


class CombineGradients(NamedTuple):
    """Gradients of rows ``(N, D)`` and of gates, in their shape; None where not requested."""

    rows: Tensor | None
    gates: Tensor | None


def forward(
    rows: Tensor,
    gates: Tensor | None,
    token_rows: TokenRows,
    offsets: Tensor | None,
    num_tokens: int,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Computes ``out[t] = sum over the slots s of t of gates[s] * rows[row of s]``, in float32 in the order of slots.

    Args:
        rows: ``(N, D)``, or parts ``(S, N, D)`` that are added up first, in their order; bfloat16, float16, float32.
        gates: Weights, whose flat index is the slot; None for ones.
        token_rows: The rows of each token.
        offsets: ``(E + 1,)``: rows from ``offsets[E]`` on are not read and count as zeros. None if there are none.
        num_tokens: ``T``.
        dtype: Of the result; that of ``rows`` by default.

    Returns:
        ``(T, D)``; zero for a token without slots.

    Raises:
        ValueError: If no kernel runs on the device of ``rows``.
    """
    current_target(rows.device)
    from moekit_kernels.combine import kernel

    out_TD, grid, arguments = _sum_of_rows(rows, token_rows, offsets, num_tokens, dtype)
    launch(kernel.combine_fwd_kernel, grid, {**arguments, **_index_operands(token_rows, gates)})
    return out_TD


class InputGradients(NamedTuple):
    """Gradients of the tokens ``(T, D)``, and of the gates, in their shape."""

    x: Tensor
    gates: Tensor


def input_gradients(
    rows: Tensor,
    token_rows: TokenRows,
    offsets: Tensor,
    num_tokens: int,
    dtype: torch.dtype,
    partial: Tensor,
    gates: Tensor,
    slot_of_row: Tensor,
) -> InputGradients:
    """Computes the gradients of tokens and gates from those of rows, by one launch.

    ``grad_x[t]`` is the sum over the rows of ``t``, as :func:`forward` has it without gates. The gradient of the gate
    of row ``r`` is the sum of ``partial[:, r]``.

    Args:
        rows: Gradients of the rows, ``(N, D)``, or parts ``(S, N, D)``.
        token_rows: The rows of each token.
        offsets: ``(E + 1,)``: rows from ``offsets[E]`` on are not read and count as zeros.
        num_tokens: ``T``.
        dtype: Of the gradient of the tokens.
        partial: ``(P, N)``, float32.
        gates: The gates, of which shape and dtype are read.
        slot_of_row: ``(N,)``.

    Returns:
        Both; zero for the gates of unassigned rows.
    """
    from moekit_kernels.combine import kernel

    grad_x_TD, (tiles, strips), arguments = _sum_of_rows(rows, token_rows, offsets, num_tokens, dtype)
    grad_gates = torch.empty(gates.shape, dtype=gates.dtype, device=gates.device)
    num_parts, num_rows = partial.shape
    gate_blocks = -(-num_rows // _GATE_ROWS)
    launch(
        kernel.combine_inputs_kernel,
        (gate_blocks + tiles, strips),
        {
            **arguments,
            "row": token_rows.row_of_place.contiguous(),
            "starts": token_rows.starts,
            "partial": partial,
            "slot_of_row": slot_of_row,
            "d_gates": grad_gates,
            "num_parts": num_parts,
            "gate_blocks": gate_blocks,
            "BLOCK_P": min(_power_of_2(num_parts), 16),
            "BLOCK_R": _GATE_ROWS,
        },
    )
    return InputGradients(grad_x_TD, grad_gates)


def _sum_of_rows(
    rows: Tensor, token_rows: TokenRows, offsets: Tensor | None, num_tokens: int, dtype: torch.dtype | None
) -> tuple[Tensor, tuple[int, int], dict[str, Any]]:
    """Returns the uninitialised sum, the grid of its tiles, and what both kernels that compute it take."""
    rows = _unit_stride(rows)
    width = rows.shape[-1]
    out_TD = torch.empty(num_tokens, width, dtype=rows.dtype if dtype is None else dtype, device=rows.device)
    by_slot = token_rows.starts is None
    top_k = token_rows.row_of_place.shape[1] if by_slot else 1
    vector = 128 * 16 // rows.element_size()
    block_d = min(_power_of_2(width), vector)
    block_t = max(1, vector // block_d)
    arguments = {
        "rows": rows,
        "live": offsets,
        "out": out_TD,
        "num_tokens": num_tokens,
        "num_rows": rows.shape[-2],
        "width": width,
        "last": 0 if offsets is None else offsets.shape[0] - 1,
        "stride_s": rows.stride(0) if rows.ndim == 3 else 0,
        "stride_n": rows.stride(-2),
        "TOP_K": top_k,
        "SPLITS": rows.shape[0] if rows.ndim == 3 else 1,
        "UNROLL": by_slot and top_k <= _UNROLLED,
        "BLOCK_T": block_t,
        "BLOCK_D": block_d,
    }
    return out_TD, (-(-num_tokens // block_t), -(-width // block_d)), arguments


def backward(
    grad: Tensor,
    rows: Tensor,
    gates: Tensor,
    token_rows: TokenRows,
    rows_grad: bool = True,
    gates_grad: bool = True,
) -> CombineGradients:
    """Computes the gradients of :func:`forward`: ``gate * grad[token]`` of rows, ``<grad[token], row>`` of gates.

    Args:
        grad: ``(T, D)``, of the result.
        rows: ``(N, D)``.
        gates: As in :func:`forward`, not None.
        token_rows: As in :func:`forward`.
        rows_grad: Whether to compute those of rows.
        gates_grad: Whether to compute those of gates.

    Returns:
        Those of rows, ``(N, D)`` in the dtype of ``rows``, and of gates, in shape and dtype of ``gates``.
    """
    rows, grad = _unit_stride(rows), grad.contiguous()
    num_tokens, width = grad.shape
    d_rows_ND = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device) if rows_grad else None
    d_gates = torch.empty(gates.shape, dtype=gates.dtype, device=gates.device) if gates_grad else None
    block_d = min(_power_of_2(width), _BACKWARD_COLUMNS)
    block_t = max(1, 1024 // block_d)
    from moekit_kernels.combine import kernel

    launch(
        kernel.combine_bwd_kernel,
        (-(-num_tokens // block_t) if rows_grad or gates_grad else 0,),
        {
            "grad": grad,
            "rows": rows if gates_grad else None,
            **_index_operands(token_rows, gates),
            "d_rows": d_rows_ND,
            "d_gates": d_gates,
            "num_tokens": num_tokens,
            "width": width,
            "stride_n": rows.stride(-2),
            "TOP_K": token_rows.row_of_place.shape[1] if token_rows.starts is None else 1,
            "BLOCK_T": block_t,
            "BLOCK_D": block_d,
            "ONE_CHUNK": width <= block_d,
        },
        num_warps=4 if block_d <= 2048 else 8,
    )
    return CombineGradients(d_rows_ND, d_gates)


def _index_operands(token_rows: TokenRows, gates: Tensor | None) -> dict[str, Tensor | None]:
    """Returns the arguments of both kernels that name the row and the gate of a slot."""
    return {
        "row": token_rows.row_of_place.contiguous(),
        "starts": token_rows.starts,
        "gates": None if gates is None else gates.contiguous(),
        "slot": None if gates is None else token_rows.slot_of_row,
    }


def _unit_stride(rows: Tensor) -> Tensor:
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def _power_of_2(size: int) -> int:
    return 1 << max(size - 1, 0).bit_length()
