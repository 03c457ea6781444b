"""A number of experts of each token's own: laws of the choice, and what a layer makes of unused slots."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from moekit import (
    DynamicTopKRouter,
    FFNExperts,
    ModuleExperts,
    SparseMoE,
    TopKRouter,
    dynamic_routing_losses,
    load_balancing_loss,
    router_entropy,
    router_stats,
    sequence_balancing_loss,
)
from moekit.interop.upcycling.routers import MergedRouter
from moekit.observers import add_observer, remove_observer
from tests.strategies import few

DIM, EXPERTS, TOKENS = 6, 8, 24


def make_router(top_k=EXPERTS, mass=0.6, dtype=torch.float64, **options):
    torch.manual_seed(0)
    router = DynamicTopKRouter(DIM, EXPERTS, top_k, mass=mass, dtype=dtype, **options)
    for parameter in router.parameters():
        nn.init.normal_(parameter)
    return router


def make_input(tokens=TOKENS, dtype=torch.float64):
    return torch.randn(tokens, DIM, generator=torch.Generator().manual_seed(1), dtype=dtype)


def make_layer(router, **options):
    torch.manual_seed(2)
    experts = FFNExperts(DIM, 5, EXPERTS, dtype=torch.float64, init_scale=1.0)
    return SparseMoE(router, experts, **options)


@few
@given(
    top_k=st.integers(1, EXPERTS),
    mass=st.floats(1e-3, 1.0),
    renormalize=st.booleans(),
    spread=st.sampled_from([0.01, 1.0, 8.0]),
    tokens=st.integers(0, 9),
)
def test_each_token_takes_as_few_of_its_best_experts_as_reach_the_mass(top_k, mass, renormalize, spread, tokens):
    router = make_router(top_k, mass, renormalize=renormalize)
    routing = router(make_input(tokens) * spread)
    for row in range(tokens):
        probs = routing.probs[row].tolist()
        ranked = sorted(range(EXPERTS), key=lambda e: (-probs[e], e))[:top_k]
        number, reached = 0, 0.0
        while number < top_k and (mass >= 1 or reached < mass):
            reached += probs[ranked[number]]
            number += 1
        assert routing.kept[row].sum() == number
        assert routing.kept[row, :number].all(), "the kept slots are the first ones"
        assert routing.expert_ids[row, :number].tolist() == ranked[:number]
        expected = [probs[e] / (reached if renormalize else 1) for e in ranked[:number]]
        assert routing.gates[row].tolist() == pytest.approx(expected + [0.0] * (top_k - number))


def test_the_whole_mass_is_top_k_and_hardly_any_is_the_best_expert():
    x = make_input() * 50  # so certain that the sum of the first probabilities rounds to 1
    every = make_router(EXPERTS, 1.0)(x)
    assert every.kept.all()
    torch.testing.assert_close(every.gates.sum(-1), torch.ones(TOKENS, dtype=torch.float64))
    one = make_router(EXPERTS, 1e-9)(make_input())
    assert one.kept.sum(-1).eq(1).all()
    assert torch.equal(one.expert_ids[:, 0], one.logits.argmax(-1))


def test_more_mass_never_takes_fewer_experts():
    numbers = [make_router(mass=mass)(make_input()).kept.sum(-1) for mass in (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)]
    assert all((more >= fewer).all() for fewer, more in pairwise(numbers))


def test_the_order_of_tokens_and_of_experts_does_not_matter():
    router, x = make_router(), make_input()
    routing, order = router(x), torch.randperm(TOKENS)
    permuted = router(x[order])
    assert torch.equal(routing.kept[order], permuted.kept)
    torch.testing.assert_close(routing.gates[order], permuted.gates)
    experts = torch.randperm(EXPERTS)
    with torch.no_grad():
        router.gate.layers[0].weight.copy_(router.gate.layers[0].weight[experts])
    renamed = router(x)
    assert torch.equal(routing.kept, renamed.kept)
    assert torch.equal(routing.expert_ids[routing.kept], experts[renamed.expert_ids[renamed.kept]])


@pytest.mark.parametrize("gates_on", ["outputs", "inputs"])
@pytest.mark.parametrize("renormalize", [False, True])
def test_a_layer_is_the_sum_over_the_experts_that_are_kept(gates_on, renormalize):
    router = make_router(4, renormalize=renormalize)
    moe, x = make_layer(router, gates_on=gates_on), make_input()
    routing = router(x)
    output, stats = moe(x)
    experts = [
        SparseMoE(TopKRouter(DIM, 1, 1, dtype=torch.float64), FFNExperts(DIM, 5, 1, dtype=torch.float64))
        for _ in range(EXPERTS)
    ]
    for index, one in enumerate(experts):
        for own, whole in zip(one.experts.parameters(), moe.experts.parameters(), strict=True):
            own.data.copy_(whole[index : index + 1])
    for row in range(TOKENS):
        expected = torch.zeros(DIM, dtype=torch.float64)
        for gate, expert, kept in zip(
            routing.gates[row], routing.expert_ids[row].tolist(), routing.kept[row].tolist(), strict=True
        ):
            if not kept:
                continue
            token = x[row : row + 1]
            if gates_on == "inputs":
                expected += experts[expert](gate * token).output[0]
            else:
                expected += gate * experts[expert](token).output[0]
        torch.testing.assert_close(output[row], expected)
    assert stats.tokens_per_expert.sum() == routing.kept.sum()


def test_unused_slots_are_in_no_experts_rows():
    seen = []

    class Counting(nn.Module):
        def forward(self, rows):
            seen.append(len(rows))
            return rows

    router = make_router(4)
    x = make_input()
    SparseMoE(router, ModuleExperts([Counting() for _ in range(EXPERTS)]))(x)
    assert sum(seen) == router(x).kept.sum() < TOKENS * 4


def test_statistics_count_what_is_kept():
    router, x = make_router(4), make_input()
    mask = torch.arange(TOKENS) % 3 > 0
    moe = make_layer(router)
    routing = router(x)
    stats = moe(x, mask=mask).stats
    kept = routing.kept & mask.unsqueeze(-1)
    counts = routing.expert_ids[kept].bincount(minlength=EXPERTS)
    assert torch.equal(stats.tokens_per_expert, counts)
    gates = torch.zeros(EXPERTS, dtype=torch.float64).index_add(0, routing.expert_ids[kept], routing.gates[kept])
    torch.testing.assert_close(stats.gate_sum, gates)
    torch.testing.assert_close(stats.load, counts.to(stats.load.dtype))
    torch.testing.assert_close(stats.prob_sum, routing.probs[mask].sum(0))
    assert stats.num_tokens == mask.sum()
    assert not stats.dropped_per_expert.any()


def test_replay_mask_capacity_and_shared_decisions():
    router, x = make_router(4), make_input()
    moe = make_layer(router)
    output, stats = moe(x)
    routing = moe.route(x)
    torch.testing.assert_close(moe(x, routing=routing, plan=moe.plan(routing)).output, output)
    mask = torch.arange(TOKENS) < 10
    masked = moe(x, mask=mask)
    torch.testing.assert_close(masked.output[:10], output[:10])
    assert not masked.output[10:].any()
    assert masked.stats.tokens_per_expert.sum() == routing.kept[:10].sum()
    tight = make_layer(router, capacity_factor=0.25)
    dropped = tight(x).stats
    capacity = math.ceil(0.25 * TOKENS * 4 / EXPERTS)
    assert torch.equal(dropped.tokens_per_expert, stats.tokens_per_expert)
    assert torch.equal(dropped.dropped_per_expert, (stats.tokens_per_expert - capacity).clamp(min=0))
    contexts = make_input(2)
    shared = moe(torch.stack([x, x]), router_input=contexts)
    assert shared.stats.tokens_per_expert.sum() == TOKENS * router(contexts).kept.sum()


def test_a_token_with_logits_that_are_not_finite_takes_no_expert():
    router, x = make_router(4), make_input()
    x[3] = float("nan")
    moe = make_layer(router)
    output, stats = moe(x)
    assert output[3].isnan().all()
    assert output[[0, 1, 2, 4]].isfinite().all()
    assert stats.nonfinite_tokens == 1
    assert stats.tokens_per_expert.sum() == router(x).kept.sum()
    assert not router(x).kept[3].any()


@pytest.mark.parametrize("renormalize", [False, True])
def test_gradients_are_those_of_finite_differences(renormalize):
    router = make_router(4, renormalize=renormalize)
    moe = make_layer(router)

    def loss(x):
        output, stats = moe(x)
        return output.sum() + sum(dynamic_routing_losses(stats))

    torch.autograd.gradcheck(loss, make_input(4).requires_grad_())


def test_micro_batches_add_up():
    moe, x = make_layer(make_router(4)), make_input()
    whole, parts = moe(x).stats, moe(x[:7]).stats + moe(x[7:]).stats
    for name in whole._fields:
        torch.testing.assert_close(getattr(whole, name), getattr(parts, name))


def test_losses_are_those_of_the_paper():
    router, x = make_router(), make_input()
    moe = make_layer(router)
    routing, stats = router(x), moe(x).stats
    share_of_tokens = torch.zeros(EXPERTS, dtype=torch.float64)
    for row in range(TOKENS):
        share_of_tokens[routing.expert_ids[row][routing.kept[row]]] += 1 / TOKENS
    losses = dynamic_routing_losses(stats)
    torch.testing.assert_close(losses.balance, EXPERTS * (share_of_tokens * routing.probs.mean(0)).sum())
    torch.testing.assert_close(losses.entropy, -(routing.probs * routing.probs.log()).sum(-1).mean())
    torch.testing.assert_close(losses.entropy, router_entropy(stats))
    torch.testing.assert_close(losses.balance, load_balancing_loss(stats) * routing.kept.sum() / TOKENS)
    again = dynamic_routing_losses(
        stats, tokens_per_expert=2 * stats.tokens_per_expert, num_tokens=2 * stats.num_tokens
    )
    torch.testing.assert_close(again.balance, losses.balance)
    with pytest.raises(ValueError, match="tokens_per_expert and num_tokens go together"):
        dynamic_routing_losses(stats, tokens_per_expert=stats.tokens_per_expert)
    with pytest.raises(ValueError, match="stats must be RouterStats, got a MoEOutput"):
        dynamic_routing_losses(moe(x))


def test_the_entropy_loss_makes_tokens_need_fewer_experts():
    router = make_router(mass=0.6)
    moe, x = make_layer(router), make_input()
    with torch.no_grad():
        router.gate.layers[0].weight.mul_(0.1)
    before = router(x).kept.sum()
    optimizer = torch.optim.SGD(router.parameters(), lr=1.0)
    for _ in range(100):
        optimizer.zero_grad()
        dynamic_routing_losses(moe(x).stats).entropy.backward()
        optimizer.step()
    assert router(x).kept.sum() < before / 2


def test_observers_see_the_slots_that_are_used():
    router, x = make_router(4), make_input()
    moe, events = make_layer(router), []
    add_observer(events.append)
    try:
        moe(x)
    finally:
        remove_observer(events.append)
    ids, kept = events[0].expert_ids, router(x).kept
    assert (ids[~kept] == EXPERTS).all()
    assert torch.equal(ids[kept], router(x).expert_ids[kept])
    assert events[0].kept is None


def test_it_compiles_whole_and_gives_the_same():
    moe, x = make_layer(make_router(4)), make_input()
    compiled = torch.compile(moe, fullgraph=True, backend="aot_eager")
    output, stats = compiled(x)
    torch.testing.assert_close(output, moe(x).output)
    assert torch.equal(stats.tokens_per_expert, moe(x).stats.tokens_per_expert)


def test_settings_are_checked_and_passed_on():
    for mass in (0.0, -0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"mass must lie in \(0, 1\], got"):
            make_router(mass=mass)
    router = make_router()
    with pytest.raises(ValueError, match=r"mass must lie in \(0, 1\], got 2"):
        router.mass = 2
    assert router.mass == 0.6
    router.jitter, router.impl = 0.1, "reference"
    assert (router.ranking.jitter, router.ranking.impl) == (0.1, "reference")
    with pytest.raises(ValueError, match=r"jitter must"):
        router.jitter = -1.0
    with pytest.raises(AttributeError, match="top_k=8 of DynamicTopKRouter is fixed"):
        router.top_k = 2
    with pytest.raises(ValueError, match="top_k must be"):
        make_router(top_k=9)
    assert "mass=0.6" in repr(router)
    weight = router.gate.layers[0].weight.clone()
    router.reset_parameters()
    assert not torch.equal(weight, router.gate.layers[0].weight)


def test_what_needs_a_fixed_number_of_experts_refuses_it():
    router, x = make_router(4), make_input()
    with pytest.raises(ValueError, match="routing must have the same number of experts for every token"):
        sequence_balancing_loss(router(x), num_sequences=3)
    merged = MergedRouter(router, [0, 0, 1, 1, 2, 2, 3, 3])
    with pytest.raises(ValueError, match="router must have the same number of experts for every token"):
        merged(x)


def test_statistics_without_the_routers_own_sums_are_the_same():
    router, x = make_router(4), make_input()
    moe = make_layer(router)
    routing = moe.route(x)
    plain = router_stats(routing._replace(sums=None), moe.plan(routing))
    for name, value in moe(x).stats._asdict().items():
        torch.testing.assert_close(value, getattr(plain, name))
