"""Refuses forward-mode differentiation where an operation has reverse mode only.

A registered operation without a forward-mode rule would drop the tangents of its inputs, and the derivative would be
silently zero.
"""

from typing import Any, NoReturn

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor


class _RaisesOnTangent(torch.autograd.Function):
    """The identity in reverse mode; raises where its input has a tangent, at any level of nested transforms."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, operation: str, remedy: str) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.operation, ctx.remedy = inputs

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        return grad_outputs[0], None, None

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> NoReturn:
        raise _error(ctx.operation, ctx.remedy)


def refuse_forward_mode(operation: str, *tensors: Tensor | None, remedy: str = 'impl="reference"') -> None:
    """Raises if forward-mode differentiation goes through any of ``tensors``; costs one comparison where it is off.

    Under ``torch.compile`` the compiler traces no tangents here, so any forward-mode level is refused; without
    ``fullgraph=True`` the call then runs uncompiled, where only true tangents are.

    Args:
        operation: Name of the operation, for the message.
        tensors: Its differentiable inputs.
        remedy: The alternative that has forward-mode derivatives, for the message.

    Raises:
        NotImplementedError: If one of them has a tangent, of ``torch.func.jvp``, ``jacfwd``, ``hessian`` or
            ``torch.autograd.forward_ad``.
    """
    # No public function tells as cheaply whether a level is open; torch.compile guards on this one.
    if forward_ad._current_level < 0:  # pyright: ignore[reportPrivateUsage]
        return
    if torch.compiler.is_compiling():
        raise _error(operation, remedy)
    for tensor in tensors:
        if tensor is not None:
            _RaisesOnTangent.apply(tensor, operation, remedy)


def _error(operation: str, remedy: str) -> NotImplementedError:
    return NotImplementedError(
        f"{operation} has no forward-mode derivative (torch.func.jvp, jacfwd, hessian): use {remedy}, which has, "
        "or reverse mode (torch.autograd.grad)."
    )
