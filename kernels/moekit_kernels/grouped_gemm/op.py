"""``moekit::grouped_linear`` and ``moekit::grouped_weight_grad``: schema, fake, autograd.

The two are closed under differentiation: each one's gradient is made of both, so gradients of every
order exist. Both are opaque to the compiler, so the loop over experts on CPU does not break a graph.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moekit_kernels.autocast import autocast
from moekit_kernels.flops import grouped_linear_flops, grouped_weight_grad_flops, register_flops
from moekit_kernels.forward_mode import refuse_forward_mode
from moekit_kernels.grouped_gemm import backends


@torch.library.custom_op("moekit::grouped_linear", mutates_args=())
def _grouped_linear(x: Tensor, weight: Tensor, offsets: Tensor, bias: Tensor | None) -> Tensor:
    if backends.uses_grouped_mm(x):
        return backends.grouped_mm_linear(x, weight, offsets, bias)
    return backends.loop_linear(x, weight, offsets, bias)


@torch.library.custom_op("moekit::grouped_weight_grad", mutates_args=())
def _grouped_weight_grad(grad: Tensor, x: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    if backends.uses_grouped_mm(x):
        return backends.grouped_mm_weight_grad(grad, x, offsets)
    return backends.loop_weight_grad(grad, x, offsets)


@_grouped_linear.register_fake
def _(x: Tensor, weight: Tensor, offsets: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@_grouped_weight_grad.register_fake
def _(grad: Tensor, x: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    experts = offsets.shape[0] - 1
    return x.new_empty(experts, grad.shape[1], x.shape[1]), x.new_empty(experts, grad.shape[1])


def _save_linear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, offsets, bias = inputs
    ctx.save_for_backward(x, weight, offsets)
    ctx.has_bias = bias is not None


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, offsets = ctx.saved_tensors
    refuse_forward_mode("grouped_linear", grad, remedy="grouped_linear_reference")
    grad_x = grad_weight = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_x = _grouped_linear(grad, weight.mT, offsets, None)
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[3]:
        grad_weight, grad_bias = _grouped_weight_grad(grad, x, offsets)
    return grad_x, grad_weight, None, grad_bias if ctx.has_bias else None


def _save_weight_grad(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _weight_grad_backward(ctx: Any, grad_weight: Tensor, grad_bias: Tensor) -> tuple[Tensor | None, ...]:
    grad, x, offsets = ctx.saved_tensors
    refuse_forward_mode("grouped_linear", grad_weight, grad_bias, remedy="grouped_linear_reference")
    return (
        _grouped_linear(x, grad_weight, offsets, grad_bias),
        _grouped_linear(grad, grad_weight.mT, offsets, None),
        None,
    )


_grouped_linear.register_autograd(_linear_backward, setup_context=_save_linear)
_grouped_weight_grad.register_autograd(_weight_grad_backward, setup_context=_save_weight_grad)
register_flops("grouped_linear", grouped_linear_flops)
register_flops("grouped_weight_grad", grouped_weight_grad_flops)


def grouped_linear(
    x: Float[Tensor, "N D"],
    weight: Float[Tensor, "E F D"],
    offsets: Int[Tensor, "E+1"],
    bias: Float[Tensor, "E F"] | None = None,
) -> Float[Tensor, "N F"]:
    """``y[r] = weight[e] @ x[r] + bias[e]`` for the rows ``offsets[e] <= r < offsets[e + 1]``.

    Rows from ``offsets[E]`` on belong to no expert: zero output, zero gradient. The gradient of an
    expert without rows is exact zero. Under ``torch.autocast`` the operands take the autocast dtype,
    as in ``F.linear``.

    Args:
        x: Rows, sorted by expert.
        weight: One matrix per expert, either of its last two dimensions contiguous.
        offsets: Non-decreasing, ``offsets[0] == 0``, ``offsets[E] <= N``.
        bias: One vector per expert.

    Returns:
        Shape ``(N, F)``.

    Reference:
        :func:`moekit_kernels.grouped_gemm.grouped_linear_reference`.
    """
    refuse_forward_mode("grouped_linear", x, weight, bias, remedy="grouped_linear_reference")
    return _grouped_linear(autocast(x), autocast(weight), offsets, autocast(bias))
