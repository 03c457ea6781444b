"""Where the rows of a rank go, and the all-to-all exchanges that take them there and back.

Letters: R ranks; of two stages, N nodes of L ranks each, R = N L; C columns of counts.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor

from moekit.distributed.errors import exchange_errors


class Route(Protocol):
    """One exchange of rows, which are in the order of the ranks that they go to or come from.

    Attributes:
        num_sent: Rows of this rank that go to others, and to itself.
        num_received: Rows that it gets.
    """

    num_sent: int
    num_received: int

    def there(self, rows: Tensor) -> Tensor:
        """Takes ``(num_sent, ...)``, in the order of their destinations; returns ``(num_received, ...)``."""
        ...

    def back(self, rows: Tensor) -> Tensor:
        """Takes ``(num_received, ...)`` to where :meth:`there` had them from: ``(num_sent, ...)``."""
        ...

    def start(self, rows: Tensor, *, back: bool) -> Callable[[], Tensor]:
        """Begins :meth:`there` or :meth:`back`, and returns what waits for it, to be called once."""
        ...


class Transport(Protocol):
    """How rows travel between the ranks of a group.

    Attributes:
        size: ``R``.
        rank: This rank's place among them.
    """

    size: int
    rank: int

    def routes(self, counts: Sequence[Tensor]) -> list[tuple[Tensor, Route]]:
        """Tells all ranks how many rows they get, and makes a route of rows for each table of counts.

        All in one exchange and one wait of the host.

        Args:
            counts: Tables ``(R, C)`` of integers: rows that go to each rank, in the order in which they are sent.

        Returns:
            For each table what each rank sends to this one, ``(R, C)``, and the route.
        """
        ...

    def fixed(self, rows: int) -> Route:
        """Returns a route of ``rows`` rows to each rank and from each, without an exchange of counts or a wait."""
        ...


class DirectRoute:
    """Rows to every rank in one exchange."""

    def __init__(self, group: dist.ProcessGroup, sent: list[int], received: list[int]) -> None:
        self.group, self.sent, self.received = group, sent, received
        self.num_sent, self.num_received = sum(sent), sum(received)

    def there(self, rows: Tensor) -> Tensor:
        """See :class:`Route`."""
        return _exchange(rows, self.sent, self.received, self.group)

    def back(self, rows: Tensor) -> Tensor:
        """See :class:`Route`."""
        return _exchange(rows, self.received, self.sent, self.group)

    def start(self, rows: Tensor, *, back: bool) -> Callable[[], Tensor]:
        """See :class:`Route`."""
        sent, received = (self.received, self.sent) if back else (self.sent, self.received)
        return _started(rows, sent, received, self.group)


class Direct:
    """Rows to every rank of ``group`` in one exchange."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group, self.size, self.rank = group, dist.get_world_size(group), dist.get_rank(group)

    def routes(self, counts: Sequence[Tensor]) -> list[tuple[Tensor, Route]]:
        """See :class:`Transport`."""
        widths = [table.shape[1] for table in counts]
        ones = [1] * self.size
        tables = _split(_exchange(torch.cat(list(counts), dim=1), ones, ones, self.group), widths, dim=1)
        totals = [table.sum(1) for table in (*counts, *tables)]
        numbers = cast(list[list[int]], torch.stack(totals).tolist())
        pairs = zip(numbers[: len(counts)], numbers[len(counts) :], strict=True)
        made = [DirectRoute(self.group, sent, received) for sent, received in pairs]
        return list(zip(tables, made, strict=True))

    def fixed(self, rows: int) -> Route:
        """See :class:`Transport`."""
        return DirectRoute(self.group, [rows] * self.size, [rows] * self.size)


