"""The fused expert FFN on CPU: one expert at a time, so that what it makes stays in cache.

Kept for backward are the pre-activations only. The backward pass recomputes the activation, and takes
the gate's gradient as ``<dA', A>`` with ``dA' = dOut W_down`` before weighting (the identity of
SonicMoE, https://arxiv.org/abs/2512.14080), so no expert output is kept either.
"""

from itertools import pairwise
from typing import NamedTuple, cast

import torch
from torch import Tensor

from moekit_kernels.activations import Activation


class Gradients(NamedTuple):
    """Gradients of :func:`forward`'s tensor arguments, in its order."""

    x: Tensor
    gates: Tensor
    up_proj: Tensor
    down_proj: Tensor
    up_bias: Tensor | None
    down_bias: Tensor | None


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    if bias is None:
        return torch.mm(x, weight.mT) if out is None else torch.mm(x, weight.mT, out=out)
    return torch.addmm(bias, x, weight.mT) if out is None else torch.addmm(bias, x, weight.mT, out=out)


def _weighted(rows: Tensor, gate: Tensor, dtype: torch.dtype) -> Tensor:
    """``rows * gate``, in place where no dtype stands against it."""
    return rows.mul_(gate) if rows.dtype == gate.dtype == dtype else (rows * gate).to(dtype)


def forward(
    x: Tensor,
    gates: Tensor,
    token: Tensor,
    slot: Tensor,
    offsets: Tensor,
    up_proj: Tensor,
    down_proj: Tensor,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    activation: Activation,
    keep_pre: bool,
) -> tuple[Tensor, Tensor]:
    """Returns ``(out (T, D), pre-activations (N, F1), or (0, F1) unless keep_pre)``."""
    bounds = cast(list[int], offsets.tolist())
    gate = gates.reshape(-1)[slot].unsqueeze(-1)
    out = torch.zeros(x.shape[0], down_proj.shape[1], dtype=torch.promote_types(x.dtype, gates.dtype))
    pre = x.new_empty(len(token) if keep_pre else 0, up_proj.shape[1])
    for expert, (start, end) in enumerate(pairwise(bounds)):
        if start == end:
            continue
        tokens = token[start:end]
        kept = pre[start:end] if keep_pre else None
        up = _linear(x.index_select(0, tokens), up_proj[expert], None if up_bias is None else up_bias[expert], kept)
        y = _linear(activation.compute(up), down_proj[expert], None if down_bias is None else down_bias[expert])
        out.index_add_(0, tokens, _weighted(y, gate[start:end], out.dtype))
    if bounds[-1] < len(token):  # rows of no expert give nothing, but a NaN gate shows in its own token
        rest = slice(bounds[-1], None)
        out.index_add_(0, token[rest], (gate[rest] * 0).to(out.dtype).expand(-1, out.shape[1]))
        if keep_pre:
            pre[rest] = 0
    return out.to(x.dtype), pre


def backward(
    grad: Tensor,
    x: Tensor,
    gates: Tensor,
    token: Tensor,
    slot: Tensor,
    offsets: Tensor,
    up_proj: Tensor,
    down_proj: Tensor,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    pre: Tensor,
    activation: Activation,
) -> Gradients:
    """Gradients of :func:`forward`, given that of its output; ``pre`` is what it kept."""
    bounds = cast(list[int], offsets.tolist())
    gate = gates.reshape(-1)[slot].unsqueeze(-1)
    grad_x = torch.zeros(x.shape, dtype=torch.promote_types(x.dtype, gates.dtype))
    grad_gate = gates.new_zeros(len(token))
    # Contiguous whatever the weights are, as the fake promises the compiler.
    grad_up, grad_down = up_proj.new_empty(up_proj.shape), down_proj.new_empty(down_proj.shape)
    grad_up_bias = None if up_bias is None else up_bias.new_zeros(up_bias.shape)
    grad_down_bias = None if down_bias is None else down_bias.new_zeros(down_bias.shape)
    for expert, (start, end) in enumerate(pairwise(bounds)):
        if start == end:
            grad_up[expert], grad_down[expert] = 0, 0
            continue
        tokens, weight = token[start:end], gate[start:end]
        g = grad.index_select(0, tokens)
        act = activation.compute(pre[start:end])
        grad_act = g @ down_proj[expert]
        per_gate = cast(Tensor, torch.linalg.vecdot(grad_act.to(gates.dtype), act.to(gates.dtype)))
        if down_bias is not None and grad_down_bias is not None:
            per_gate = per_gate + (g @ down_bias[expert]).to(gates.dtype)
        grad_gate[start:end] = per_gate
        g = _weighted(g, weight, x.dtype)
        torch.mm(g.mT, act, out=grad_down[expert])
        grad_pre = activation.backward(_weighted(grad_act, weight, x.dtype), pre[start:end])
        torch.mm(grad_pre.mT, x.index_select(0, tokens), out=grad_up[expert])
        grad_x.index_add_(0, tokens, (grad_pre @ up_proj[expert]).to(grad_x.dtype))
        if grad_down_bias is not None:
            grad_down_bias[expert] = g.sum(0)
        if grad_up_bias is not None:
            grad_up_bias[expert] = grad_pre.sum(0)
    grad_gates = gates.new_zeros(gates.numel()).index_put((slot,), grad_gate).view(gates.shape)
    return Gradients(grad_x.to(x.dtype), grad_gates, grad_up, grad_down, grad_up_bias, grad_down_bias)
