"""The rows of each token, in the form that the kernels of combine read."""

from typing import NamedTuple

import torch
from torch import Tensor

from moekit_kernels.plan.dispatch_plan import RowOrder


class TokenRows(NamedTuple):
    """The rows of each token: ``K`` of each, or with ``starts`` any number.

    Attributes:
        row_of_place: ``(T, K)``, the row of each slot; or with ``starts`` ``(N,)``, all rows, sorted by token.
        starts: None, or ``(T + 1,)``: token ``t`` has the rows ``row_of_place[starts[t] : starts[t + 1]]``.
        slot_of_row: ``(N,)``, the slot of each row; None where there is no ``starts``, for then a slot is its place.
    """

    row_of_place: Tensor
    starts: Tensor | None = None
    slot_of_row: Tensor | None = None


def token_rows(order: RowOrder, num_tokens: int) -> TokenRows:
    """Returns the rows of each token; for expert choice by a stable sort, without reading anything on the host."""
    if order.row_of_slot is not None:
        return TokenRows(order.row_of_slot)
    sorted_tokens, row_of_place = order.token_of_row.sort(stable=True)
    tokens = torch.arange(num_tokens + 1, device=order.token_of_row.device)
    return TokenRows(row_of_place, torch.searchsorted(sorted_tokens, tokens), order.slot_of_row)
