"""Exchanges of rows with gradients."""

from collections.abc import Callable
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


def move(*parcels: Parcel, back: bool = False, meanwhile: Callable[[], object] | None = None) -> tuple[Tensor, ...]:
    """Takes rows along their routes; their gradients take these in the other direction.

    Args:
        parcels: Rows and their routes.
        back: Whether to go from the destination of each route to its source.
        meanwhile: Is called while they are on their way; see :class:`Departed`.
    """
    departed = Departed(*parcels, back=back)
    if meanwhile is not None:
        meanwhile()
    return departed.land()


class Departed:
    """Rows that were sent and not waited for.

    All parcels leave in one node of autograd's graph and land in another, so that all ranks exchange gradients in one
    order. What is computed before :meth:`land` runs beside the exchange. So does its backward pass beside the exchange
    of the gradients: autograd goes through the nodes in the reverse order of their making, first landing, which sends
    the gradients off, then what was between, then leaving, which waits for them.

    Args:
        parcels: Rows and their routes.
        back: Whether to go from the destination of each route to its source.
    """

    def __init__(self, *parcels: Parcel, back: bool = False) -> None:
        self._journey = _Journey([(parcel.route, parcel.wire) for parcel in parcels], back)
        self._ticket = _Leave.apply(self._journey, *(parcel.rows for parcel in parcels))

    def land(self) -> tuple[Tensor, ...]:
        """Waits, and returns the rows at their destination. To be called once."""
        return _Land.apply(self._journey, self._ticket)  # pyright: ignore[reportReturnType]


class _Journey:
    """What leaving and landing know of each other; autograd carries a tensor without elements between them.

    Attributes:
        ways: Route and wire dtype of each parcel.
        back: See :class:`Departed`.
        dtypes: Of the rows.
        needed: Which of them need gradients.
    """

    def __init__(self, ways: list[tuple[Route, torch.dtype | None]], back: bool) -> None:
        self.ways, self.back = ways, back
        self.dtypes: list[torch.dtype] = []
        self.needed: tuple[bool, ...] = ()
        self._landing: list[Callable[[], Tensor] | None] = []

    def leave(self, rows: tuple[Tensor, ...], which: tuple[bool, ...], back: bool) -> None:
        """Sends some of the rows off."""
        self._landing = [
            route.start(each if wire is None else each.to(wire), back=back) if is_sent else None
            for (route, wire), each, is_sent in zip(self.ways, rows, which, strict=True)
        ]

    def land(self) -> list[Tensor | None]:
        """Waits for them; None for those that were not sent."""
        landing, self._landing = self._landing, []
        return [None if each is None else each().to(dtype) for each, dtype in zip(landing, self.dtypes, strict=True)]


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, journey: _Journey, *rows: Tensor) -> Tensor:
        ctx.journey, journey.dtypes, journey.needed = journey, [each.dtype for each in rows], ctx.needs_input_grad[1:]
        journey.leave(rows, (True,) * len(rows), journey.back)
        return torch.empty(0, device=rows[0].device)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.journey.land()


class _Land(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, journey: _Journey, ticket: Tensor) -> Any:
        ctx.journey = journey
        landed = journey.land()
        ctx.mark_non_differentiable(*(each for each, needed in zip(landed, journey.needed, strict=True) if not needed))
        return tuple(landed)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        journey: _Journey = ctx.journey
        journey.leave(grads, journey.needed, not journey.back)
        return None, torch.empty(0, device=grads[0].device)


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
