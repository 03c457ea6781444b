"""The slots of a placement, as one rank uses them: where its rows go, and gradients of replicas added up.

Letters: E experts, P slots of all ranks, S of one, R ranks, N rows of a plan, M most replicas of an expert.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from moekit.distributed.placement import ExpertPlacement
from moekit.distributed.routes import DirectRoute, Route
from moekit.plan import DispatchPlan


class _Indices(NamedTuple):
    """What a rank looks up, on one device.

    Attributes:
        turns: ``(E, M)``, slots among which this rank's rows of each expert take turns.
        counts: ``(E,)``, replicas of each expert.
        shared: Places whose gradients go to other ranks, in the order of these.
        replicated: Places that have replicas elsewhere.
        summands: For each of those the rows that are added up: of the received ones, then of this rank's own, then -1.
    """

    turns: Tensor
    counts: Tensor
    shared: Tensor
    replicated: Tensor
    summands: Tensor


class Slots:
    """A placement, seen from one rank.

    Of an expert with replicas a rank's rows take turns among as many of them as there are. Its own replica takes all
    of its rows; otherwise those of its node come first, then the others, each until it has as much as every other if
    all ranks have as many rows for the expert.

    Args:
        placement: The experts of each rank.
        rank: This one.
        ranks_of_node: Ranks that are near to each other, in the order of all.

    Attributes:
        placement: The placement.
        rank: This rank.
        ranks_of_node: See above.
        sent: Places of replicas that each rank shares with this one.
    """

    def __init__(self, placement: ExpertPlacement, rank: int, ranks_of_node: int) -> None:
        self.placement, self.rank, self.ranks_of_node = placement, rank, ranks_of_node
        most = max(placement.replicas)
        rows = [_turns(held, placement.num_ranks, ranks_of_node)[rank] for held in _slots_of_expert(placement)]
        peers = [_common(placement, rank, other) if other != rank else [] for other in range(placement.num_ranks)]
        self.sent = [len(places) for places in peers]
        host = _Indices(
            _numbers([row + row[:1] * (most - len(row)) for row in rows]),
            _numbers(placement.replicas),
            _numbers([place for places in peers for place in places]),
            *_summands(peers, rank),
        )
        self._indices = {host.turns.device: host}

    def indices(self, device: torch.device) -> _Indices:
        """Returns what a rank looks up, copied to a device once."""
        if device not in self._indices:
            host = next(iter(self._indices.values()))
            self._indices[device] = _Indices(*(each.to(device) for each in host))
        return self._indices[device]

    def placed(self, plan: DispatchPlan) -> DispatchPlan:
        """Returns a plan of the ``P`` slots from one of the ``E`` experts, of the same rows in another order.

        Reads nothing on the host. Rows of a slot keep their order.
        """
        ends, slots = plan.offsets[1:], self.placement.num_slots
        turns_EM, counts_E, *_ = self.indices(ends.device)
        row_N = torch.arange(plan.token_of_row.shape[0], device=ends.device)
        expert_N = torch.searchsorted(ends, row_N, right=True)  # E for unassigned rows
        known_N = expert_N.clamp(max=len(ends) - 1)
        turn_N = (row_N - plan.offsets[known_N] + self.rank) % counts_E[known_N]
        slot_N = torch.where(expert_N < len(ends), turns_EM[known_N, turn_N], slots)
        sorted_N, order_N = slot_N.sort(stable=True)
        offsets = torch.searchsorted(sorted_N, torch.arange(slots + 1, device=ends.device))
        row_of_slot = plan.row_of_slot
        if row_of_slot is not None:
            row_of_slot = torch.empty_like(order_N).scatter_(0, order_N, row_N)[row_of_slot]
        counts = offsets.diff()
        return plan._replace(
            token_of_row=plan.token_of_row[order_N],
            slot_of_row=plan.slot_of_row[order_N],
            offsets=offsets,
            row_of_slot=row_of_slot,
            tokens_per_expert=counts,
            dropped_per_expert=torch.zeros_like(counts),
            tiles=None,
        )

    def with_summed_gradients(self, weights: Sequence[Tensor], group: dist.ProcessGroup) -> tuple[Tensor, ...]:
        """Returns this rank's weights ``(S, ...)``; gradients of a replica are the sum of those of all, in one order.

        All ranks must call it, and run backward through it, where any expert has replicas.
        """
        if max(self.placement.replicas) == 1:
            return tuple(weights)
        route = DirectRoute(group, self.sent, self.sent)
        return _SumOfReplicas.apply(self, route, *weights)  # pyright: ignore[reportReturnType]

    def summed(self, rows: Tensor, route: Route) -> Tensor:
        """Returns rows ``(S, ...)``, those of replicas added up over the ranks, in the order of these."""
        *_, shared, replicated, summands = self.indices(rows.device)
        received = route.there(rows[shared])
        every = torch.cat([received, rows, rows.new_zeros(1, *rows.shape[1:])]).to(_wide(rows.dtype))
        total = every[summands[:, 0]]
        for column in summands.T[1:]:
            total = total + every[column]
        return rows.index_copy(0, replicated, total.to(rows.dtype))


class _SumOfReplicas(torch.autograd.Function):
    """One node for all weights of a layer, so that all ranks exchange their gradients in one order."""

    @staticmethod
    def forward(ctx: Any, slots: Slots, route: Route, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.slots, ctx.route = slots, route
        return tuple(weight.view_as(weight) for weight in weights)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        needed = [grad for grad, is_needed in zip(grads, ctx.needs_input_grad[2:], strict=True) if is_needed]
        rows = torch.cat([grad.flatten(1) for grad in needed], dim=1)
        summed = iter(ctx.slots.summed(rows, ctx.route).split([grad[0].numel() for grad in needed], dim=1))
        shaped = [next(summed).reshape(grad.shape).to(grad.dtype) for grad in needed]
        every = iter(shaped)
        return None, None, *(next(every) if is_needed else None for is_needed in ctx.needs_input_grad[2:])


def _slots_of_expert(placement: ExpertPlacement) -> list[list[tuple[int, int]]]:
    """Returns the ranks of each expert, each with the slot there."""
    held: list[list[tuple[int, int]]] = [[] for _ in range(placement.num_experts)]
    for rank, experts in enumerate(placement.experts_of_rank):
        for place, expert in enumerate(experts):
            held[expert].append((rank, rank * placement.slots_per_rank + place))
    return held


def _turns(held: Sequence[tuple[int, int]], ranks: int, ranks_of_node: int) -> list[list[int]]:
    """Returns for each rank the slots among which its rows of an expert take turns, one for each replica.

    A slot has ``ranks`` turns to give, a rank as many to fill as there are replicas: equal shares, where the ranks have
    equal numbers of rows.
    """
    count = len(held)
    if count == 1:
        return [[held[0][1]]] * ranks
    left = {slot: ranks for _, slot in held}
    turns: list[list[int]] = [[] for _ in range(ranks)]
    for rank, slot in held:
        turns[rank] = [slot] * count
        left[slot] -= count
    for near in (True, False):
        for rank, own in enumerate(turns):
            node = rank // ranks_of_node
            allowed = [slot for holder, slot in held if not near or holder // ranks_of_node == node]
            while len(own) < count and any(left[slot] for slot in allowed):
                chosen = max(allowed, key=lambda slot: (left[slot], -slot))
                own.append(chosen)
                left[chosen] -= 1
    return turns


def _common(placement: ExpertPlacement, rank: int, other: int) -> list[int]:
    """Returns the places of those experts of a rank that another one has too, in the order of the experts."""
    theirs = set(placement.experts_of_rank[other])
    mine = {expert: place for place, expert in enumerate(placement.experts_of_rank[rank]) if expert in theirs}
    return [mine[expert] for expert in sorted(mine)]


def _summands(peers: Sequence[Sequence[int]], rank: int) -> tuple[Tensor, Tensor]:
    """Returns the places that have replicas, and what is added up for each, padded with the index of a row of zeros.

    Indices are of the received rows, then this rank's own.
    """
    received = sum(len(slots) for slots in peers)
    rows: dict[int, list[int]] = {}
    start = 0
    replicated = sorted({place for slots in peers for place in slots})
    for other, slots in enumerate(peers):
        pairs = (
            [(place, received + place) for place in replicated]
            if other == rank
            else zip(slots, range(start, start + len(slots)), strict=True)
        )
        for place, row in pairs:
            rows.setdefault(place, []).append(row)
        start += len(slots)
    most = max((len(each) for each in rows.values()), default=1)
    padded = [rows[place] + [-1] * (most - len(rows[place])) for place in replicated]
    return _numbers(replicated), _numbers(padded).view(-1, most)


def _numbers(values: Sequence[Any]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device="cpu")  # also where another device is the default


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
