"""Plain PyTorch forms of activations: what autograd differentiates, and what the loops on CPU call.

A form has one of three shapes: a function of one number (:class:`Elementwise`), such a function of the gate times the
value (:class:`GLU`), and a function of gate and value (:class:`Pair`). They are plain values, so that they can be
pickled where their functions can.

Names end with the letters of their layout: N rows, F hidden width, F1 columns of the pre-activation, F or 2F.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

Parts = tuple[Tensor, ...]
"""What the backward pass would compute again: gate, value and what follows them; see each form."""

NO_DERIVATIVES = (
    "derivatives must be passed to Activation for gradients of the fused loops on CPU, got None: pass the function of "
    'the derivatives, or build the experts with impl="reference".'
)


@runtime_checkable
class Form(Protocol):
    """What every form has.

    Attributes:
        gated: Whether it reads a gate and a value (``2F`` columns) and gives one (``F``).
        interleaved: Whether gate and value alternate; False where it is not gated.
        has_derivatives: Whether ``backward`` can be called.
    """

    @property
    def gated(self) -> bool: ...

    @property
    def interleaved(self) -> bool: ...

    @property
    def has_derivatives(self) -> bool: ...

    def forward(self, pre: Tensor) -> Tensor:
        """Computes ``(N, F1) -> (N, F)``, differentiable."""
        ...

    def compute(self, pre: Tensor) -> Tensor:
        """Computes the same with fewer temporaries; not to be differentiated."""
        ...

    def recompute(self, pre: Tensor) -> tuple[Tensor, Parts | None]:
        """Returns the same for a backward pass, and what :meth:`backward` would compute again, or None."""
        ...

    def backward(self, grad: Tensor, pre: Tensor, parts: Parts | None = None) -> Tensor:
        """Computes the gradient of the pre-activation ``(N, F1)``, in its layout, from that of the output ``(N, F)``.

        ``parts`` is the second result of :meth:`recompute`.
        """
        ...


class Scalar(NamedTuple):
    """A function of one number.

    Attributes:
        function: The function, of a tensor element by element.
        backward: ``(grad, x, out)``: writes ``grad`` times the derivative at ``x`` to ``out``; None where unknown.
        allocates: Whether ``function`` never returns its argument or a view of it.
    """

    function: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor, Tensor], object] | None
    allocates: bool


class TimesDerivative(NamedTuple):
    """``Scalar.backward`` from a function that returns the derivative."""

    derivative: Callable[[Tensor], Tensor]

    def __call__(self, grad: Tensor, x: Tensor, out: Tensor) -> Tensor:
        """Writes ``grad`` times the derivative at ``x`` to ``out``."""
        return torch.mul(grad, self.derivative(x), out=out)


def split(columns: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    """Returns views of the gates and of the values."""
    if interleaved:
        return columns[..., 0::2], columns[..., 1::2]
    gate, value = columns.chunk(2, dim=-1)
    return gate, value


def _write(scalar: Scalar, grad: Tensor, x: Tensor, out: Tensor) -> None:
    if scalar.backward is None:
        raise ValueError(NO_DERIVATIVES)
    scalar.backward(grad, x, out)


class Elementwise(NamedTuple):
    """A function of one number."""

    scalar: Scalar
    gated: bool = False
    interleaved: bool = False

    @property
    def has_derivatives(self) -> bool:
        """Whether :meth:`backward` can be called."""
        return self.scalar.backward is not None

    def forward(self, pre: Tensor) -> Tensor:
        """See :class:`Form`."""
        return self.scalar.function(pre)

    def compute(self, pre: Tensor) -> Tensor:
        """See :class:`Form`."""
        return self.scalar.function(pre)

    def recompute(self, pre: Tensor) -> tuple[Tensor, None]:
        """See :class:`Form`."""
        return self.scalar.function(pre), None

    def backward(self, grad: Tensor, pre: Tensor, parts: Parts | None = None) -> Tensor:
        """See :class:`Form`."""
        grad_pre = torch.empty_like(pre)
        _write(self.scalar, grad, pre, grad_pre)
        return grad_pre


class GLU(NamedTuple):
    """A function of the gate, times the value."""

    scalar: Scalar
    interleaved: bool
    gated: bool = True

    @property
    def has_derivatives(self) -> bool:
        """Whether :meth:`backward` can be called."""
        return self.scalar.backward is not None

    def forward(self, pre: Tensor) -> Tensor:
        """See :class:`Form`."""
        gate_NF, value_NF = split(pre, self.interleaved)
        return self.scalar.function(gate_NF) * value_NF

    def compute(self, pre: Tensor) -> Tensor:
        """See :class:`Form`."""
        gate_NF, value_NF = split(pre, self.interleaved)
        acted_NF = self.scalar.function(gate_NF)
        return acted_NF.mul_(value_NF) if self.scalar.allocates else acted_NF * value_NF

    def _parts(self, pre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gate_NF, value_NF = split(pre, self.interleaved)
        return gate_NF, value_NF, self.scalar.function(gate_NF)

    def recompute(self, pre: Tensor) -> tuple[Tensor, Parts]:
        """See :class:`Form`; the parts are gate, value and the function of the gate."""
        parts = self._parts(pre)
        _, value_NF, acted_NF = parts
        return acted_NF * value_NF, parts

    def backward(self, grad: Tensor, pre: Tensor, parts: Parts | None = None) -> Tensor:
        """See :class:`Form`."""
        gate_NF, value_NF, acted_NF = self._parts(pre) if parts is None else parts
        grad_pre_NF1 = torch.empty_like(pre)
        grad_gate_NF, grad_value_NF = split(grad_pre_NF1, self.interleaved)
        torch.mul(grad, acted_NF, out=grad_value_NF)
        _write(self.scalar, grad * value_NF, gate_NF, grad_gate_NF)
        return grad_pre_NF1


class Pair(NamedTuple):
    """A function of gate and value."""

    function: Callable[[Tensor, Tensor], Tensor]
    derivatives: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None
    interleaved: bool
    gated: bool = True

    @property
    def has_derivatives(self) -> bool:
        """Whether :meth:`backward` can be called."""
        return self.derivatives is not None

    def forward(self, pre: Tensor) -> Tensor:
        """See :class:`Form`."""
        return self.function(*split(pre, self.interleaved))

    def compute(self, pre: Tensor) -> Tensor:
        """See :class:`Form`."""
        return self.function(*split(pre, self.interleaved))

    def recompute(self, pre: Tensor) -> tuple[Tensor, Parts]:
        """See :class:`Form`; the parts are gate and value."""
        parts = split(pre, self.interleaved)
        return self.function(*parts), parts

    def backward(self, grad: Tensor, pre: Tensor, parts: Parts | None = None) -> Tensor:
        """See :class:`Form`."""
        if self.derivatives is None:
            raise ValueError(NO_DERIVATIVES)
        gate_NF, value_NF = split(pre, self.interleaved) if parts is None else parts
        by_gate_NF, by_value_NF = self.derivatives(gate_NF, value_NF)
        grad_pre_NF1 = torch.empty_like(pre)
        grad_gate_NF, grad_value_NF = split(grad_pre_NF1, self.interleaved)
        torch.mul(grad, by_gate_NF, out=grad_gate_NF)
        torch.mul(grad, by_value_NF, out=grad_value_NF)
        return grad_pre_NF1
