"""A collector adds up what layers return, and gives the figures of a record."""

import pytest
import torch

from moekit import SparseMoE
from moekit.inspect import StatsCollector, record_routing
from tests.moekit.inspect.models import DIM, NUM_EXPERTS


def test_figures_are_those_of_a_record_of_the_same_calls() -> None:
    layers = torch.nn.ModuleList(SparseMoE.ffn(DIM, DIM, NUM_EXPERTS, 2, capacity_factor=0.5) for _ in range(2))
    collector = StatsCollector()
    with record_routing(layers) as record:
        for _ in range(3):
            x = torch.randn(20, DIM)
            collector.add({str(place): layer(x).stats for place, layer in enumerate(layers)})
    unknown = {"top_k": 0, "calls": 0, "confidence": None, "unrouted": None}
    for own, recorded in zip(collector.summaries(), record.summaries(), strict=True):
        expected = recorded._replace(**unknown, prob_entropy=own.prob_entropy)
        assert own == expected
        assert own.prob_entropy == pytest.approx(recorded.prob_entropy, rel=1e-5)
    names = set(record.scalars())
    assert set(collector.scalars()) == {name for name in names if not name.endswith(("/confidence", "/unrouted"))}


def test_sums_have_no_gradient_and_start_again_from_zero() -> None:
    layer = SparseMoE.ffn(DIM, DIM, NUM_EXPERTS, 2)
    collector = StatsCollector()
    for _ in range(2):
        collector.add([layer(torch.randn(5, DIM)).stats])
    (total,) = collector.totals().values()
    assert total.num_tokens == 10
    assert not total.prob_sum.requires_grad
    collector.reset()
    assert collector.totals() == {}


def test_what_is_no_statistics_of_layers_is_refused() -> None:
    stats = SparseMoE.ffn(DIM, DIM, NUM_EXPERTS, 2)(torch.randn(5, DIM)).stats
    collector = StatsCollector()
    with pytest.raises(ValueError, match=r"got those of one: \[stats\]"):
        collector.add(stats)
    with pytest.raises(ValueError, match="at least one layer, got none"):
        collector.add([])
    with pytest.raises(ValueError, match=r"stats\['1'\] must be RouterStats, got None"):
        collector.add([stats, None])
