"""Bytes and messages of real collectives are those of the formulas."""

import math
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.scale.traffic import (
    COUNT_BYTES,
    Rows,
    Transfer,
    bounded,
    deduplicated,
    exact,
    replica_gradients,
    uniform_rows,
)
from moekit import FFNExperts, SparseMoE, TopKRouter
from moekit.distributed import ExpertPlacement, expert_parallel_
from moekit.distributed.slots import Slots
from tests.moekit.distributed.ranks import Ranks, division

EXPERTS, TOP_K, DIM, HIDDEN, TOKENS = 8, 3, 6, 5, 12
PLACED = ExpertPlacement(((0, 1, 2), (3, 0, 4), (5, 1, 6), (0, 7, 5)))


def counted_step(experts: int, options: dict[str, Any]) -> tuple[list[list[int]], int, int]:
    """Slots and copies that go to each rank, bytes and messages to others in a step of this rank."""
    torch.manual_seed(0)
    layer = SparseMoE(TopKRouter(DIM, EXPERTS, TOP_K), FFNExperts(DIM, HIDDEN, EXPERTS, init_scale=1.0))
    torch.nn.init.normal_(layer.router.gate.layers[0].weight)
    x = torch.randn(TOKENS, DIM, generator=torch.Generator().manual_seed(dist.get_rank()), requires_grad=True)
    rank_of_slot = layer.route(x).expert_ids // (EXPERTS // experts)
    if "placement" in options:
        plan = Slots(PLACED, dist.get_rank(), experts).placed(layer.plan(layer.route(x)))
        rank_of_row = torch.searchsorted(plan.offsets[3::3], torch.arange(TOKENS * TOP_K), right=True)
        rank_of_slot = plan.order.by_slot(rank_of_row)
    slots = torch.bincount(rank_of_slot.flatten(), minlength=experts).tolist()
    copies = [int((rank_of_slot == rank).any(1).sum()) for rank in range(experts)]
    divided = division(4 // experts, experts)
    expert_parallel_(layer, divided.mesh["ep"], **options)
    own, sent, messages = divided.mesh["ep"].get_local_rank(), [0], [0]
    plain = dist.all_to_all_single

    def counting(output: Tensor, input: Tensor, received: list[int], splits: list[int], **rest: Any) -> Any:
        row = input.element_size() * (input[0].numel() if len(input) else 0)
        others = [rows for rank, rows in enumerate(splits) if rank != own]
        sent[0] += row * sum(others)
        messages[0] += sum(rows > 0 for rows in others)
        return plain(output, input, received, splits, **rest)

    dist.all_to_all_single = counting
    try:
        layer(x, stats=False).output.sum().backward()
    finally:
        dist.all_to_all_single = plain
    return [slots, copies], sent[0], messages[0]


def transfers(scheme: str, rows: Rows, ranks: int) -> list[Transfer]:
    held, row = EXPERTS // ranks, 4 * DIM
    if scheme == "exact":
        return exact(rows, held, row)
    if scheme == "deduplicated":
        return deduplicated(rows, held, row, gate_bytes=4)
    return bounded(math.ceil(1.5 * TOKENS * TOP_K / ranks), ranks, held, row)


def counted_bytes(micro_batches: int) -> int:
    return counted_step(4, {"micro_batches": micro_batches})[1]


@pytest.mark.slow
def test_micro_batches_send_no_rows_more(ranks: Ranks) -> None:
    """What is more are the counts of each expert, of each micro-batch, to three other ranks."""
    counts = COUNT_BYTES * EXPERTS // 4 * 3
    for one, three in zip(ranks.run(counted_bytes, 1), ranks.run(counted_bytes, 3), strict=True):
        assert three - one == 2 * counts


SCHEMES = {"exact": {}, "deduplicated": {"deduplicate": True}, "bounded": {"max_slots_factor": 1.5}}


@pytest.mark.slow
@pytest.mark.parametrize("ranks_of_experts", [2, 4])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_collectives_of_a_step_are_those_of_the_formula(ranks: Ranks, scheme: str, ranks_of_experts: int) -> None:
    results = ranks.run(counted_step, ranks_of_experts, SCHEMES[scheme])
    for rank, ((slots, copies), sent, messages) in enumerate(results):
        first, own = rank - rank % ranks_of_experts, rank % ranks_of_experts
        group = [numbers for numbers, _, _ in results[first : first + ranks_of_experts]]
        rows = Rows(slots, [each[0][own] for each in group], copies, [each[1][own] for each in group])
        expected = transfers(scheme, rows, ranks_of_experts)
        assert sent == sum(transfer.sent(own) for transfer in expected)
        assert messages == sum(transfer.messages(own) for transfer in expected)


@pytest.mark.slow
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_gradients_of_replicas_are_counted(ranks: Ranks, micro_batches: int) -> None:
    """Once, whatever the number of micro-batches, which have counts of their own."""
    counts = COUNT_BYTES * PLACED.slots_per_rank * 3
    results = ranks.run(counted_step, 4, {"placement": PLACED, "micro_batches": micro_batches})
    for rank, ((slots, copies), sent, messages) in enumerate(results):
        received = [each[0][0][rank] for each in results]
        expected = exact(Rows(slots, received, copies, copies), PLACED.slots_per_rank, 4 * DIM)
        expected.append(replica_gradients(PLACED.experts_of_rank, rank, 4 * 3 * DIM * HIDDEN))
        assert sent == sum(transfer.sent(rank) for transfer in expected) + (micro_batches - 1) * counts
        assert micro_batches > 1 or messages == sum(transfer.messages(rank) for transfer in expected)
    assert replica_gradients(PLACED.experts_of_rank, 0, 1).rows == [0, 1, 1, 1]


def test_expected_rows_are_the_mean_of_random_choices() -> None:
    generator = torch.Generator().manual_seed(0)
    chosen = torch.rand(20000, 16, generator=generator).topk(4).indices // 4
    expected = uniform_rows(20000, 4, 16, 4)
    for rank in range(4):
        here = chosen == rank
        assert here.sum().item() == pytest.approx(expected.slots[rank], rel=0.03)
        assert here.any(1).sum().item() == pytest.approx(expected.copies[rank], rel=0.03)
