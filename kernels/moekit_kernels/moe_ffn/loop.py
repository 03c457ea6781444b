"""The fused expert FFN on CPU: one expert at a time, so that its intermediate results stay in cache.

What the forward pass kept, the backward pass reads; the rest it computes again, expert by expert. It takes the
gate's gradient as ``<dA', A>`` with ``dA' = dOut W_down`` before weighting (the identity of SonicMoE,
https://arxiv.org/abs/2512.14080), so no expert output is kept.

The functions have the signatures of the Triton launchers. They run on every device, at the price of one read of
``offsets`` on the host. Letters: T tokens, N rows, n rows of one expert, E experts, D and D2 widths of input and
output, F hidden width, F1 columns of the pre-activation (F, or 2F for a gated activation).
"""

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor

from moekit_kernels.activations import ACTIVATIONS
from moekit_kernels.moe_ffn import loop_few_rows
from moekit_kernels.moe_ffn.operands import ExpertWeights, Gradients
from moekit_kernels.plan.dispatch_plan import RowOrder

# Most numbers of all pre-activations for which whole steps over all rows are faster than one expert after the other.
_FEW_NUMBERS = 1 << 18


def _is_few(order: RowOrder, weights: ExpertWeights) -> bool:
    return order.token_of_row.shape[0] * weights.up_proj.shape[1] <= _FEW_NUMBERS


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    if bias is None:
        return torch.mm(x, weight.mT) if out is None else torch.mm(x, weight.mT, out=out)
    return torch.addmm(bias, x, weight.mT) if out is None else torch.addmm(bias, x, weight.mT, out=out)


