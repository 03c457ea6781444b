"""The fused expert FFN on CPU for few rows: whole steps over all rows, in which only the products go by expert.

With few rows the time is that of starting operations, not of computing, so there are as few of them as can be: all
products of one kind are one call of ``F.grouped_mm``, where it takes the operands and most experts have rows. The
intermediate results of all rows are small enough for the cache. Same functions and letters as
:mod:`moekit_kernels.moe_ffn.loop`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from moekit_kernels.activations import ACTIVATIONS
from moekit_kernels.moe_ffn import loop_single_rows
from moekit_kernels.moe_ffn.loop_groups import Groups, groups_of
from moekit_kernels.moe_ffn.operands import ExpertWeights, Gradients
from moekit_kernels.plan.dispatch_plan import RowOrder

_GROUPED_MM_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _fits_grouped_mm(groups: Groups, *operands: Tensor) -> bool:
    """Returns whether ``F.grouped_mm`` takes the operands, and is faster: it visits experts without rows too."""
    if operands[0].dtype not in _GROUPED_MM_DTYPES or 2 * len(groups.experts) < groups.num_experts:
        return False
    return all(map(_is_aligned, operands))


def _is_aligned(operand: Tensor) -> bool:
    """Returns whether rows ``(N, k)``, or rows and columns ``(E, k, n)``, are dense and of a multiple of 16 bytes."""
    is_dense = operand.is_contiguous() or (operand.ndim == 3 and operand.mT.is_contiguous())
    return is_dense and all(width * operand.element_size() % 16 == 0 for width in operand.shape[1:])


def _products(rows: Tensor, weights: Tensor, biases: Tensor | None, groups: Groups, ends: Tensor) -> Tensor:
    """Returns the rows of each expert times its matrix; zero for unassigned rows.

    Args:
        rows: ``(N, k)``.
        weights: ``(E, k, n)``.
        biases: ``(E, n)``.
        groups: The rows of each expert.
        ends: ``(E,)`` int32, where the rows of each expert end.
    """
    if biases is None and _fits_grouped_mm(groups, rows, weights):
        out = F.grouped_mm(rows, weights, offs=ends)
        groups.clear_unassigned(out)
        return out
    out = rows.new_empty(rows.shape[0], weights.shape[2])
    groups.clear_unassigned(out)
    for expert, (a, c) in zip(groups.experts, groups.of(rows, out), strict=True):
        if biases is None:
            torch.mm(a, weights[expert], out=c)
        else:
            torch.addmm(biases[expert], a, weights[expert], out=c)
    return out


def _outer_products(columns: Tensor, rows: Tensor, like: Tensor, groups: Groups, ends: Tensor) -> Tensor:
    """Returns ``columns^T rows`` of each expert, contiguous, in the shape of ``like``."""
    if _fits_grouped_mm(groups, columns, rows):
        out = F.grouped_mm(columns.mT, rows, offs=ends)
        for experts in groups.idle():
            out[experts].zero_()
        return out
    out = groups.gradient_like(like)
    for expert, (a, b) in zip(groups.experts, groups.of(columns, rows), strict=True):
        if a.shape[0] == 1:
            torch.mul(a.mT, b, out=out[expert])  # the same numbers; a matrix product takes 1.5 times as long
        else:
            torch.mm(a.mT, b, out=out[expert])
    return out


def _sums(rows: Tensor, like: Tensor | None, groups: Groups) -> Tensor | None:
    """Returns the sum of each expert's rows, in the shape of ``like``."""
    if like is None:
        return None
    out = like.new_zeros(like.shape)
    for expert, (a,) in zip(groups.experts, groups.of(rows), strict=True):
        torch.sum(a, 0, out=out[expert])
    return out


def _weighted(rows: Tensor, gates_N1: Tensor, dtype: torch.dtype) -> Tensor:
    return (rows * gates_N1).to(dtype)


