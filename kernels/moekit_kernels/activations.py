"""Activations of expert FFNs, each with its derivative, by name.

A *gated* activation (a GLU, Shazeer 2020, https://arxiv.org/abs/2002.05202) reads ``2F`` columns and
gives ``F``: the first half is the gate, the second half the value (the concatenated layout of
``transformers``' ``gate_up_proj``).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten


class Activation(NamedTuple):
    """One activation.

    Attributes:
        name: Its name in the public API.
        gated: Whether it reads two halves (``2F`` columns) and gives one (``F``).
        forward: ``(N, F or 2F) -> (N, F)``, differentiable.
        compute: The same value with fewer temporaries; not to be differentiated.
        backward: ``(grad of the output (N, F), pre-activation (N, F or 2F)) -> grad of the pre-activation``.
    """

    name: str
    gated: bool
    forward: Callable[[Tensor], Tensor]
    compute: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]


def _gelu_backward(grad: Tensor, pre: Tensor) -> Tensor:
    return aten.gelu_backward(grad, pre)


def _relu_backward(grad: Tensor, pre: Tensor) -> Tensor:
    return aten.threshold_backward(grad, pre, 0)


def _silu_backward(grad: Tensor, pre: Tensor) -> Tensor:
    return aten.silu_backward(grad, pre)


def _plain(name: str, act: Callable[[Tensor], Tensor], derivative: Callable[[Tensor, Tensor], Tensor]) -> Activation:
    return Activation(name, False, act, act, derivative)


def _glu(name: str, act: Callable[[Tensor], Tensor], derivative: Callable[[Tensor, Tensor], Tensor]) -> Activation:
    def forward(pre: Tensor) -> Tensor:
        gate, value = pre.chunk(2, dim=-1)
        return act(gate) * value

    def compute(pre: Tensor) -> Tensor:
        gate, value = pre.chunk(2, dim=-1)
        return act(gate).mul_(value)

    def backward(grad: Tensor, pre: Tensor) -> Tensor:
        gate, value = pre.chunk(2, dim=-1)
        half = gate.shape[-1]
        out = torch.empty_like(pre)
        torch.mul(grad, act(gate), out=out[:, half:])
        out[:, :half] = derivative(grad * value, gate)
        return out

    return Activation(name, True, forward, compute, backward)


ACTIVATIONS: dict[str, Activation] = {
    activation.name: activation
    for activation in (
        _plain("gelu", F.gelu, _gelu_backward),
        _plain("relu", F.relu, _relu_backward),
        _plain("silu", F.silu, _silu_backward),
        _glu("swiglu", F.silu, _silu_backward),
        _glu("geglu", F.gelu, _gelu_backward),
    )
}
"""Every activation that has a name."""
