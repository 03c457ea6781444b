"""Exchanges of rows with gradients."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from moekit.distributed.routes import Route


class Parcel(NamedTuple):
    """Rows and their way.

    Attributes:
        route: Where they go.
        rows: So many rows, of any trailing shape.
        wire: Dtype in which they and their gradients travel; their own where None.
    """

    route: Route
    rows: Tensor
    wire: torch.dtype | None = None


def move(*parcels: Parcel, back: bool = False) -> tuple[Tensor, ...]:
    """Takes rows along their routes; their gradients take these in the other direction.

    All parcels are one node of autograd's graph, so that all ranks exchange their gradients in one order.

    Args:
        parcels: Rows and their routes.
        back: Whether to go from the destination of each route to its source.
    """
    ways = [(parcel.route, parcel.wire) for parcel in parcels]
    return _Move.apply(ways, back, *(parcel.rows for parcel in parcels))  # pyright: ignore[reportReturnType]


class _Move(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, ways: list[tuple[Route, torch.dtype | None]], back: bool, *rows: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.ways, ctx.back = ways, back
        return tuple(_moved(*way, each, back) for way, each in zip(ways, rows, strict=True))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        ways: list[tuple[Route, torch.dtype | None]] = ctx.ways
        needed = zip(ways, grads, ctx.needs_input_grad[2:], strict=True)
        moved = [_moved(*way, grad, not ctx.back) if is_needed else None for way, grad, is_needed in needed]
        return None, None, *moved


def _moved(route: Route, wire: torch.dtype | None, rows: Tensor, back: bool) -> Tensor:
    sent = rows if wire is None else rows.to(wire)
    return (route.back(sent) if back else route.there(sent)).to(rows.dtype)


def connected(output: Tensor, *inputs: Tensor) -> Tensor:
    """Returns ``output`` with a gradient, of zeros at least, for every input.

    A rank whose experts got no row, or do not use one, takes part in the exchanges of gradients all the same.
    """
    leaves = [each for each in inputs if each.requires_grad]
    if not leaves:
        return output if output.requires_grad else output.detach().requires_grad_()
    return _Connected.apply(output, *leaves)  # pyright: ignore[reportReturnType]


class _Connected(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, *inputs: Tensor) -> Tensor:
        ctx.inputs = [(each.shape, each.dtype) for each in inputs]
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        zeros = [grads[0].new_zeros((), dtype=dtype).expand(shape) for shape, dtype in ctx.inputs]
        return grads[0] if ctx.needs_input_grad[0] else None, *zeros


def scaled_gradient(x: Tensor, factor: float) -> Tensor:
    """Returns ``x``, whose gradient is multiplied by ``factor``."""
    return _ScaledGradient.apply(x, factor) if x.requires_grad else x  # pyright: ignore[reportReturnType]


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.factor, None