def forward(
    x: Tensor,
    gates: Tensor,
    order: RowOrder,
    weights: ExpertWeights,
    activation: str,
    keep_pre: bool,
    keep_hidden: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes :func:`moekit_kernels.moe_ffn.loop.forward`."""
    up_proj, down_proj, up_bias, down_bias = weights
    groups = groups_of(order)
    if loop_single_rows.fits(x, gates, weights, groups):
        return loop_single_rows.forward(x, gates, order, groups, weights, activation, keep_pre, keep_hidden)
    ends = order.offsets[1:].int()
    pre_NF1 = _products(x.index_select(0, order.token_of_row), up_proj.mT, up_bias, groups, ends)
    hidden_NF = ACTIVATIONS[activation].compute(pre_NF1)
    y_ND2 = _products(hidden_NF, down_proj.mT, down_bias, groups, ends)
    dtype = torch.promote_types(x.dtype, gates.dtype)
    # Unassigned rows add nothing, but a NaN gate shows in its own token.
    weighted_ND2 = _weighted(y_ND2, order.by_row(gates).unsqueeze(-1), dtype)
    out_TD2 = weighted_ND2.new_zeros(x.shape[0], down_proj.shape[1]).index_add_(0, order.token_of_row, weighted_ND2)
    pre_NF1 = pre_NF1 if keep_pre else x.new_empty(0, up_proj.shape[1])
    hidden_NF = hidden_NF if keep_hidden else x.new_empty(0, down_proj.shape[2])
    return out_TD2.to(x.dtype), pre_NF1, hidden_NF


def backward(
    grad: Tensor,
    x: Tensor,
    gates: Tensor,
    order: RowOrder,
    weights: ExpertWeights,
    pre: Tensor,
    hidden: Tensor,
    activation: str,
    input_grad: bool,
    up_grad: bool,
    down_grad: bool,
) -> Gradients:
    """Computes :func:`moekit_kernels.moe_ffn.loop.backward`."""
    act = ACTIVATIONS[activation]
    up_proj, down_proj, up_bias, down_bias = weights
    groups = groups_of(order)
    if loop_single_rows.fits(x, gates, weights, groups):
        return loop_single_rows.backward(
            grad, x, gates, order, groups, weights, pre, hidden, activation, input_grad, up_grad, down_grad
        )
    dtype, ends = torch.promote_types(x.dtype, gates.dtype), order.offsets[1:].int()
    gates_N1 = order.by_row(gates).unsqueeze(-1)
    x_ND = x.index_select(0, order.token_of_row)
    pre_NF1 = pre if pre.shape[0] else _products(x_ND, up_proj.mT, up_bias, groups, ends)
    hidden_NF, parts = (hidden, None) if hidden.shape[0] else act.recompute(pre_NF1)
    grad_ND2 = grad.index_select(0, order.token_of_row)
    grad_hidden_NF = _products(grad_ND2, down_proj, None, groups, ends)
    grad_pre_NF1 = act.backward(_weighted(grad_hidden_NF, gates_N1, x.dtype), pre_NF1, parts)
    grad_x = grad_gates = grad_up = grad_down = grad_up_bias = grad_down_bias = None
    if input_grad:
        rows_ND = _products(grad_pre_NF1, up_proj, None, groups, ends).to(dtype)
        grad_x = rows_ND.new_zeros(x.shape).index_add_(0, order.token_of_row, rows_ND).to(x.dtype)
        by_row = (grad_hidden_NF.to(gates.dtype) * hidden_NF.to(gates.dtype)).sum(-1)
        if down_bias is not None:
            by_row += _products(grad_ND2, down_bias.unsqueeze(-1), None, groups, ends).squeeze(-1).to(gates.dtype)
        grad_gates = order.by_slot(by_row).view(gates.shape)
    if up_grad:
        grad_up = _outer_products(grad_pre_NF1, x_ND, up_proj, groups, ends)
        grad_up_bias = _sums(grad_pre_NF1, up_bias, groups)
    if down_grad:
        weighted_ND2 = _weighted(grad_ND2, gates_N1, x.dtype)
        grad_down = _outer_products(weighted_ND2, hidden_NF, down_proj, groups, ends)
        grad_down_bias = _sums(weighted_ND2, down_bias, groups)
    return Gradients(grad_x, grad_gates, grad_up, grad_down, grad_up_bias, grad_down_bias)
