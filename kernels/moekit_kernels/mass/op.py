"""``moekit::limit_to_mass`` and its backward: schema, fake, autograd, choice of implementation."""

from typing import Any, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

from moekit_kernels.eager import operation
from moekit_kernels.forward_mode import refuse_forward_mode
from moekit_kernels.impl import Impl, Limits, resolve_impl
from moekit_kernels.mass import launches
from moekit_kernels.mass.reference import LimitedGates, limit_to_mass_reference
from moekit_kernels.routing.op import save_nothing
from moekit_kernels.routing.vmap import one_after_another

LIMITS = Limits(max_top_k=64)
"""Of the kernels, as of those of routing."""


@operation("moekit::limit_to_mass")
def _limit(gates: Tensor, mass: float, renormalize: bool) -> tuple[Tensor, Tensor]:
    return launches.forward(gates, mass, renormalize)


@operation("moekit::limit_to_mass_backward")
def _limit_backward(grad: Tensor, gates: Tensor, kept: Tensor, renormalize: bool) -> Tensor:
    return launches.backward(grad, gates, kept, renormalize)


@_limit.register_fake
def _(gates: Tensor, mass: float, renormalize: bool) -> tuple[Tensor, Tensor]:
    return gates.new_empty(*gates.shape), gates.new_empty(*gates.shape, dtype=torch.bool)


@_limit_backward.register_fake
def _(grad: Tensor, gates: Tensor, kept: Tensor, renormalize: bool) -> Tensor:
    return gates.new_empty(*gates.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    gates, _, ctx.renormalize = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(gates, output[1])


def _backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, None, None]:
    if grad is None:
        return None, None, None
    refuse_forward_mode("limit_to_mass", grad)
    return _limit_backward(grad, *ctx.saved_tensors, ctx.renormalize), None, None


def _no_second_order(ctx: Any, *grads: Any) -> NoReturn:
    raise RuntimeError('limit_to_mass has first-order gradients only; for higher orders use impl="reference".')


_limit.register_autograd(_backward, setup_context=_save)
_limit_backward.register_autograd(_no_second_order, setup_context=save_nothing)
_limit.register_vmap(one_after_another(_limit.registered))
_limit_backward.register_vmap(one_after_another(_limit_backward.registered))


def limit_to_mass(
    gates: Float[Tensor, "T K"], mass: float, *, renormalize: bool = False, impl: Impl = "auto"
) -> LimitedGates:
    """Keeps the first slots of each token whose gates reach ``mass`` together, and all where they do not.

    Args:
        gates: Probabilities of the ranked experts in float32 or wider, largest first; NaN for a token that is routed
            nowhere.
        mass: Above 0; from 1 on all slots are kept.
        renormalize: Whether the gates that are kept are divided by their sum.
        impl: ``"reference"`` and ``"torch"``: plain PyTorch, with gradients of every order. ``"triton"``: one kernel
            each way, for float32 and up to 64 slots. See :mod:`moekit_kernels.impl`.

    Returns:
        Gates and which slots are kept, for :func:`~moekit_kernels.plan.plan_dispatch`.

    Raises:
        ValueError: If ``gates`` is not a floating ``(T, K)``, ``mass`` is not above 0, or ``impl`` does not fit.

    Example:
        >>> limit_to_mass(torch.tensor([[0.5, 0.25, 0.125]]), 0.6).gates.tolist()
        [[0.5, 0.25, 0.0]]
    """
    if gates.ndim != 2 or gates.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"gates must be of shape (T, K) in float32 or float64, got {gates.dtype} of shape {tuple(gates.shape)}."
        )
    if not mass > 0:
        raise ValueError(f"mass must be above 0, got {mass}.")
    if resolve_impl(impl, LIMITS, gates.device, ("gates", gates.dtype), top_k=gates.shape[1]) == "reference":
        return limit_to_mass_reference(gates, mass, renormalize=renormalize)
    refuse_forward_mode("limit_to_mass", gates)
    return LimitedGates(*_limit(gates, float(mass), renormalize))
