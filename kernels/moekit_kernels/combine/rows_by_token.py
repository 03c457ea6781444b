"""The rows of each token, where tokens have any number of them (expert choice)."""

from typing import NamedTuple

import torch
from torch import Tensor


class TokenRows(NamedTuple):
    """The rows of each token.

    Attributes:
        row_of_place: ``(T, K)``, the row of each slot; or with ``starts`` ``(N,)``, all rows, sorted by token.
        starts: ``None``, or ``(T + 1,)``: token ``t`` has the rows ``row_of_place[starts[t] : starts[t + 1]]``.
    """

    row_of_place: Tensor
    starts: Tensor | None


def rows_by_token(token_of_row: Tensor, num_tokens: int) -> TokenRows:
    """Sorts the rows by token, stably, without reading anything on the host."""
    sorted_tokens, order = token_of_row.sort(stable=True)
    tokens = torch.arange(num_tokens + 1, device=token_of_row.device)
    return TokenRows(order, torch.searchsorted(sorted_tokens, tokens))
