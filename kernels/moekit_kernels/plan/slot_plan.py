"""What a plan is made of."""

from typing import NamedTuple

from jaxtyping import Int
from torch import Tensor


class SlotPlan(NamedTuple):
    """Slots in the order of their experts; all int64.

    Attributes:
        token: ``(N,)``, the token of each row.
        slot: ``(N,)``, the slot of each row.
        offsets: ``(E + 1,)``: expert ``e`` owns the rows ``offsets[e] : offsets[e + 1]``. Rows from ``offsets[E]`` on
            belong to no expert.
        row: ``(T, K)``, the row of each slot: the inverse of ``slot``.
        tokens_per_expert: ``(E,)``, slots routed to each expert before any was dropped.
        dropped_per_expert: ``(E,)``, those of them that were over capacity.
    """

    token: Int[Tensor, "N"]
    slot: Int[Tensor, "N"]
    offsets: Int[Tensor, "E+1"]
    row: Int[Tensor, "T K"]
    tokens_per_expert: Int[Tensor, "E"]
    dropped_per_expert: Int[Tensor, "E"]
