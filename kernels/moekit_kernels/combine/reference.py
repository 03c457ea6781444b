"""Combine written out: a gather, a product, a sum. Plain PyTorch, any float dtype, any trailing shape.

Names end with the letters of their layout: T tokens, K experts per token, N rows, D the trailing shape.
"""

from jaxtyping import Float
from torch import Tensor

from moekit_kernels.plan.dispatch_plan import DispatchPlan


def combine_reference(
    rows: Float[Tensor, "N *D"], plan: DispatchPlan, gates: Float[Tensor, "A B"]
) -> Float[Tensor, "T *D"]:
    """Computes ``out[t] = sum over the slots s of t of gates[s] * rows[row of s]``.

    Products and sums are taken in the wider dtype of ``rows`` and ``gates`` and returned in that of ``rows``. The
    slots of a token are added up in their order; for expert choice the rows in theirs, on GPUs by
    ``index_put(accumulate=True)``, which sorts, and is deterministic.

    Args:
        rows: Outputs of the experts, ``(N, *D)``.
        plan: The plan that dispatched.
        gates: Weights, whose flat index is the slot.

    Returns:
        ``(T, *D)``, one output per token; zero for a token without rows.
    """
    trailing = rows.shape[1:]
    if plan.row_of_slot is not None:
        rows_TKD = rows.index_select(0, plan.row_of_slot.flatten()).reshape(*plan.row_of_slot.shape, *trailing)
        weighted_TKD = gates.view(*gates.shape, *(1,) * len(trailing)) * rows_TKD
        return weighted_TKD.sum(1).to(rows.dtype)
    weighted_ND = gates.flatten()[plan.slot_of_row].view(-1, *(1,) * len(trailing)) * rows
    out_TD = weighted_ND.new_zeros(plan.num_tokens, *trailing)
    if rows.device.type == "cpu":
        return out_TD.index_add(0, plan.token_of_row, weighted_ND).to(rows.dtype)
    return out_TD.index_put((plan.token_of_row,), weighted_ND, accumulate=True).to(rows.dtype)
