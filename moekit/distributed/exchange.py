"""Rows of tokens to the ranks of their experts, and what these compute back to the tokens.

Letters: T tokens, E experts, N slots and rows of this rank's plan, R ranks, C most experts of one rank.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from moekit.distributed.move import Departed, Parcel, connected, move, scaled_gradient
from moekit.distributed.routes import Transport
from moekit.plan import DispatchPlan, combine, dispatch, plan_dispatch

Meanwhile = Callable[[], object] | None


class LocalExperts(NamedTuple):
    """The experts of this rank, on rows that arrived.

    Attributes:
        compute: The bank: tokens, plan of its experts, gates.
        trains: Whether a parameter of any rank's experts has a gradient.
        uses_every_row: Whether each row that arrives has a gradient if there is any.
        factor: By which the gradients of their parameters are multiplied; those of rows and gates are not.
    """

    compute: Callable[[Any, DispatchPlan, Tensor], Tensor]
    trains: bool
    uses_every_row: bool
    factor: float

    def __call__(self, inputs: Sequence[Tensor], plan: DispatchPlan, gates: Tensor) -> Tensor:
        """Computes the gate-weighted sum of every arrived token's local experts."""
        arrived = [*inputs, gates]
        if self.factor != 1:
            # What enters the experts in the backward pass is multiplied, and what leaves them divided again.
            arrived = [scaled_gradient(each, 1 / self.factor) for each in arrived]
        *own, own_gates = arrived
        y = self.compute(own[0] if len(own) == 1 else own, plan, own_gates)
        if self.factor != 1:
            y = scaled_gradient(y, self.factor)
        differentiated = torch.is_grad_enabled() and (self.trains or any(each.requires_grad for each in arrived))
        if differentiated and not (self.uses_every_row and len(inputs[0])):
            y = connected(y, *inputs, gates)
        return y


class Share(NamedTuple):
    """Which experts each rank holds: equal chunks in the order of the ranks, as ``Shard(0)`` places them.

    Attributes:
        num_experts: ``E``.
        ranks: ``R``.
        rank: This one's place.
    """

    num_experts: int
    ranks: int
    rank: int

    @property
    def most(self) -> int:
        """``C``, the experts of every rank but the last ones."""
        return math.ceil(self.num_experts / self.ranks)

    @property
    def local(self) -> range:
        """The experts of this rank."""
        return range(self.rank * self.most, min((self.rank + 1) * self.most, self.num_experts))

    def by_rank(self, counts: Tensor) -> Tensor:
        """Returns a number for each expert ``(E,)`` as ``(R, C)``, zero where a rank holds fewer."""
        return torch.nn.functional.pad(counts, (0, self.ranks * self.most - self.num_experts)).view(-1, self.most)


class Exchange(Protocol):
    """One way of having the experts of other ranks compute."""

    def run(
        self, experts: LocalExperts, x: Sequence[Tensor], plan: DispatchPlan, gates: Tensor, meanwhile: Meanwhile = None
    ) -> Tensor:
        """Computes what a bank of all experts would.

        Args:
            experts: Those of this rank.
            x: Tokens ``(T, ...)``; the maps of a pyramid.
            plan: Of all experts.
            gates: Whose flat index is the slot.
            meanwhile: Is called once, while rows are on their way to the experts.
        """
        ...


