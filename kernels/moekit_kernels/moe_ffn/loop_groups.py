"""Which experts have rows, read on the host."""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple, cast

from torch import Tensor

from moekit_kernels.plan.dispatch_plan import RowOrder

# So many numbers are set to zero in the time that it takes to begin with another range of them.
_NUMBERS_OF_A_RANGE = 1 << 16


class Groups(NamedTuple):
    """The experts that have rows.

    Attributes:
        experts: Their ids, ascending.
        sizes: Rows of each, and last the unassigned rows, of which there may be none.
        num_experts: ``E``.
    """

    experts: list[int]
    sizes: list[int]
    num_experts: int

    def of(self, *rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Returns for each expert its rows of every tensor."""
        return zip(*(each.split_with_sizes(self.sizes)[: len(self.experts)] for each in rows), strict=True)

    def idle(self) -> list[slice]:
        """Returns the experts without rows, as ranges."""
        between = pairwise((-1, *self.experts, self.num_experts))
        return [slice(before + 1, after) for before, after in between if after - before > 1]

    def gradient_like(self, weights: Tensor) -> Tensor:
        """Returns contiguous memory for the gradient of stacked weights: zeros for experts without rows."""
        idle = self.idle()
        if idle and len(self.experts) * weights[0].numel() <= len(idle) * _NUMBERS_OF_A_RANGE:
            return weights.new_zeros(weights.shape)
        out = weights.new_empty(weights.shape)
        for experts in idle:
            out[experts].zero_()
        return out

    @property
    def single(self) -> bool:
        """Whether no expert has more than one row."""
        return sum(self.sizes[:-1]) == len(self.experts)

    def clear_unassigned(self, rows: Tensor) -> None:
        """Sets the unassigned rows to zero."""
        if self.sizes[-1]:
            rows[-self.sizes[-1] :] = 0


def groups_of(order: RowOrder) -> Groups:
    """Reads the rows of each expert."""
    bounds = cast(list[int], order.offsets.tolist())
    used = [(expert, end - start) for expert, (start, end) in enumerate(pairwise(bounds)) if end > start]
    unassigned = order.token_of_row.shape[0] - bounds[-1]
    return Groups([expert for expert, _ in used], [size for _, size in used] + [unassigned], len(bounds) - 1)
