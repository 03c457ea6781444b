"""What the backward pass of the expert FFN gives."""

from typing import NamedTuple

from torch import Tensor


class Gradients(NamedTuple):
    """Gradients of the expert FFN's tensor arguments, in their order; None where not wanted or not there.

    Attributes:
        x: ``(T, D)``.
        gates: In the shape of the gates; zero for slots whose row belongs to no expert.
        up_proj: ``(E, F1, D)``, contiguous; exact zeros for an expert without rows, as in all four of the weights.
        down_proj: ``(E, D2, F)``, contiguous.
        up_bias: ``(E, F1)``.
        down_bias: ``(E, D2)``.
    """

    x: Tensor | None = None
    gates: Tensor | None = None
    up_proj: Tensor | None = None
    down_proj: Tensor | None = None
    up_bias: Tensor | None = None
    down_bias: Tensor | None = None
