"""The order of routed slots by expert.

A *slot* is one (token, expert) pair of a routing; its index is its place in the flattened gates. A *row* is a slot's
place after sorting by expert. Index tensors are named by direction: ``token_of_row[r]`` is a token.

Letters: T tokens, E experts, K experts per token, N slots and rows.
"""

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from moekit_kernels.impl import Impl


class RowOrder(NamedTuple):
    """The index tensors of a plan, which the kernels of the experts read.

    Attributes:
        token_of_row: As in :class:`DispatchPlan`, and so are the others.
        slot_of_row: ``(N,)``.
        offsets: ``(E + 1,)``.
        row_of_slot: ``(T, K)`` or None.
        tiles: int32, or None.
    """

    token_of_row: Int[Tensor, "N"]
    slot_of_row: Int[Tensor, "N"]
    offsets: Int[Tensor, "E+1"]
    row_of_slot: Int[Tensor, "T K"] | None
    tiles: Int[Tensor, "tiles 2"] | None = None

    def by_slot(self, by_row: Tensor) -> Tensor:
        """Returns one number for each row ``(N,)`` in the order of the slots: ``(T, K)``, or ``(N,)`` without K."""
        if self.row_of_slot is not None:
            return by_row.take(self.row_of_slot)
        return torch.empty_like(by_row).scatter_(0, self.slot_of_row, by_row)

    def by_row(self, by_slot: Tensor) -> Tensor:
        """Returns one number for each slot, of any shape, in the order of the rows: ``(N,)``."""
        return by_slot.take(self.slot_of_row)


class DispatchPlan(NamedTuple):
    """Slots in the order of their experts; all tensors but ``tiles`` are int64.

    Attributes:
        token_of_row: ``(N,)``, the token of each row.
        slot_of_row: ``(N,)``, the slot of each row: its flat index into the gates.
        offsets: ``(E + 1,)``: expert ``e`` owns the rows ``offsets[e] : offsets[e + 1]``. Rows from ``offsets[E]`` on
            are unassigned: their slots are padding, dropped or non-finite.
        row_of_slot: ``(T, K)``, the row of each slot: the inverse of ``slot_of_row``. ``None`` for expert choice, where
            a token has no fixed number of slots.
        tokens_per_expert: ``(E,)``, slots routed to each expert before any was dropped.
        dropped_per_expert: ``(E,)``, those of them that were over capacity.
        num_tokens: ``T``.
        impl: The implementation requested for the plan. Experts and combine take the same, unless they have a choice of
            their own.
        tiles: Rows cut into tiles, as :func:`moekit_kernels.plan.schedule.tiles_of` reads them: int32, written by the
            Triton kernels of the plan, for those of the experts. None for every other plan. They belong to ``offsets``:
            who replaces these replaces ``tiles`` by None.
    """

    token_of_row: Int[Tensor, "N"]
    slot_of_row: Int[Tensor, "N"]
    offsets: Int[Tensor, "E+1"]
    row_of_slot: Int[Tensor, "T K"] | None
    tokens_per_expert: Int[Tensor, "E"]
    dropped_per_expert: Int[Tensor, "E"]
    num_tokens: int
    impl: Impl = "auto"
    tiles: Int[Tensor, "tiles 2"] | None = None

    @property
    def num_experts(self) -> int:
        """``E``."""
        return self.offsets.shape[0] - 1

    @property
    def order(self) -> RowOrder:
        """The index tensors alone."""
        return RowOrder(*self[:4], self.tiles)
