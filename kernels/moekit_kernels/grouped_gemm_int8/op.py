"""``moekit::grouped_gemm_int8``: schema, fake, autograd.

The operation with ``transpose`` is the gradient of the one without, and the reverse, so gradients of every order exist
for rows and biases. Integers and scales have none.

Letters: N rows, E experts, D and F widths of input and output.
"""

from typing import Any

import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor

from moekit_kernels.autocast import autocast
from moekit_kernels.eager import operation
from moekit_kernels.flops import Shape, register_flops
from moekit_kernels.forward_mode import refuse_forward_mode
from moekit_kernels.grouped_gemm_int8 import backends
from moekit_kernels.grouped_gemm_int8.reference import grouped_gemm_int8_reference
from moekit_kernels.impl import Impl, Limits, resolve_impl

LIMITS = Limits(has_torch=True)


def _resolve(impl: str, x: Tensor) -> str:
    return resolve_impl(impl, LIMITS, x.device, ("rows", x.dtype))


@operation("moekit::grouped_gemm_int8")
def _grouped_gemm_int8(
    x: Tensor, values: Tensor, scale: Tensor, offsets: Tensor, bias: Tensor | None, transpose: bool, impl: str
) -> Tensor:
    if _resolve(impl, x) == "triton":
        from moekit_kernels.grouped_gemm_int8 import launches

        return launches.linear(x, values, scale, offsets, bias, transpose)
    return backends.linear(x, values, scale, offsets, bias, transpose)


@_grouped_gemm_int8.register_fake
def _(
    x: Tensor, values: Tensor, scale: Tensor, offsets: Tensor, bias: Tensor | None, transpose: bool, impl: str
) -> Tensor:
    return x.new_empty(x.shape[0], values.shape[2 if transpose else 1])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, values, scale, offsets, bias, ctx.transpose, ctx.impl = inputs
    ctx.save_for_backward(values, scale, offsets)
    ctx.has_bias = bias is not None


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    values, scale, offsets = ctx.saved_tensors
    refuse_forward_mode("grouped_gemm_int8", grad)
    grad_x = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_x = _grouped_gemm_int8(grad, values, scale, offsets, None, not ctx.transpose, ctx.impl)
    if ctx.has_bias and ctx.needs_input_grad[4]:
        grad_bias = _sums(grad, offsets)
    return grad_x, None, None, None, grad_bias, None, None


def _sums(rows: Tensor, offsets: Tensor) -> Tensor:
    """Returns the sum of each expert's rows, ``(E, F)``; unassigned rows count nowhere."""
    num_experts = offsets.shape[0] - 1
    row_N = torch.arange(rows.shape[0], device=rows.device)
    expert_of_row = torch.searchsorted(offsets[1:].contiguous(), row_N, right=True)
    sums = rows.new_zeros(num_experts + 1, rows.shape[1]).index_add(0, expert_of_row, rows)
    return sums[:num_experts]


_grouped_gemm_int8.register_autograd(_backward, setup_context=_save)


def _flops(x: Shape, values: Shape, *others: Any, **ignored: Any) -> int:
    """Returns ``2·N·D·F``."""
    return 2 * x[0] * values[1] * values[2]


register_flops("grouped_gemm_int8", _flops)


def grouped_gemm_int8(
    x: Float[Tensor, "N D"],
    values: Int8[Tensor, "E F D"],
    scale: Float[Tensor, "E F"],
    offsets: Int[Tensor, "E+1"],
    bias: Float[Tensor, "E F"] | None = None,
    *,
    impl: Impl = "auto",
) -> Float[Tensor, "N F"]:
    """Computes ``y[r] = scale[e] * (values[e] @ x[r]) + bias[e]`` for the rows ``offsets[e] <= r < offsets[e + 1]``.

    Rows from ``offsets[E]`` on are unassigned: zero output, zero gradient. Under ``torch.autocast`` the rows take the
    autocast dtype.

    Args:
        x: Rows, sorted by expert; floating.
        values: Integers, one matrix per expert, as :func:`quantize` makes them.
        scale: One factor for each output, float32.
        offsets: Non-decreasing, ``offsets[0] == 0``, ``offsets[E] <= N``.
        bias: One vector per expert; added in the dtype of ``x``.
        impl: ``"reference"``: :func:`grouped_gemm_int8_reference`. ``"torch"``: on CPU and in float64 a loop over the
            experts, which dequantises one at a time; elsewhere ``F.grouped_mm`` of weights that are dequantised for the
            call. ``"triton"``: one kernel, which dequantises in registers. All have gradients of every order for rows
            and biases. See :mod:`moekit_kernels.impl`.

    Returns:
        Shape ``(N, F)``, in the dtype of ``x``.

    Raises:
        ValueError: If shapes or dtypes do not fit each other, or ``impl`` is unknown or cannot run here.

    Example:
        >>> from moekit_kernels.grouped_gemm_int8 import quantize
        >>> values, scale = quantize(torch.tensor([[[0.5, -1.0]], [[2.0, 1.0]]]))
        >>> grouped_gemm_int8(torch.ones(3, 2), values, scale, torch.tensor([0, 1, 3])).flatten()
        tensor([-0.4961,  3.0079,  3.0079])
    """
    x = autocast(x)
    bias = None if bias is None else bias.to(x.dtype)
    _check(x, values, scale, offsets, bias)
    if _resolve(impl, x) == "reference":
        return grouped_gemm_int8_reference(x, values, scale, offsets, bias)
    refuse_forward_mode("grouped_gemm_int8", x, bias)
    return _grouped_gemm_int8(x, values, scale, offsets, bias, False, impl)


def _check(x: Tensor, values: Tensor, scale: Tensor, offsets: Tensor, bias: Tensor | None) -> None:
    if x.ndim != 2 or values.ndim != 3 or x.shape[1] != values.shape[2]:
        raise ValueError(f"x must be (N, D) and values (E, F, D), got {tuple(x.shape)} and {tuple(values.shape)}.")
    if not x.is_floating_point() or values.dtype != torch.int8 or scale.dtype != torch.float32:
        raise ValueError(
            f"x must be floating, values int8 and scale float32, got {x.dtype}, {values.dtype} and {scale.dtype}."
        )
    for name, tensor, shape in (
        ("scale", scale, values.shape[:2]),
        ("offsets", offsets, (values.shape[0] + 1,)),
        ("bias", bias, values.shape[:2]),
    ):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(tensor.shape)}.")
