"""``moekit::moe_ffn`` and ``moekit::moe_ffn_backward``: schema, fake, autograd.

Which kernel computes is decided inside the operations, at run time: the compiler does not trace them, and an exported
program can be moved to another device.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any, Literal, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

from moekit_kernels.activations import Activation, activation_of
from moekit_kernels.activations.activation import name_or_function
from moekit_kernels.autocast import autocast, autocast_is_on
from moekit_kernels.eager import operation
from moekit_kernels.flops import moe_ffn_backward_flops, moe_ffn_flops, register_flops
from moekit_kernels.forward_mode import refuse_forward_mode
from moekit_kernels.impl import Impl, Limits, resolve_impl
from moekit_kernels.moe_ffn import loop
from moekit_kernels.moe_ffn.checks import check_dtypes, check_names, check_shapes
from moekit_kernels.moe_ffn.operands import ExpertWeights
from moekit_kernels.moe_ffn.parts import moe_ffn_parts
from moekit_kernels.moe_ffn.reference import moe_ffn_reference
from moekit_kernels.plan.dispatch_plan import DispatchPlan, RowOrder

LIMITS = Limits(has_torch=True)

Recompute = Literal["activation", "none", "all"]
"""What the backward pass computes again; see :func:`moe_ffn`."""

# The arguments that get a gradient, by their place in the schema: x and gates, then weights and biases.
_INPUT_PLACES = (0, 1)
_UP_PLACES, _DOWN_PLACES = (7, 9), (8, 10)
_NUM_ARGUMENTS = 15

# "meta" computes shapes only, and is treated like a CPU.
_LOOP_DEVICES = ("cpu", "meta")


def _resolve(impl: str, x: Tensor, gates: Tensor, activation: object) -> str:
    operands = (("tokens and weights", x.dtype), ("gates", gates.dtype))
    return resolve_impl(impl, LIMITS, x.device, *operands, activation=activation)


def _kernel(impl: str, x: Tensor, gates: Tensor, activation: str) -> ModuleType:
    """Returns the module whose ``forward`` and ``backward`` compute."""
    if _resolve(impl, x, gates, activation) != "triton":
        return loop
    from moekit_kernels.moe_ffn import launches

    return launches


@operation("moekit::moe_ffn")
def _moe_ffn(
    x: Tensor,
    gates: Tensor,
    token_of_row: Tensor,
    slot_of_row: Tensor,
    offsets: Tensor,
    row_of_slot: Tensor | None,
    tiles: Tensor | None,
    up_proj: Tensor,
    down_proj: Tensor,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    activation: str,
    keep_pre: bool,
    keep_hidden: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    order = RowOrder(token_of_row, slot_of_row, offsets, row_of_slot, tiles)
    weights = ExpertWeights(up_proj, down_proj, up_bias, down_bias)
    return _kernel(impl, x, gates, activation).forward(x, gates, order, weights, activation, keep_pre, keep_hidden)


@operation("moekit::moe_ffn_backward")
def _moe_ffn_backward(
    grad: Tensor,
    x: Tensor,
    gates: Tensor,
    token_of_row: Tensor,
    slot_of_row: Tensor,
    offsets: Tensor,
    row_of_slot: Tensor | None,
    tiles: Tensor | None,
    up_proj: Tensor,
    down_proj: Tensor,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    pre: Tensor,
    hidden: Tensor,
    activation: str,
    input_grad: bool,
    up_grad: bool,
    down_grad: bool,
    impl: str,
) -> list[Tensor]:
    order = RowOrder(token_of_row, slot_of_row, offsets, row_of_slot, tiles)
    weights = ExpertWeights(up_proj, down_proj, up_bias, down_bias)
    backward = _kernel(impl, x, gates, activation).backward
    gradients = backward(grad, x, gates, order, weights, pre, hidden, activation, input_grad, up_grad, down_grad)
    return [gradient for gradient in gradients if gradient is not None]


@_moe_ffn.register_fake
def _(
    x: Tensor,
    gates: Tensor,
    token_of_row: Tensor,
    slot_of_row: Tensor,
    offsets: Tensor,
    row_of_slot: Tensor | None,
    tiles: Tensor | None,
    up_proj: Tensor,
    down_proj: Tensor,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    activation: str,
    keep_pre: bool,
    keep_hidden: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    pre = x.new_empty(token_of_row.shape[0] if keep_pre else 0, up_proj.shape[1])
    hidden = x.new_empty(token_of_row.shape[0] if keep_hidden else 0, down_proj.shape[2])
    return x.new_empty(x.shape[0], down_proj.shape[1]), pre, hidden


@_moe_ffn_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    gates: Tensor,
    token_of_row: Tensor,
    slot_of_row: Tensor,
    offsets: Tensor,
    row_of_slot: Tensor | None,
    tiles: Tensor | None,
    up_proj: Tensor,
    down_proj: Tensor,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    pre: Tensor,
    hidden: Tensor,
    activation: str,
    input_grad: bool,
    up_grad: bool,
    down_grad: bool,
    impl: str,
) -> list[Tensor]:
    requested = (input_grad, input_grad, up_grad, down_grad, up_grad, down_grad)
    tensors = (x, gates, up_proj, down_proj, up_bias, down_bias)
    inputs = [t for t, is_requested in zip(tensors, requested, strict=True) if is_requested and t is not None]
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in inputs]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.activation, _, _, ctx.impl = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output[1:])


def _backward(ctx: Any, grad: Tensor | None, *kept_grads: None) -> tuple[Tensor | None, ...]:
    gradients: list[Tensor | None] = [None] * _NUM_ARGUMENTS
    if grad is None:
        return tuple(gradients)
    refuse_forward_mode("moe_ffn", grad)
    *tensors, pre, hidden = ctx.saved_tensors
    needs = ctx.needs_input_grad
    # Of one product, the gradient of the matrix comes with that of the bias.
    requested = [any(map(needs.__getitem__, places)) for places in (_INPUT_PLACES, _UP_PLACES, _DOWN_PLACES)]
    computed = _moe_ffn_backward(grad, *tensors, pre, hidden, ctx.activation, *requested, ctx.impl)
    groups = zip((_INPUT_PLACES, _UP_PLACES, _DOWN_PLACES), requested, strict=True)
    places = sorted(place for group, is_requested in groups if is_requested for place in group)
    present = [place for place in places if tensors[place] is not None]
    for place, gradient in zip(present, computed, strict=True):
        gradients[place] = gradient if needs[place] else None
    return tuple(gradients)


def _no_second_order(ctx: Any, *grads: Any) -> NoReturn:
    raise RuntimeError(
        'moe_ffn has first-order gradients only; for higher orders build the experts with impl="reference".'
    )


def _save_nothing(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None: ...


_moe_ffn.register_autograd(_backward, setup_context=_save)
_moe_ffn_backward.register_autograd(_no_second_order, setup_context=_save_nothing)
register_flops("moe_ffn", moe_ffn_flops)
register_flops("moe_ffn_backward", moe_ffn_backward_flops)


def moe_ffn(
    x: Float[Tensor, "T D"],
    gates: Float[Tensor, "A B"],
    plan: DispatchPlan,
    weights: ExpertWeights,
    activation: str | Activation | Callable[[Tensor], Tensor],
    *,
    recompute: Recompute = "activation",
    impl: Impl | None = None,
) -> Float[Tensor, "T D2"]:
    """``out[t] = sum over the rows r of t of gates[slot of r] * down(act(up(x[t])))``.

    ``impl`` is resolved by :mod:`moekit_kernels.impl`:

    - ``"reference"``: :func:`moe_ffn_reference`, with gradients of every order.
    - ``"torch"``: on CPU, for an activation with derivatives, a fused loop over the experts with first-order gradients,
      the fastest there by measurement (``benchmarks/README.md``). Elsewhere, and for a function, :func:`moe_ffn_parts`:
      gather, two grouped GEMMs, combine, with gradients of every order and without reading anything on the host of a
      GPU.
    - ``"triton"``: fused Triton kernels with first-order gradients, for an activation with Triton functions.

    With a function or an activation without Triton functions, and ``"auto"`` on a GPU, the grouped GEMMs and combine of
    :func:`moe_ffn_parts` are Triton kernels. Fused, frozen weights cost no gradients.

    Args:
        x: Tokens.
        gates: Weights of the slots, in the dtype of ``x`` or wider.
        plan: The rows of each expert.
        weights: Matrices and biases of the experts, in the dtype of ``x``.
        activation: An :class:`~moekit_kernels.activations.Activation`, its name, or a function
            ``(N, F1) -> (N, F)``, which may read any number of columns.
        recompute: What the fused backward pass computes again. ``"activation"``: the activation; kept are ``x`` and
            the pre-activations ``(N, F1)``. ``"none"``: nothing; the hidden rows ``(N, F)`` are kept too. ``"all"``:
            the first product too; only ``x`` is kept.
        impl: See above; that of the plan by default.

    Returns:
        Shape ``(T, D2)``, dtype of ``x``; under ``torch.autocast`` the autocast dtype.

    Raises:
        ValueError: If dtypes or shapes do not fit, a name is unknown, or ``impl`` cannot run here.
    """
    impl = plan.impl if impl is None else impl
    named = name_or_function(activation)
    check_names(named, recompute)
    if autocast_is_on(x.device.type):
        up_proj, down_proj, up_bias, down_bias = weights
        weights = ExpertWeights(autocast(up_proj), autocast(down_proj), autocast(up_bias), autocast(down_bias))
        x = autocast(x)
    check_dtypes(x, weights)
    check_shapes(x, gates, plan, weights, named)
    resolved = _resolve(impl, x, gates, named)
    if isinstance(named, str):
        in_loop = resolved == "torch" and x.device.type in _LOOP_DEVICES and activation_of(named).has_derivatives
        if resolved == "triton" or in_loop:
            return _fused(x, gates, plan, weights, named, recompute, impl)
    if recompute != "activation":
        raise ValueError(
            f"recompute={recompute!r} needs the fused kernels, got impl={resolved!r} on device {str(x.device)!r}, "
            'where autograd keeps what it needs: leave recompute at "activation".'
        )
    if resolved == "reference":
        return moe_ffn_reference(x, gates, plan, weights, activation)
    return moe_ffn_parts(x, gates, plan, weights, activation, impl)


def _fused(
    x: Tensor,
    gates: Tensor,
    plan: DispatchPlan,
    weights: ExpertWeights,
    activation: str,
    recompute: Recompute,
    impl: Impl,
) -> Tensor:
    # Kernels read indices with a stride of 1; only a view that has another is copied.
    token_of_row, slot_of_row = plan.token_of_row.contiguous(), plan.slot_of_row.contiguous()
    offsets = plan.offsets.contiguous()
    differentiable = [t for t in (x, gates, *weights) if t is not None]
    refuse_forward_mode("moe_ffn", *differentiable)
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in differentiable)
    kept = (keep and recompute != "all", keep and recompute == "none")
    order = (token_of_row, slot_of_row, offsets, plan.row_of_slot, plan.tiles)
    out, _, _ = _moe_ffn(x, gates, *order, *weights, activation, *kept, impl)
    return out
