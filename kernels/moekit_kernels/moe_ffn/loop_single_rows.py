"""The fused expert FFN on CPU where no expert has more than one row, as for a single token: vectors, not matrices.

A product of a matrix and a vector adds to the output of its token and is weighted by the gate in one operation, so
rows of tokens are neither gathered nor added up. Same functions and letters as :mod:`moekit_kernels.moe_ffn.loop`.
"""

from itertools import chain
from typing import cast

import torch
from torch import Tensor

from moekit_kernels.activations import ACTIVATIONS
from moekit_kernels.moe_ffn.loop_groups import Groups
from moekit_kernels.moe_ffn.operands import ExpertWeights, Gradients
from moekit_kernels.plan.dispatch_plan import RowOrder


def fits(x: Tensor, gates: Tensor, weights: ExpertWeights, groups: Groups) -> bool:
    """Returns whether these functions compute this call: single rows, one dtype to add up in, no biases."""
    return groups.single and x.dtype == gates.dtype and weights.up_bias is None and weights.down_bias is None


def _products(matrices: Tensor, vectors: list[Tensor], num_rows: int, groups: Groups) -> Tensor:
    """Returns each row's matrix times its vector, ``(N, m)``; zero for unassigned rows.

    Args:
        matrices: ``(E, m, k)``.
        vectors: ``(k,)`` of each row.
        num_rows: ``N``.
        groups: The expert of each row.
    """
    out = matrices.new_empty(num_rows, matrices.shape[1])
    groups.clear_unassigned(out)
    for expert, vector, row in zip(groups.experts, vectors, out.unbind(), strict=False):
        torch.mv(matrices[expert], vector, out=row)
    return out


def _of_tokens(rows: Tensor, tokens: list[int]) -> list[Tensor]:
    each = rows.unbind()
    return [each[token] for token in tokens]


def _add_product(out: Tensor, matrix: Tensor, vector: Tensor, gate: float) -> None:
    if gate:
        out.addmv_(matrix, vector, alpha=gate)
    else:  # addmv would skip the product, and hide that it is not finite
        out.add_(torch.mv(matrix, vector), alpha=gate)


def forward(
    x: Tensor,
    gates: Tensor,
    order: RowOrder,
    groups: Groups,
    weights: ExpertWeights,
    activation: str,
    keep_pre: bool,
    keep_hidden: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes :func:`moekit_kernels.moe_ffn.loop.forward`."""
    up_proj, down_proj = weights[:2]
    tokens = cast(list[int], order.token_of_row.tolist())
    gate_of_slot = list(chain(*cast(list[list[float]], gates.tolist())))
    gate_of_row = [gate_of_slot[slot] for slot in cast(list[int], order.slot_of_row.tolist())]
    pre_NF1 = _products(up_proj, _of_tokens(x, tokens), len(tokens), groups)
    hidden_NF = ACTIVATIONS[activation].compute(pre_NF1)
    out_TD2 = x.new_zeros(x.shape[0], down_proj.shape[1])
    outputs = _of_tokens(out_TD2, tokens)
    for expert, hidden, out, gate in zip(groups.experts, hidden_NF.unbind(), outputs, gate_of_row, strict=False):
        _add_product(out, down_proj[expert], hidden, gate)
    assigned = len(groups.experts)
    for out, gate in zip(outputs[assigned:], gate_of_row[assigned:], strict=True):
        out.add_(gate * 0)  # a NaN gate of an unassigned row shows in its own token
    pre_NF1 = pre_NF1 if keep_pre else x.new_empty(0, up_proj.shape[1])
    hidden_NF = hidden_NF if keep_hidden else x.new_empty(0, down_proj.shape[2])
    return out_TD2, pre_NF1, hidden_NF


def backward(
    grad: Tensor,
    x: Tensor,
    gates: Tensor,
    order: RowOrder,
    groups: Groups,
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
    up_proj, down_proj = weights[:2]
    tokens = cast(list[int], order.token_of_row.tolist())
    num_rows = len(tokens)
    gates_N1 = order.by_row(gates).unsqueeze(-1)
    x_rows, grad_rows = _of_tokens(x, tokens), _of_tokens(grad, tokens)
    pre_NF1 = pre if pre.shape[0] else _products(up_proj, x_rows, num_rows, groups)
    hidden_NF, parts = (hidden, None) if hidden.shape[0] else act.recompute(pre_NF1)
    grad_hidden_NF = _products(down_proj.mT, grad_rows, num_rows, groups)
    grad_pre_NF1 = act.backward(grad_hidden_NF * gates_N1, pre_NF1, parts)
    grad_pre_rows = grad_pre_NF1.unbind()
    grad_x = grad_gates = grad_up = grad_down = None
    if input_grad:
        grad_x = x.new_zeros(x.shape)
        up_T, outputs = up_proj.mT, _of_tokens(grad_x, tokens)
        for expert, grad_pre, out in zip(groups.experts, grad_pre_rows, outputs, strict=False):
            out.addmv_(up_T[expert], grad_pre)
        grad_gates = order.by_slot((grad_hidden_NF * hidden_NF).sum(-1)).view(gates.shape)
    if up_grad:
        grad_up = groups.gradient_like(up_proj)
        for expert, grad_pre, token in zip(groups.experts, grad_pre_rows, x_rows, strict=False):
            torch.outer(grad_pre, token, out=grad_up[expert])
    if down_grad:
        grad_down = groups.gradient_like(down_proj)
        weighted = (hidden_NF * gates_N1).unbind()
        for expert, grad_row, hidden_row in zip(groups.experts, grad_rows, weighted, strict=False):
            torch.outer(grad_row, hidden_row, out=grad_down[expert])
    return Gradients(grad_x, grad_gates, grad_up, grad_down)