class TwoStageRoute:
    """Rows between nodes first, each to the rank of the sender's own place there, then within the nodes.

    A rank sends one message to each node and one to each rank of its own, N + L in place of N L.
    """

    def __init__(
        self, between: dist.ProcessGroup, within: dist.ProcessGroup, sent: Tensor, passing: Tensor, received: Tensor
    ) -> None:
        """Args: tables of rows on the host.

        Args:
            between: The ranks of one place in all nodes.
            within: The ranks of one node.
            sent: ``(N, L)``, rows that go to each rank.
            passing: ``(N, L)``, rows of each node that this rank passes on to each rank of its own.
            received: ``(N, L)``, rows that come from each rank.
        """
        self.first = DirectRoute(between, _sums(sent, 1), _sums(passing, 1))
        self.second = DirectRoute(within, _sums(passing, 0), _sums(received, 0))
        self.num_sent, self.num_received = self.first.num_sent, self.second.num_received
        self._to_local = _blocks_by_column(passing)
        self._to_ranks = _blocks_by_column(received.T)

    def there(self, rows: Tensor) -> Tensor:
        """See :class:`Route`."""
        return self._within(self.first.there(rows))

    def back(self, rows: Tensor) -> Tensor:
        """See :class:`Route`."""
        passing = self.second.back(_inverse(rows, self._to_ranks))
        return self.first.back(_inverse(passing, self._to_local))

    def start(self, rows: Tensor, *, back: bool) -> Callable[[], Tensor]:
        """See :class:`Route`. The second exchange begins when the first one was waited for."""
        if back:
            returning = self.second.start(_inverse(rows, self._to_ranks), back=True)
            return lambda: self.first.back(_inverse(returning(), self._to_local))
        passing = self.first.start(rows, back=False)
        return lambda: self._within(passing())

    def _within(self, passing: Tensor) -> Tensor:
        return self.second.there(passing[self._to_local.to(passing.device)])[self._to_ranks.to(passing.device)]


class TwoStage:
    """Rows in two stages: see :class:`TwoStageRoute`. Ranks are in the order of their nodes."""

    def __init__(self, between: dist.ProcessGroup, within: dist.ProcessGroup) -> None:
        self.between, self.within = between, within
        self.nodes, self.places = dist.get_world_size(between), dist.get_world_size(within)
        self.size = self.nodes * self.places
        self.rank = dist.get_rank(between) * self.places + dist.get_rank(within)

    def routes(self, counts: Sequence[Tensor]) -> list[tuple[Tensor, Route]]:
        """See :class:`Transport`."""
        widths = [table.shape[1] for table in counts]
        sent = torch.cat(list(counts), dim=1).view(self.nodes, self.places, -1)
        passing = _exchange(sent, [1] * self.nodes, [1] * self.nodes, self.between)
        ones = [1] * self.places
        received = _exchange(passing.transpose(0, 1), ones, ones, self.within).transpose(0, 1)
        split = [_split(each, widths, dim=2) for each in (sent, passing, received)]
        totals = torch.stack([table.sum(2) for tables in split for table in tables]).cpu()
        s, p, r = totals.view(3, len(widths), self.nodes, self.places).unbind()
        made = [TwoStageRoute(self.between, self.within, s[i], p[i], r[i]) for i in range(len(widths))]
        tables = [table.reshape(self.size, -1) for table in split[2]]
        return list(zip(tables, made, strict=True))

    def fixed(self, rows: int) -> Route:
        """See :class:`Transport`."""
        table = torch.full((self.nodes, self.places), rows)
        return TwoStageRoute(self.between, self.within, table, table, table)


def _exchange(rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
    arrived = rows.new_empty(sum(received), *rows.shape[1:])
    with exchange_errors(group):
        dist.all_to_all_single(arrived, rows.contiguous(), received, sent, group=group)
    return arrived


def _started(rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Callable[[], Tensor]:
    arrived, leaving = rows.new_empty(sum(received), *rows.shape[1:]), rows.contiguous()
    with exchange_errors(group):
        work = dist.all_to_all_single(arrived, leaving, received, sent, group=group, async_op=True)
    return partial(_landed, cast(dist.Work, work), arrived, leaving, group)


def _landed(work: dist.Work, arrived: Tensor, leaving: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Waits for an exchange, until which ``leaving`` must stay; on a GPU the caller's stream does, not the host."""
    with exchange_errors(group):
        work.wait()
    return arrived


def _split(x: Tensor, sizes: list[int], dim: int) -> tuple[Tensor, ...]:
    # torch's own types leave the result unknown.
    return cast(tuple[Tensor, ...], x.split(sizes, dim=dim))


def _sums(table: Tensor, dim: int) -> list[int]:
    return cast(list[int], table.sum(dim).tolist())


def _blocks_by_column(sizes: Tensor) -> Tensor:
    """Returns the index of rows that lie in blocks ``(A, B)``, one column of blocks after the other."""
    rows = _split(torch.arange(int(sizes.sum())), cast(list[int], sizes.flatten().tolist()), dim=0)
    columns = sizes.shape[1]
    return torch.cat([block for column in range(columns) for block in rows[column::columns]])


def _inverse(rows: Tensor, index: Tensor) -> Tensor:
    """Returns rows from before they were taken by ``index``, a permutation."""
    return torch.empty_like(rows).index_copy_(0, index.to(rows.device), rows)
