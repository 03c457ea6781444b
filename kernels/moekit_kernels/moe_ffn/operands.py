"""The weights of the expert FFN, and what its backward pass returns."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class ExpertWeights(NamedTuple):
    """Stacked weights and biases of ``E`` two-layer networks.

    Letters: E experts, D and D2 widths of input and output, F hidden width, F1 columns of the pre-activation (F, or
    2F for a gated activation).

    Attributes:
        up_proj: First matrices.
        down_proj: Second matrices.
        up_bias: Bias of the first.
        down_bias: Bias of the second.
    """

    up_proj: Float[Tensor, "E F1 D"]
    down_proj: Float[Tensor, "E D2 F"]
    up_bias: Float[Tensor, "E F1"] | None = None
    down_bias: Float[Tensor, "E D2"] | None = None


class Gradients(NamedTuple):
    """Gradients of the expert FFN's tensor arguments, in their order; None where not requested or absent.

    Attributes:
        x: ``(T, D)``.
        gates: In the shape of the gates; zero for slots of unassigned rows.
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
