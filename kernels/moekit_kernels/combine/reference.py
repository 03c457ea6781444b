"""Combine as one sees it on paper: a gather, a product, a sum. Plain PyTorch, any float dtype, any trailing shape."""

from jaxtyping import Float, Int
from torch import Tensor


def combine_reference(
    rows: Float[Tensor, "N *D"], row: Int[Tensor, "T K"], gates: Float[Tensor, "T K"] | None
) -> Float[Tensor, "T *D"]:
    """``out[t] = sum over k of gates[t, k] * rows[row[t, k]]``.

    Products and sums are taken in the wider dtype of ``rows`` and ``gates`` and returned in that of ``rows``.

    Args:
        rows: What the experts made of each row.
        row: The row of each slot.
        gates: Weight of each slot; None for ones.

    Returns:
        One output per token.
    """
    slots = rows.index_select(0, row.flatten()).reshape(*row.shape, *rows.shape[1:])
    if gates is not None:
        slots = gates.view(*gates.shape, *(1,) * (rows.ndim - 1)) * slots
    return slots.sum(1).to(rows.dtype)


def combine_by_token_reference(
    rows: Float[Tensor, "N *D"],
    token: Int[Tensor, "N"],
    slot: Int[Tensor, "N"],
    gates: Float[Tensor, "*slots"] | None,
    num_tokens: int,
) -> Float[Tensor, "T *D"]:
    """``out[token[r]] += gates[slot[r]] * rows[r]`` over the rows in their order, where tokens have any number of them.

    Dtypes as in :func:`combine_reference`. On GPUs ``index_put(accumulate=True)`` adds up, which sorts, and is
    deterministic.

    Args:
        rows: What the experts made of each row.
        token: The token of each row.
        slot: The flat index of each row's gate.
        gates: Weights; None for ones.
        num_tokens: ``T``.

    Returns:
        One output per token; zero for a token without rows.
    """
    weighted = rows if gates is None else gates.flatten()[slot].view(-1, *(1,) * (rows.ndim - 1)) * rows
    out = weighted.new_zeros(num_tokens, *rows.shape[1:])
    if rows.device.type == "cpu":
        return out.index_add(0, token, weighted).to(rows.dtype)
    return out.index_put((token,), weighted, accumulate=True).to(rows.dtype)
