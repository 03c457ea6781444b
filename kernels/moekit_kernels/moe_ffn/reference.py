"""The expert FFN written out: gather the rows, two grouped GEMMs around the activation, weight, add up."""

from collections.abc import Callable

from jaxtyping import Float, Int
from torch import Tensor

from moekit_kernels.grouped_gemm import grouped_linear_reference

GroupedLinear = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def moe_ffn_reference(
    x: Float[Tensor, "T D"],
    gates: Float[Tensor, "*slots"],
    token: Int[Tensor, "N"],
    slot: Int[Tensor, "N"],
    offsets: Int[Tensor, "bounds"],
    up_proj: Float[Tensor, "E F1 D"],
    down_proj: Float[Tensor, "E D2 F"],
    up_bias: Float[Tensor, "E F1"] | None,
    down_bias: Float[Tensor, "E D2"] | None,
    activation: Callable[[Tensor], Tensor],
    grouped_linear: GroupedLinear = grouped_linear_reference,
) -> Float[Tensor, "T D2"]:
    """``out[token[r]] += gates[slot[r]] * down(act(up(x[token[r]])))`` over all rows ``r``.

    Args:
        x: Tokens.
        gates: One weight per routed slot, any shape of ``N`` elements.
        token: Token of each row; rows are sorted by expert.
        slot: Flat index into ``gates`` of each row.
        offsets: ``(E + 1,)``: expert ``e`` owns the rows ``offsets[e] : offsets[e + 1]``.
        up_proj: First matrices; ``F1`` is ``F``, or ``2F`` for a gated activation.
        down_proj: Second matrices.
        up_bias: Bias of the first.
        down_bias: Bias of the second.
        activation: ``(N, F1) -> (N, F)``.
        grouped_linear: What multiplies; the plain reference unless told otherwise.

    Returns:
        Shape ``(T, D2)``. Products and sums over slots are taken in the wider dtype of gates and rows.
    """
    hidden = activation(grouped_linear(x[token], up_proj, offsets, up_bias))
    y = grouped_linear(hidden, down_proj, offsets, down_bias)
    weighted = gates.reshape(-1)[slot].unsqueeze(-1) * y
    out = weighted.new_zeros(x.shape[0], y.shape[1])
    return out.index_add(0, token, weighted).to(y.dtype)
