"""Rows of stacked tensors from one layout over ranks to another, each by the expert that it belongs to.

Letters: R ranks that divide the experts, D ranks that divide the rows of each of them further, as FSDP does.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from moekit.distributed.placement import ExpertPlacement
from moekit.distributed.routes import DirectRoute

Layout = tuple[tuple[tuple[int, ...], ...], ...]
"""The expert of each row: ``layout[d][r]``."""


class Grid(NamedTuple):
    """The ranks over which the rows of a tensor are divided, and this one's place among them.

    Attributes:
        experts: The group that divides the experts.
        data: The group that divides the rows of each of its ranks further; None where no other does.
    """

    experts: dist.ProcessGroup
    data: dist.ProcessGroup | None

    @property
    def size(self) -> int:
        """``D``."""
        return 1 if self.data is None else dist.get_world_size(self.data)

    @property
    def place(self) -> tuple[int, int]:
        """This rank's place: among ``D``, among ``R``."""
        return 0 if self.data is None else dist.get_rank(self.data), dist.get_rank(self.experts)


class Move(NamedTuple):
    """One row.

    Attributes:
        source: Place of its rank, ``(d, r)``.
        row: Its index there.
        target: Place of the rank that gets it.
        row_there: Its index there.
    """

    source: tuple[int, int]
    row: int
    target: tuple[int, int]
    row_there: int


def grid_of(tensor: DTensor, experts: dist.ProcessGroup) -> Grid:
    """Returns the ranks over which the first dimension of a tensor is divided.

    Raises:
        ValueError: If it is divided over more than the experts' ranks and one other dimension of the mesh.
    """
    ranks = dist.get_process_group_ranks(experts)
    groups = [
        tensor.device_mesh.get_group(dim)
        for dim, each in enumerate(tensor.placements)
        if getattr(each, "dim", None) == 0
    ]
    others = [group for group in groups if dist.get_process_group_ranks(group) != ranks]
    if len(others) > 1 or len(groups) - len(others) != 1:
        raise ValueError(
            "placed experts must be divided over their own ranks and at most one other dimension of a mesh, got "
            f"placements {tensor.placements} on {tensor.device_mesh}."
        )
    return Grid(experts, others[0] if others else None)


def placed_layout(placement: ExpertPlacement, data: int) -> Layout:
    """Returns the layout of the slots of a placement, those of each rank divided among ``data`` ranks in chunks."""
    return _divided(placement.experts_of_rank, data)


def logical_layout(num_experts: int, ranks: int, data: int) -> Layout:
    """Returns the layout of all experts in their order, as ``Shard(0)`` places them."""
    size = -(-num_experts // ranks)
    chunks = [tuple(range(num_experts))[rank * size : (rank + 1) * size] for rank in range(ranks)]
    return _divided(chunks, data)


def first_rows(layout: Layout, place: tuple[int, int]) -> list[int]:
    """Returns the rows of a rank that are the first of their expert, in the order of the experts' ranks."""
    firsts = _first_of_expert(layout)
    return [row for row, expert in enumerate(layout[place[0]][place[1]]) if firsts[expert] == (place, row)]


def move_rows(rows: Tensor, source: Layout, target: Layout, grid: Grid) -> Tensor:
    """Takes the rows of this rank in one layout, and returns those that it has in another.

    Of an expert with several rows in ``source`` the first counts. Rows go to the ranks of their new experts first, then
    to the one among those that divide them. All ranks must call it.

    Args:
        rows: ``(n, ...)`` of this rank.
        source: The layout that they are in.
        target: The one that is wanted.
        grid: The ranks.
    """
    place = grid.place
    moves = _moves(source, target)
    mine = target[place[0]][place[1]]
    moved = rows.new_empty(len(mine), *rows.shape[1:])
    stays = [each for each in moves if each.source == each.target == place]
    moved[_index((each.row_there for each in stays), rows)] = rows[_index((each.row for each in stays), rows)]
    travels = [each for each in moves if each.source != each.target]
    by_rank = sorted(
        (each for each in travels if each.source == place),
        key=lambda each: (each.target[1], each.target[0], each.row_there),
    )
    passing = sorted(
        (each for each in travels if (each.source[0], each.target[1]) == place),
        key=lambda each: (each.source[1], each.target[0], each.row_there),
    )
    ranks = range(dist.get_world_size(grid.experts))
    route = DirectRoute(
        grid.experts,
        [sum(each.target[1] == rank for each in by_rank) for rank in ranks],
        [sum(each.source[1] == rank for each in passing) for rank in ranks],
    )
    arrived, order = route.there(rows[_index((each.row for each in by_rank), rows)]), passing
    if grid.data is not None:
        by_data = sorted(range(len(passing)), key=lambda each: passing[each].target[0])
        order = sorted(
            (each for each in travels if each.target == place),
            key=lambda each: (each.source[0], each.source[1], each.row_there),
        )
        data = range(grid.size)
        route = DirectRoute(
            grid.data,
            [sum(each.target[0] == rank for each in passing) for rank in data],
            [sum(each.source[0] == rank for each in order) for rank in data],
        )
        arrived = route.there(arrived[_index(by_data, rows)])
    moved[_index((each.row_there for each in order), rows)] = arrived
    return moved


def _divided(by_rank: Sequence[Sequence[int]], data: int) -> Layout:
    sizes = [-(-len(experts) // data) for experts in by_rank]
    return tuple(
        tuple(tuple(experts[d * size : (d + 1) * size]) for experts, size in zip(by_rank, sizes, strict=True))
        for d in range(data)
    )


@lru_cache(256)
def _first_of_expert(layout: Layout) -> dict[int, tuple[tuple[int, int], int]]:
    """Returns place and row of the first row of each expert: by the experts' rank, then as it was before division."""
    firsts: dict[int, tuple[tuple[int, int], int]] = {}
    for r in range(len(layout[0])):
        for d in range(len(layout)):
            for row, expert in enumerate(layout[d][r]):
                firsts.setdefault(expert, ((d, r), row))
    return firsts


@lru_cache(256)
def _moves(source: Layout, target: Layout) -> list[Move]:
    firsts = _first_of_expert(source)
    return [
        Move(*firsts[expert], (d, r), row)
        for d, ranks in enumerate(target)
        for r, experts in enumerate(ranks)
        for row, expert in enumerate(experts)
    ]


def _index(numbers: Iterable[int], rows: Tensor) -> Tensor:
    return torch.tensor(list(numbers), dtype=torch.int64, device=rows.device)
