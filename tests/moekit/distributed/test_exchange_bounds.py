"""Exchanges of equal sizes: what is over the bound is dropped and counted, and nothing is read on the host."""

from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from moekit import FFNExperts, SparseMoE, TopKRouter
from moekit.distributed import dropped_slots, expert_parallel_
from tests.moekit.distributed.cases import Case, on_rank, one_process
from tests.moekit.distributed.ranks import Ranks, division
from tests.moekit.distributed.test_expert_parallel import assert_same

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("options", [{}, {"two_stage": True}])
@pytest.mark.parametrize("experts", ["ffn", "modules"])
def test_a_factor_of_the_number_of_ranks_is_exact(ranks: Ranks, experts: str, options: dict) -> None:
    case = Case(sizes=(6, 6, 6, 6), top_k=3, experts=experts, num_experts=7, masked=True)
    results = ranks.run(on_rank, case, 1, 4, {"max_slots_factor": 4.0, **options})
    assert_same(one_process(case), results, 1e-10)


@dataclass
class Bounded:
    output: Tensor
    expected: Tensor
    dropped: dict[str, int]
    after_reset: dict[str, int]


def _bounded(num_tokens: int, factor: float) -> Bounded:
    """A layer whose slots are dropped by hand beside one with a bound, on this rank."""
    torch.manual_seed(0)
    layer = SparseMoE(TopKRouter(6, 8, 2), FFNExperts(6, 5, 8, init_scale=1.0))
    torch.nn.init.normal_(layer.router.gate.layers[0].weight)
    x = torch.randn(num_tokens, 6, generator=torch.Generator().manual_seed(dist.get_rank()))
    routing = layer.route(x)
    bound = -(-int(factor * num_tokens * 2) // 4)
    plan = layer.plan(routing)
    kept = torch.zeros(num_tokens * 2, dtype=torch.bool)
    for first in range(0, 8, 2):  # two experts for each of four ranks
        start, end = int(plan.offsets[first]), int(plan.offsets[first + 2])
        kept[plan.slot_of_row[start : min(end, start + bound)]] = True
    expected = layer(x, routing=routing._replace(kept=kept.view(num_tokens, 2))).output
    expert_parallel_(layer, division(1, 4).mesh["ep"], max_slots_factor=factor)
    output = layer(x).output
    counted = dropped_slots(layer, reset=True)
    assert counted == {"experts": int((~kept).sum())}, (counted, int((~kept).sum()))
    return Bounded(output.detach(), expected.detach(), counted, dropped_slots(layer))


def test_slots_over_the_bound_are_dropped_and_counted(ranks: Ranks) -> None:
    results = ranks.run(_bounded, 12, 1.0)
    assert sum(result.dropped["experts"] for result in results) > 0
    for result in results:
        torch.testing.assert_close(result.output, result.expected)
        assert result.after_reset == {"experts": 0}


def _unequal() -> str:
    layer = SparseMoE(TopKRouter(6, 8, 2), FFNExperts(6, 5, 8))
    expert_parallel_(layer, division(1, 4).mesh["ep"], max_slots_factor=1.0)
    with pytest.raises(RuntimeError) as raised:
        layer(torch.randn(4 + dist.get_rank(), 6))
    return str(raised.value)


def test_unequal_numbers_of_tokens_are_an_error_on_every_rank(ranks: Ranks) -> None:
    assert all("max_slots_factor needs the same number of tokens" in message for message in ranks.run(_unequal))
