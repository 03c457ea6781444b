"""Statistics of all layers over micro-batches and ranks, for logs and updates of the selection bias."""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist

from moekit.collectives import all_reduce_stats
from moekit.inspect.summary import LayerSummary, figures_of
from moekit.inspect.table import scalars_of
from moekit.routing import RouterStats, check_stats


class StatsCollector:
    """Adds up the statistics that layers return, without gradients.

    Of what layers return anyway, so it works in compiled models too; it is what a training loop needs at every step.
    :func:`record_routing` tells more (time, co-activation, labels, confidence).

    Example:
        >>> layers = nn.ModuleList(SparseMoE.ffn(8, 8, num_experts=4, top_k=2) for _ in range(3))
        >>> collector = StatsCollector()
        >>> for micro_batch in torch.randn(4, 10, 8):
        ...     collector.add([layer(micro_batch).stats for layer in layers])
        >>> [int(stats.num_tokens) for stats in collector.totals().values()]
        [40, 40, 40]
        >>> sorted(collector.scalars())[:2]
        ['moe/0/busiest_share', 'moe/0/dead_experts']
        >>> collector.reset()
    """

    def __init__(self) -> None:
        self._totals: dict[str, RouterStats] = {}

    def add(self, stats: Sequence[RouterStats] | Mapping[str, RouterStats]) -> None:
        """Adds the statistics of one call of the model.

        Args:
            stats: Those of its layers, by name; or in a sequence, whose places are then the names.

        Raises:
            ValueError: If one is no :class:`~moekit.RouterStats`, or there are none.
        """
        if isinstance(stats, RouterStats):
            raise ValueError("stats must be those of all layers, in a sequence or by name, got those of one: [stats].")
        if not isinstance(stats, Mapping):
            stats = {str(place): each for place, each in enumerate(stats)}
        if not stats:
            raise ValueError("stats must hold the statistics of at least one layer, got none.")
        for name, each in stats.items():
            check_stats(each, name=f"stats[{name!r}]")
            own = each.detach()
            self._totals[name] = self._totals[name] + own if name in self._totals else own

    def totals(self, group: dist.ProcessGroup | None = None) -> dict[str, RouterStats]:
        """Returns the sums by layer, over all ranks of ``group``: one collective for all layers.

        Args:
            group: Process group; the default group if None. Without one, the sums of this process.
        """
        with torch.no_grad():
            reduced = all_reduce_stats(list(self._totals.values()), group)
        return dict(zip(self._totals, reduced, strict=True))

    def summaries(self, group: dist.ProcessGroup | None = None) -> list[LayerSummary]:
        """Returns the figures of each layer; statistics tell no confidence and no tokens without experts."""
        return [_summary(name, stats) for name, stats in self.totals(group).items()]

    def scalars(self, prefix: str = "moe/", group: dist.ProcessGroup | None = None) -> dict[str, float]:
        """Returns the figures as ``{"moe/LAYER/FIGURE": value}``; see :meth:`RoutingRecord.scalars`."""
        return scalars_of(self.summaries(group), prefix)

    def reset(self) -> None:
        """Starts again from zero, as after each optimiser step."""
        self._totals = {}


def _summary(name: str, stats: RouterStats) -> LayerSummary:
    columns = {
        "tokens": stats.num_tokens,
        "nonfinite_tokens": stats.nonfinite_tokens,
        "entropy_tokens": stats.num_tokens,
        "entropy_sum": stats.entropy_sum,
    }
    numbers = {column: float(value) for column, value in columns.items()}
    return figures_of(name, numbers, stats.tokens_per_expert.cpu().double(), stats.dropped_per_expert.cpu().double())
