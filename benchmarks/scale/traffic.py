"""Bytes and messages that a rank sends for divided experts, from the rows that go to each rank.

A transfer is one all-to-all exchange: so many rows to each rank, of so many bytes each. What stays on the rank is no
traffic. The exchanges are those of :func:`moekit.distributed.expert_parallel_`; the collectives of a real step are
counted against these formulas in the tests.

Letters: T tokens of a rank, K experts per token, E experts, R ranks, D width.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

COUNT_BYTES = 8


class Transfer(NamedTuple):
    """One exchange.

    Attributes:
        name: What travels.
        rows: Rows to each rank.
        row_bytes: Of one row.
    """

    name: str
    rows: Sequence[float]
    row_bytes: int

    def sent(self, rank: int) -> float:
        """Returns the bytes that leave rank ``rank``."""
        return self.row_bytes * (sum(self.rows) - self.rows[rank])

    def messages(self, rank: int) -> int:
        """Returns to how many other ranks something goes."""
        return sum(rows > 0 for place, rows in enumerate(self.rows) if place != rank)


class Rows(NamedTuple):
    """What a rank sends and receives in one call of a layer.

    Attributes:
        slots: Slots that go to each rank.
        slots_received: Slots that come from each.
        copies: Tokens that go to each rank, once for all their experts there.
        copies_received: Tokens that come.
    """

    slots: Sequence[float]
    slots_received: Sequence[float]
    copies: Sequence[float]
    copies_received: Sequence[float]


def exact(rows: Rows, experts_per_rank: int, row_bytes: int, *, backward: bool = True) -> list[Transfer]:
    """Returns the transfers of a step with the default exchange."""
    ranks = len(rows.slots)
    there, back = Transfer("rows", rows.slots, row_bytes), Transfer("results", rows.slots_received, row_bytes)
    forward = [Transfer("counts", [1] * ranks, COUNT_BYTES * experts_per_rank), there, back]
    return forward + _gradients(there, back) if backward else forward


def deduplicated(
    rows: Rows, experts_per_rank: int, row_bytes: int, gate_bytes: int, *, backward: bool = True
) -> list[Transfer]:
    """Returns the transfers of a step in which a token goes once to each rank."""
    ranks = len(rows.slots)
    there, back = Transfer("rows", rows.copies, row_bytes), Transfer("results", rows.copies_received, row_bytes)
    gates = Transfer("gates", rows.slots, gate_bytes)
    forward = [
        Transfer("counts", [1] * ranks, COUNT_BYTES * (experts_per_rank + 1)),
        there,
        gates,
        Transfer("places", rows.slots, COUNT_BYTES),
        back,
    ]
    gates_back = Transfer("gradients of gates", rows.slots_received, gate_bytes)
    return [*forward, *_gradients(there, back), gates_back] if backward else forward


def bounded(bound: int, ranks: int, experts_per_rank: int, row_bytes: int, *, backward: bool = True) -> list[Transfer]:
    """Returns the transfers of a step in which every rank sends ``bound`` rows to every other."""
    there = Transfer("rows", [bound] * ranks, row_bytes)
    back = there._replace(name="results")
    forward = [Transfer("counts", [1] * ranks, COUNT_BYTES * (experts_per_rank + 1)), there, back]
    return forward + _gradients(there, back) if backward else forward


def replica_gradients(experts_of_rank: Sequence[Sequence[int]], rank: int, expert_bytes: int) -> Transfer:
    """Returns the transfer, once in a backward pass, of the gradients of experts with replicas.

    Args:
        experts_of_rank: The experts of each rank.
        rank: The one that sends: to each other rank the gradients of the experts that both hold.
        expert_bytes: Of the weights of one expert.
    """
    own = set(experts_of_rank[rank])
    shared = [len(own & set(experts)) if place != rank else 0 for place, experts in enumerate(experts_of_rank)]
    return Transfer("gradients of replicas", shared, expert_bytes)


def uniform_rows(tokens: int, top_k: int, num_experts: int, ranks: int) -> Rows:
    """Returns the expected rows where every set of ``K`` experts is as likely as another.

    Of a token's experts none is on a given rank with probability ``C(E - E/R, K) / C(E, K)``.
    """
    slots = tokens * top_k / ranks
    held = num_experts // ranks
    copies = tokens * (1 - math.comb(num_experts - held, top_k) / math.comb(num_experts, top_k))
    return Rows([slots] * ranks, [slots] * ranks, [copies] * ranks, [copies] * ranks)


def _gradients(there: Transfer, back: Transfer) -> list[Transfer]:
    """Gradients go where the results came from, and those of rows to where they came from."""
    return [
        Transfer("gradients of results", there.rows, back.row_bytes),
        Transfer("gradients of rows", back.rows, there.row_bytes),
    ]
