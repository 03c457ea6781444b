"""``moekit::moe_ffn`` and ``moekit::moe_ffn_backward``: schema, fake, autograd."""

from typing import Any, NoReturn

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moekit_kernels.activations import ACTIVATIONS
from moekit_kernels.autocast import autocast
from moekit_kernels.moe_ffn import loop

# The arguments that get a gradient, by their place in the schema: x, gates, up_proj, down_proj, biases.
_GRADIENT_PLACES = (0, 1, 5, 6, 7, 8)


@torch.library.custom_op("moekit::moe_ffn", mutates_args=(), device_types="cpu")
def _moe_ffn(
    x: Tensor,
    gates: Tensor,
    token: Tensor,
    slot: Tensor,
    offsets: Tensor,
    up_proj: Tensor,
    down_proj: Tensor,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    activation: str,
    keep_pre: bool,
) -> tuple[Tensor, Tensor]:
    tensors = (x, gates, token, slot, offsets, up_proj, down_proj, up_bias, down_bias)
    return loop.forward(*tensors, ACTIVATIONS[activation], keep_pre)


@torch.library.custom_op("moekit::moe_ffn_backward", mutates_args=(), device_types="cpu")
def _moe_ffn_backward(
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
    activation: str,
) -> list[Tensor]:
    tensors = (x, gates, token, slot, offsets, up_proj, down_proj, up_bias, down_bias, pre)
    return [g for g in loop.backward(grad, *tensors, ACTIVATIONS[activation]) if g is not None]


@_moe_ffn.register_fake
def _(
    x: Tensor,
    gates: Tensor,
    token: Tensor,
    slot: Tensor,
    offsets: Tensor,
    up_proj: Tensor,
    down_proj: Tensor,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    activation: str,
    keep_pre: bool,
) -> tuple[Tensor, Tensor]:
    rows = token.shape[0] if keep_pre else 0
    return x.new_empty(x.shape[0], down_proj.shape[1]), x.new_empty(rows, up_proj.shape[1])


@_moe_ffn_backward.register_fake
def _(
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
    activation: str,
) -> list[Tensor]:
    given = (x, gates, up_proj, down_proj, up_bias, down_bias)
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in given if t is not None]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.activation, ctx.keep_pre = inputs
    ctx.present = [t is not None for t in tensors]
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*(t for t in tensors if t is not None), output[1])


def _backward(ctx: Any, grad: Tensor | None, grad_pre: Tensor | None) -> tuple[Tensor | None, ...]:
    gradients: list[Tensor | None] = [None] * (len(ctx.present) + 2)
    if grad is None:
        return tuple(gradients)
    saved = iter(ctx.saved_tensors)
    tensors = [next(saved) if present else None for present in ctx.present]
    found = iter(_moe_ffn_backward(grad, *tensors, next(saved), ctx.activation))
    for place in _GRADIENT_PLACES:
        if ctx.present[place]:
            gradients[place] = next(found)
    return tuple(gradients)


def _no_second_order(ctx: Any, *grads: Any) -> NoReturn:
    raise RuntimeError(
        'moe_ffn has first-order gradients only; for higher orders build the experts with impl="reference".'
    )


def _save_nothing(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None: ...


_moe_ffn.register_autograd(_backward, setup_context=_save)
_moe_ffn_backward.register_autograd(_no_second_order, setup_context=_save_nothing)


def serves(device: torch.device) -> bool:
    """Whether the fused operation has a kernel for ``device``: CPU so far."""
    return device.type == "cpu"


def moe_ffn(
    x: Float[Tensor, "T D"],
    gates: Float[Tensor, "*slots"],
    token: Int[Tensor, "N"],
    slot: Int[Tensor, "N"],
    offsets: Int[Tensor, "bounds"],
    up_proj: Float[Tensor, "E F1 D"],
    down_proj: Float[Tensor, "E D2 F"],
    up_bias: Float[Tensor, "E F1"] | None,
    down_bias: Float[Tensor, "E D2"] | None,
    activation: str,
) -> Float[Tensor, "T D2"]:
    """``out[token[r]] += gates[slot[r]] * down(act(up(x[token[r]])))`` over all rows ``r``, fused.

    The same function as :func:`moekit_kernels.moe_ffn.moe_ffn_reference`, which documents the
    arguments; here ``activation`` is a name of :data:`moekit_kernels.activations.ACTIVATIONS`. Keeps
    ``x`` and the pre-activations for backward, nothing else of size ``N``. First-order gradients.
    """
    weights = tuple(autocast(t) for t in (up_proj, down_proj, up_bias, down_bias))
    x = autocast(x)
    differentiable = [t for t in (x, gates, *weights) if t is not None]
    keep_pre = torch.is_grad_enabled() and any(t.requires_grad for t in differentiable)
    out, _ = _moe_ffn(x, gates, token, slot, offsets, *weights, activation, keep_pre)
    return out
