"""``moekit::grouped_gemm`` and ``moekit::grouped_gemm_weight_grad``: schema, fake, autograd.

The two are closed under differentiation: the gradient of each is made of both, so gradients of every order exist in
every implementation. Both are opaque to the compiler, so the loop over experts on CPU does not break a graph.

Letters: N rows, E experts, D and F widths of input and output.
"""

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from moekit_kernels.autocast import autocast
from moekit_kernels.eager import operation
from moekit_kernels.flops import grouped_gemm_flops, grouped_gemm_weight_grad_flops, register_flops
from moekit_kernels.forward_mode import refuse_forward_mode
from moekit_kernels.grouped_gemm.backends import backend_of
from moekit_kernels.grouped_gemm.checks import check_operands
from moekit_kernels.grouped_gemm.reference import grouped_gemm_reference
from moekit_kernels.impl import Impl, Limits, resolve_impl

LIMITS = Limits(has_torch=True)


@operation("moekit::grouped_gemm")
def _grouped_gemm(x: Tensor, weight: Tensor, offsets: Tensor, bias: Tensor | None, impl: str) -> Tensor:
    return backend_of(_resolve(impl, x), x).linear(x, weight, offsets, bias)


@operation("moekit::grouped_gemm_weight_grad")
def _weight_grad(grad: Tensor, x: Tensor, offsets: Tensor, with_bias: bool, impl: str) -> tuple[Tensor, Tensor]:
    return backend_of(_resolve(impl, x), x).weight_grad(grad, x, offsets, with_bias)


@_grouped_gemm.register_fake
def _(x: Tensor, weight: Tensor, offsets: Tensor, bias: Tensor | None, impl: str) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@_weight_grad.register_fake
def _(grad: Tensor, x: Tensor, offsets: Tensor, with_bias: bool, impl: str) -> tuple[Tensor, Tensor]:
    experts = offsets.shape[0] - 1
    return x.new_empty(experts, grad.shape[1], x.shape[1]), x.new_empty(experts if with_bias else 0, grad.shape[1])


def _save_linear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, offsets, bias, ctx.impl = inputs
    ctx.save_for_backward(x, weight, offsets)
    ctx.has_bias = bias is not None


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, offsets = ctx.saved_tensors
    refuse_forward_mode("grouped_gemm", grad)
    grad_x_ND = grad_weight_EFD = grad_bias_EF = None
    if ctx.needs_input_grad[0]:
        grad_x_ND = _grouped_gemm(grad, weight.mT, offsets, None, ctx.impl)
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[3]:
        grad_weight_EFD, grad_bias_EF = _weight_grad(grad, x, offsets, ctx.has_bias, ctx.impl)
    return grad_x_ND, grad_weight_EFD, None, grad_bias_EF if ctx.has_bias else None, None


def _save_weight_grad(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    grad, x, offsets, ctx.with_bias, ctx.impl = inputs
    ctx.save_for_backward(grad, x, offsets)


def _weight_grad_backward(ctx: Any, grad_weight: Tensor, grad_bias: Tensor) -> tuple[Tensor | None, ...]:
    grad, x, offsets = ctx.saved_tensors
    refuse_forward_mode("grouped_gemm", grad_weight, grad_bias)
    return (
        _grouped_gemm(x, grad_weight, offsets, grad_bias if ctx.with_bias else None, ctx.impl),
        _grouped_gemm(grad, grad_weight.mT, offsets, None, ctx.impl),
        None,
        None,
        None,
    )


_grouped_gemm.register_autograd(_linear_backward, setup_context=_save_linear)
_weight_grad.register_autograd(_weight_grad_backward, setup_context=_save_weight_grad)
register_flops("grouped_gemm", grouped_gemm_flops)
register_flops("grouped_gemm_weight_grad", grouped_gemm_weight_grad_flops)


def _resolve(impl: str, x: Tensor) -> str:
    return resolve_impl(impl, LIMITS, x.device, ("operands", x.dtype))


def grouped_gemm(
    x: Float[Tensor, "N D"],
    weight: Float[Tensor, "E F D"],
    offsets: Int[Tensor, "E+1"],
    bias: Float[Tensor, "E F"] | None = None,
    *,
    impl: Impl = "auto",
) -> Float[Tensor, "N F"]:
    """Computes ``y[r] = weight[e] @ x[r] + bias[e]`` for the rows ``offsets[e] <= r < offsets[e + 1]``.

    Rows from ``offsets[E]`` on are unassigned: zero output, zero gradient. The gradient of an expert without rows is
    exact zero. Under ``torch.autocast`` the operands take the autocast dtype, as in ``F.linear``.

    Args:
        x: Rows, sorted by expert.
        weight: One matrix per expert; no copy is made where one of its last two dimensions is contiguous.
        offsets: Non-decreasing, ``offsets[0] == 0``, ``offsets[E] <= N``.
        bias: One vector per expert.
        impl: ``"reference"``: :func:`grouped_gemm_reference`. ``"torch"``: a loop over the experts on CPU and in
            float64, ``F.grouped_mm`` elsewhere. ``"triton"``: one kernel. All have gradients of every order. See
            :mod:`moekit_kernels.impl`.

    Returns:
        Shape ``(N, F)``, in the dtype of ``x``.

    Raises:
        ValueError: If shapes or dtypes do not fit each other, or ``impl`` is unknown or cannot run here.

    Example:
        >>> x, weight = torch.ones(3, 2), torch.tensor([[[1.0, 1.0]], [[2.0, 2.0]]])
        >>> grouped_gemm(x, weight, torch.tensor([0, 1, 3])).flatten().tolist()
        [2.0, 4.0, 4.0]
    """
    x, weight, bias = autocast(x), autocast(weight), autocast(bias)
    check_operands(x, weight, offsets, bias)
    if _resolve(impl, x) == "reference":
        return grouped_gemm_reference(x, weight, offsets, bias)
    refuse_forward_mode("grouped_gemm", x, weight, bias)
    return _grouped_gemm(x, weight, offsets, bias, impl)
