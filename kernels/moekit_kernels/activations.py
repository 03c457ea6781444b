"""Activations of expert FFNs, each with its derivative, by name.

A *gated* activation (a GLU, Shazeer 2020, https://arxiv.org/abs/2002.05202) reads ``2F`` columns and gives
``F``: ``scalar(gate) * value``. Its columns are *concatenated*, ``F`` of the gate and then ``F`` of the value
(``transformers``' ``gate_up_proj``), or *interleaved*, column ``2f`` of the gate and ``2f + 1`` of the value
(GPT-OSS).

Names end with the letters of their layout: N rows, F hidden width, F1 columns of the pre-activation, F or 2F.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten

_Parts = tuple[Tensor, Tensor, Tensor]


class Activation(NamedTuple):
    """One activation.

    Attributes:
        name: Its name in the public API.
        gated: Whether it reads a gate and a value (``2F`` columns) and gives one (``F``).
        scalar: The function of one number that it is made of: ``"gelu"``, ``"relu"`` or ``"silu"``.
        interleaved: Whether gate and value alternate; False where it is not gated.
        forward: ``(N, F or 2F) -> (N, F)``, differentiable.
        compute: The same value with fewer temporaries; not to be differentiated.
        recompute: The same value for a backward pass, and what ``backward`` would compute again: gate, value and
            ``scalar(gate)``; None where it is not gated.
        backward: ``(grad of the output (N, F), pre-activation (N, F or 2F), parts of recompute or None) -> grad of the
            pre-activation``, in the layout of the pre-activation.
    """

    name: str
    gated: bool
    scalar: str
    interleaved: bool
    forward: Callable[[Tensor], Tensor]
    compute: Callable[[Tensor], Tensor]
    recompute: Callable[[Tensor], tuple[Tensor, _Parts | None]]
    backward: Callable[..., Tensor]


class _Scalar(NamedTuple):
    """A function of one number, and its derivative times ``grad``, written to ``out``."""

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor, Tensor], Tensor]


def _gelu_backward(grad: Tensor, pre: Tensor, out: Tensor) -> Tensor:
    return aten.gelu_backward.grad_input(grad, pre, grad_input=out)


def _relu_backward(grad: Tensor, pre: Tensor, out: Tensor) -> Tensor:
    return aten.threshold_backward.grad_input(grad, pre, 0, grad_input=out)


def _silu_backward(grad: Tensor, pre: Tensor, out: Tensor) -> Tensor:
    return aten.silu_backward.grad_input(grad, pre, grad_input=out)


_SCALARS = {
    "gelu": _Scalar(F.gelu, _gelu_backward),
    "relu": _Scalar(F.relu, _relu_backward),
    "silu": _Scalar(F.silu, _silu_backward),
}


def _halves(columns: Tensor) -> tuple[Tensor, Tensor]:
    gate, value = columns.chunk(2, dim=-1)
    return gate, value


def _alternate(columns: Tensor) -> tuple[Tensor, Tensor]:
    return columns[..., 0::2], columns[..., 1::2]


def _plain(scalar: str) -> Activation:
    act, derivative = _SCALARS[scalar]

    def recompute(pre: Tensor) -> tuple[Tensor, None]:
        return act(pre), None

    def backward(grad: Tensor, pre: Tensor, parts: None = None) -> Tensor:
        return derivative(grad, pre, torch.empty_like(pre))

    return Activation(scalar, False, scalar, False, act, act, recompute, backward)


def _glu(name: str, scalar: str, *, interleaved: bool = False) -> Activation:
    act, derivative = _SCALARS[scalar]
    split = _alternate if interleaved else _halves

    def forward(pre: Tensor) -> Tensor:
        gate_NF, value_NF = split(pre)
        return act(gate_NF) * value_NF

    def compute(pre: Tensor) -> Tensor:
        gate_NF, value_NF = split(pre)
        return act(gate_NF).mul_(value_NF)

    def parts_of(pre: Tensor) -> _Parts:
        gate_NF, value_NF = split(pre)
        return gate_NF, value_NF, act(gate_NF)

    def recompute(pre: Tensor) -> tuple[Tensor, _Parts]:
        parts = parts_of(pre)
        _, value_NF, acted_NF = parts
        return acted_NF * value_NF, parts

    def backward(grad: Tensor, pre: Tensor, parts: _Parts | None = None) -> Tensor:
        gate_NF, value_NF, acted_NF = parts_of(pre) if parts is None else parts
        grad_pre_NF1 = torch.empty_like(pre)
        grad_gate_NF, grad_value_NF = split(grad_pre_NF1)
        torch.mul(grad, acted_NF, out=grad_value_NF)
        derivative(grad * value_NF, gate_NF, grad_gate_NF)
        return grad_pre_NF1

    return Activation(name, True, scalar, interleaved, forward, compute, recompute, backward)


ACTIVATIONS: dict[str, Activation] = {
    activation.name: activation
    for activation in (
        _plain("gelu"),
        _plain("relu"),
        _plain("silu"),
        _glu("swiglu", "silu"),
        _glu("geglu", "gelu"),
        _glu("swiglu_interleaved", "silu", interleaved=True),
        _glu("geglu_interleaved", "gelu", interleaved=True),
    )
}
"""Every activation that has a name."""
