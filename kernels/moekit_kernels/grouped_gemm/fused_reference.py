"""The grouped GEMM with its gather and epilogue, written out."""

from jaxtyping import Float, Int
from torch import Tensor

from moekit_kernels.activations import ACTIVATIONS
from moekit_kernels.grouped_gemm.op import grouped_linear
from moekit_kernels.grouped_gemm.reference import grouped_linear_reference


def grouped_gemm_reference(
    x: Float[Tensor, "rows D"],
    weight: Float[Tensor, "E F1 D"],
    offsets: Int[Tensor, "bounds"],
    bias: Float[Tensor, "E F1"] | None = None,
    *,
    activation: str | None = None,
    token: Int[Tensor, "N"] | None = None,
    gates: Float[Tensor, "*slots"] | None = None,
    slot: Int[Tensor, "N"] | None = None,
    order: str = "row",
    plain: bool = True,
) -> Float[Tensor, "N F"]:
    """See :func:`moekit_kernels.grouped_gemm.grouped_gemm`, whose arguments these are.

    Args:
        x: See there.
        weight: See there.
        offsets: See there.
        bias: See there.
        activation: See there.
        token: See there.
        gates: See there.
        slot: See there.
        order: See there.
        plain: Whether every expert looks at every row (:func:`grouped_linear_reference`), or only the needed work is
            done (:func:`grouped_linear`). Both have gradients of every order.
    """
    product = grouped_linear_reference if plain else grouped_linear
    y = product(x if token is None else x[token], weight, offsets, bias)
    if activation is not None:
        y = ACTIVATIONS[activation].forward(y)
    if gates is not None:
        flat = gates.reshape(-1)
        y = ((flat if slot is None else flat[slot]).unsqueeze(-1) * y).to(y.dtype)
    return y if order == "row" or slot is None else y.new_zeros(y.shape).index_copy(0, slot, y)