def _of(expert: int, bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias[expert]


def _weighted(rows: Tensor, gate: Tensor, dtype: torch.dtype) -> Tensor:
    """``rows * gate``, in place where the dtypes allow it."""
    return rows.mul_(gate) if rows.dtype == gate.dtype == dtype else (rows * gate).to(dtype)


def forward(
    x: Tensor,
    gates: Tensor,
    order: RowOrder,
    weights: ExpertWeights,
    activation: str,
    keep_pre: bool,
    keep_hidden: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns ``(out (T, D2), pre-activations (N, F1), hidden (N, F))``, the last two without rows unless kept."""
    if _is_few(order, weights):
        return loop_few_rows.forward(x, gates, order, weights, activation, keep_pre, keep_hidden)
    act = ACTIVATIONS[activation]
    up_proj, down_proj, up_bias, down_bias = weights
    token_of_row = order.token_of_row
    num_rows = token_of_row.shape[0]
    bounds = cast(list[int], order.offsets.tolist())
    gate_N1 = order.by_row(gates).unsqueeze(-1)
    out_TD2 = x.new_zeros(x.shape[0], down_proj.shape[1], dtype=torch.promote_types(x.dtype, gates.dtype))
    pre_NF1 = x.new_empty(num_rows if keep_pre else 0, up_proj.shape[1])
    hidden_NF = x.new_empty(num_rows if keep_hidden else 0, down_proj.shape[2])
    for expert, (start, end) in enumerate(pairwise(bounds)):
        if start == end:
            continue
        tokens = token_of_row[start:end]
        pre_nF1 = pre_NF1[start:end] if keep_pre else None
        hidden_nF = act.compute(_linear(x.index_select(0, tokens), up_proj[expert], _of(expert, up_bias), pre_nF1))
        if keep_hidden:
            hidden_NF[start:end] = hidden_nF
        y_nD2 = _linear(hidden_nF, down_proj[expert], _of(expert, down_bias))
        out_TD2.index_add_(0, tokens, _weighted(y_nD2, gate_N1[start:end], out_TD2.dtype))
    if bounds[-1] < num_rows:  # unassigned rows add nothing, but a NaN gate shows in its own token
        rest = slice(bounds[-1], None)
        out_TD2.index_add_(0, token_of_row[rest], (gate_N1[rest] * 0).to(out_TD2.dtype).expand(-1, out_TD2.shape[1]))
        for rows in (pre_NF1, hidden_NF):
            rows[rest] = 0
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
    """Returns the gradients of :func:`forward`.

    ``pre`` and ``hidden`` are what it kept, and computed again if that was nothing; ``input_grad`` asks for the
    gradients of ``x`` and ``gates``, ``up_grad`` and ``down_grad`` for those of one product's matrices and biases.
    """
    if _is_few(order, weights):
        return loop_few_rows.backward(
            grad, x, gates, order, weights, pre, hidden, activation, input_grad, up_grad, down_grad
        )
    act = ACTIVATIONS[activation]
    up_proj, down_proj, up_bias, down_bias = weights
    bounds = cast(list[int], order.offsets.tolist())
    gate_N1 = order.by_row(gates).unsqueeze(-1)
    inputs = _InputGradients(x, gates, order) if input_grad else None
    of_up = _WeightGradients(up_proj, up_bias) if up_grad else None
    of_down = _WeightGradients(down_proj, down_bias) if down_grad else None
    for expert, (start, end) in enumerate(pairwise(bounds)):
        if start == end:
            for of_weights in (of_up, of_down):
                if of_weights is not None:
                    of_weights.clear(expert)
            continue
        rows, tokens, gate_n1 = slice(start, end), order.token_of_row[start:end], gate_N1[start:end]
        pre_nF1 = pre[rows] if pre.shape[0] else _linear(x[tokens], up_proj[expert], _of(expert, up_bias))
        hidden_nF, parts = (hidden[rows], None) if hidden.shape[0] else act.recompute(pre_nF1)
        grad_nD2 = grad.index_select(0, tokens)
        grad_hidden_nF = grad_nD2 @ down_proj[expert]
        if inputs is not None:
            inputs.of_gates(rows, grad_hidden_nF, hidden_nF, grad_nD2, _of(expert, down_bias))
        grad_nD2 = _weighted(grad_nD2, gate_n1, x.dtype)
        if of_down is not None:
            of_down.add(expert, grad_nD2, hidden_nF)
        grad_pre_nF1 = act.backward(_weighted(grad_hidden_nF, gate_n1, x.dtype), pre_nF1, parts)
        if of_up is not None:
            of_up.add(expert, grad_pre_nF1, x.index_select(0, tokens))
        if inputs is not None:
            inputs.of_x(tokens, grad_pre_nF1 @ up_proj[expert])
    grad_x, grad_gates = (None, None) if inputs is None else inputs.finished()
    grad_up, grad_up_bias = (None, None) if of_up is None else (of_up.matrices, of_up.biases)
    grad_down, grad_down_bias = (None, None) if of_down is None else (of_down.matrices, of_down.biases)
    return Gradients(grad_x, grad_gates, grad_up, grad_down, grad_up_bias, grad_down_bias)


class _InputGradients:
    """Sums the gradients of tokens and gates over the experts."""

    def __init__(self, x: Tensor, gates: Tensor, order: RowOrder) -> None:
        self.dtype = x.dtype
        self.gates, self.order = gates, order
        self.x = x.new_zeros(x.shape, dtype=torch.promote_types(x.dtype, gates.dtype))
        self.by_row = gates.new_zeros(order.slot_of_row.shape[0])

    def of_gates(self, rows: slice, grad_act: Tensor, a: Tensor, g: Tensor, down_bias: Tensor | None) -> None:
        dtype = self.gates.dtype
        dot = cast(Tensor, torch.linalg.vecdot(grad_act.to(dtype), a.to(dtype)))
        self.by_row[rows] = dot if down_bias is None else dot + (g @ down_bias).to(dtype)

    def of_x(self, tokens: Tensor, rows: Tensor) -> None:
        self.x.index_add_(0, tokens, rows.to(self.x.dtype))

    def finished(self) -> tuple[Tensor, Tensor]:
        return self.x.to(self.dtype), self.order.by_slot(self.by_row).view(self.gates.shape)


class _WeightGradients:
    """Collects the gradients of one product's matrices and biases, each expert's in its place."""

    def __init__(self, matrices: Tensor, biases: Tensor | None) -> None:
        # Contiguous whatever the weights are, as the fake promises the compiler.
        self.matrices = matrices.new_empty(matrices.shape)
        self.biases = None if biases is None else biases.new_zeros(biases.shape)

    def clear(self, expert: int) -> None:
        self.matrices[expert].zero_()

    def add(self, expert: int, grad: Tensor, rows: Tensor) -> None:
        torch.mm(grad.mT, rows, out=self.matrices[expert])
        if self.biases is not None:
            self.biases[expert] = grad.sum(0)