class ExactExchange:
    """Every slot's token goes to the rank of its expert, and its result comes back.

    Numbers of rows are read on the host, once for each call. Within an expert rows are in the order of the ranks and
    then of their slots, as one process with the tokens of all ranks has them.

    With several micro-batches each expert's rows are dealt out among them. The rows of the next one travel while the
    experts compute one, and its results travel while they compute the next. Slots are added up in the same order as
    without; gradients of weights are sums over the micro-batches.
    """

    def __init__(self, transport: Transport, share: Share, wire: torch.dtype | None, micro_batches: int = 1) -> None:
        self.transport, self.share, self.wire, self.micro_batches = transport, share, wire, micro_batches

    def run(
        self, experts: LocalExperts, x: Sequence[Tensor], plan: DispatchPlan, gates: Tensor, meanwhile: Meanwhile = None
    ) -> Tensor:
        """See :class:`Exchange`."""
        parts, slots = self.micro_batches, plan.token_of_row.shape[0]
        # Row r is of micro-batch r % parts: before the first row of an expert are so many of it.
        firsts = [(plan.offsets + (parts - 1 - part)).div(parts, rounding_mode="floor") for part in range(parts)]
        routes = self.transport.routes([self.share.by_rank(first.diff()) for first in firsts])
        rows = [_dealt(dispatch(each, plan), parts) for each in x]

        def depart(part: int) -> Departed:
            route = routes[part][1]
            return Departed(*(Parcel(route, _first(each[part], route.num_sent), self.wire) for each in rows))

        departed = depart(0)
        if meanwhile is not None:
            meanwhile()
        homes: list[Departed] = []
        for part, (arriving, route) in enumerate(routes):
            following = depart(part + 1) if part + 1 < parts else None
            inputs = departed.land()
            ids = _expert_of_row(arriving, route.num_received)
            local = plan_dispatch(ids.unsqueeze(1), len(self.share.local), impl=plan.impl)
            y = experts(inputs, local, gates.new_ones(route.num_received, 1))
            homes.append(Departed(Parcel(route, y, self.wire), back=True))
            departed = following or departed
        most = -(-slots // parts)
        back = [_padded(home.land()[0], most) for home in homes]
        home = back[0] if parts == 1 else torch.stack(back, dim=1).flatten(0, 1)[:slots]
        return combine(home, plan, gates)


class DeduplicatedExchange:
    """A token goes once to each rank that holds one of its experts or more, with their gates, and one sum comes back.

    With K slots of a token on R ranks at random, ``R (1 - (1 - 1/R)^K)`` rows in place of K, at the cost of 8 bytes and
    a gate for each slot. Sums are by rank first, so they round otherwise than those of one process.
    """

    def __init__(self, transport: Transport, share: Share, wire: torch.dtype | None) -> None:
        self.transport, self.share, self.wire = transport, share, wire

    def run(
        self, experts: LocalExperts, x: Sequence[Tensor], plan: DispatchPlan, gates: Tensor, meanwhile: Meanwhile = None
    ) -> Tensor:
        """See :class:`Exchange`."""
        counts, tokens, ranks = self.share.by_rank(plan.offsets.diff()), plan.num_tokens, self.share.ranks
        row_N = torch.arange(plan.token_of_row.shape[0], device=counts.device)
        pair_N = _rank_of_row(counts.sum(1), row_N) * tokens + plan.token_of_row
        # Pairs of a rank and a token; those of unassigned rows, of a rank beyond the last, are cut off.
        goes_RT = counts.new_zeros((ranks + 1) * tokens).index_fill_(0, pair_N, 1)[: ranks * tokens].view(ranks, tokens)
        place_RT = goes_RT.cumsum(1) - 1  # of a token among those that go to the same rank
        (arriving, slots), (copies, copied) = self.transport.routes([counts, goes_RT.sum(1, keepdim=True)])
        token_of_copy = goes_RT.nonzero()[:, 1]
        sent_gates = gates.take(plan.slot_of_row[: slots.num_sent]).unsqueeze(1)
        parcels = [Parcel(copied, each.index_select(0, token_of_copy), self.wire) for each in x]
        place = slots.there(place_RT.flatten()[pair_N[: slots.num_sent]])
        *inputs, own_gates = move(*parcels, Parcel(slots, sent_gates), meanwhile=meanwhile)
        first_copy = (copies.cumsum(0) - copies).flatten()
        token = place + first_copy.repeat_interleave(arriving.sum(1), output_size=slots.num_received)
        ids = _expert_of_row(arriving, slots.num_received)
        local = plan_dispatch(ids.unsqueeze(1), len(self.share.local), impl=plan.impl)
        local = local._replace(token_of_row=token[local.slot_of_row], row_of_slot=None, num_tokens=copied.num_received)
        y = experts(inputs, local, own_gates)
        (home,) = move(Parcel(copied, y, self.wire), back=True)
        sums = combine(home, _plan_of_copies(token_of_copy, tokens, plan), gates.new_ones(len(token_of_copy), 1))
        if plan.row_of_slot is None:
            return sums
        # A token with a NaN gate is in no expert's rows; it must not look like one without an expert.
        nothing = (gates.detach() * 0).sum(1).to(sums.dtype)
        return sums + nothing.view(tokens, *(1,) * (sums.ndim - 1))


class BoundedExchange:
    """Equal numbers of rows between all ranks, whatever the routing: nothing is read on the host.

    Each rank sends ``ceil(factor * N / R)`` rows to each rank, zeros where it has fewer; slots beyond, those of a
    rank's last experts, are dropped and counted. Every rank must have the same number of slots.

    Attributes:
        dropped: Slots that were dropped since it was last set to zero, on the device of the last call.
    """

    def __init__(self, transport: Transport, share: Share, wire: torch.dtype | None, factor: float) -> None:
        self.transport, self.share, self.wire, self.factor = transport, share, wire, factor
        self.dropped = torch.zeros((), dtype=torch.int64)

    def run(
        self, experts: LocalExperts, x: Sequence[Tensor], plan: DispatchPlan, gates: Tensor, meanwhile: Meanwhile = None
    ) -> Tensor:
        """See :class:`Exchange`."""
        ranks, slots = self.share.ranks, plan.token_of_row.shape[0]
        bound = math.ceil(self.factor * slots / ranks)
        route = self.transport.fixed(bound)
        counts = self.share.by_rank(plan.offsets.diff())
        total = counts.sum(1)
        start = total.cumsum(0) - total
        self._count(total, bound)
        arriving = self._kept(counts, bound, slots)
        place = torch.arange(bound, device=counts.device)
        row = (start.unsqueeze(1) + place).clamp(max=max(slots - 1, 0))
        token = plan.token_of_row[row.flatten()]
        is_row = (place < total.unsqueeze(1)).flatten()
        rows = [torch.where(_column(is_row, each), each.index_select(0, token), 0) for each in x]
        inputs = move(*(Parcel(route, each, self.wire) for each in rows), meanwhile=meanwhile)
        ids = torch.searchsorted(arriving.cumsum(1), place.expand(ranks, bound).contiguous(), right=True).view(-1, 1)
        local_experts = len(self.share.local)
        local = plan_dispatch(
            ids.clamp(max=local_experts - 1), local_experts, kept=ids < arriving.shape[1], impl=plan.impl
        )
        y = experts(inputs, local, gates.new_ones(route.num_received, 1))
        (home,) = move(Parcel(route, y, self.wire), back=True)
        row_N = torch.arange(slots, device=counts.device)
        rank_N = _rank_of_row(total, row_N).clamp(max=ranks - 1)
        place_N = row_N - start[rank_N]
        came_N = (place_N < bound) & (row_N < plan.offsets[-1])
        back = home.index_select(0, torch.where(came_N, rank_N * bound + place_N, 0))
        return combine(torch.where(_column(came_N, back), back, 0), plan, gates)

    def _count(self, total: Tensor, bound: int) -> None:
        self.dropped = self.dropped.to(total.device) + (total - bound).clamp(min=0).sum()

    def _kept(self, counts: Tensor, bound: int, slots: int) -> Tensor:
        """Exchanges how many rows come for each expert, ``(R, C)``, and checks that all ranks have as many slots."""
        kept = counts.cumsum(1).clamp(max=bound).diff(dim=1, prepend=counts.new_zeros(len(counts), 1))
        table = torch.cat([kept, kept.new_full((len(kept), 1), slots)], dim=1)
        arriving = self.transport.fixed(1).there(table)
        torch._assert_async(  # pyright: ignore[reportPrivateImportUsage, reportPrivateUsage]
            (arriving[:, -1] == slots).all(),
            "max_slots_factor needs the same number of tokens on every rank: pad the batches, or leave it out.",
        )
        return arriving[:, :-1]


def _plan_of_copies(token_of_copy: Tensor, tokens: int, plan: DispatchPlan) -> DispatchPlan:
    """Returns the plan by which the rows of one copy of a token for each rank are added up."""
    copies = token_of_copy.shape[0]
    every = torch.arange(copies, device=token_of_copy.device)
    counts = torch.full((1,), copies, device=token_of_copy.device)
    ends = torch.cat([counts.new_zeros(1), counts])
    return DispatchPlan(token_of_copy, every, ends, None, counts, torch.zeros_like(counts), tokens, plan.impl)


def _rank_of_row(rows_of_rank: Tensor, row: Tensor) -> Tensor:
    """Returns the rank that each row goes to; ``R`` for unassigned rows."""
    return torch.searchsorted(rows_of_rank.cumsum(0), row, right=True)


def _first(rows: Tensor, number: int) -> Tensor:
    return rows if number == rows.shape[0] else rows[:number]


def _dealt(rows: Tensor, parts: int) -> Sequence[Tensor]:
    """Returns every row ``r`` in part ``r % parts``, all padded to the length of the first."""
    if parts == 1:
        return [rows]
    most = -(-rows.shape[0] // parts)
    # torch has no types for it.
    return cast(Sequence[Tensor], _padded(rows, most * parts).view(most, parts, *rows.shape[1:]).unbind(1))


def _padded(rows: Tensor, number: int) -> Tensor:
    """Returns rows, and zeros behind them up to ``number``."""
    missing = number - rows.shape[0]
    return rows if missing == 0 else torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])])


def _column(flags: Tensor, rows: Tensor) -> Tensor:
    return flags.view(-1, *(1,) * (rows.ndim - 1))


def _expert_of_row(arriving: Tensor, rows: int) -> Tensor:
    """Returns the local expert of each row ``(rows,)`` from how many come for each from each rank, ``(R, C)``."""
    ranks, experts = arriving.shape
    expert = torch.arange(experts, device=arriving.device).repeat(ranks)
    return expert.repeat_interleave(arriving.flatten(), output_size=rows)
