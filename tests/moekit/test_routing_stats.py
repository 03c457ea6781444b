"""Router statistics: sums against loops, and the laws by which they add up."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from moekit import ExpertChoiceRouter, HashRouter, RouterStats, SparseMoE, TopKRouter, plan_dispatch, plan_expert_choice
from moekit.routing import Routing, entropy, router_stats

DIM, EXPERTS, TOP_K = 6, 5, 2


def make_router(**options) -> TopKRouter:
    torch.manual_seed(0)
    router = TopKRouter(DIM, EXPERTS, TOP_K, dtype=torch.float64, **options)
    nn.init.normal_(router.gate.layers[0].weight)
    return router


def make_input(tokens: int, seed: int = 1) -> Tensor:
    return torch.randn(tokens, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stats_of(routing: Routing, mask: Tensor | None = None, capacity: int | None = None) -> RouterStats:
    kept = routing.valid if mask is None else routing.valid & mask
    plan = plan_dispatch(routing.expert_ids, EXPERTS, kept=kept.unsqueeze(-1), capacity=capacity)
    return router_stats(routing, plan, mask)


def by_loop(routing: Routing, mask: Tensor) -> dict[str, list[float] | float]:
    """The same sums, token by token."""
    counts, probs, gates = [0] * EXPERTS, [0.0] * EXPERTS, [0.0] * EXPERTS
    logsumexp_sq = entropy_sum = 0.0
    tokens = nonfinite = 0
    for t in range(len(mask)):
        if not mask[t]:
            continue
        if not routing.valid[t]:
            nonfinite += 1
            continue
        tokens += 1
        logsumexp_sq += math.log(sum(math.exp(v) for v in routing.logits[t].tolist())) ** 2
        for e, p in enumerate(routing.probs[t].tolist()):
            probs[e] += p
            entropy_sum -= p * math.log(p)
        for e, g in zip(routing.expert_ids[t].tolist(), routing.gates[t].tolist(), strict=True):
            counts[e] += 1
            gates[e] += g
    return {
        "tokens_per_expert": counts,
        "dropped_per_expert": [0] * EXPERTS,
        "prob_sum": probs,
        "gate_sum": gates,
        "load": counts,
        "logsumexp_sq_sum": logsumexp_sq,
        "entropy_sum": entropy_sum,
        "num_tokens": tokens,
        "nonfinite_tokens": nonfinite,
    }


def assert_equal(mine: RouterStats, theirs: RouterStats) -> None:
    for name, a, b in zip(RouterStats._fields, mine, theirs, strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scoring", ["softmax", "topk_softmax", "sigmoid"])
def test_sums_are_those_of_a_loop_over_tokens(scoring: str, masked: bool) -> None:
    x = make_input(12)
    x[[2, 3], 0] = math.nan
    mask = torch.arange(12) % 3 != 0 if masked else None  # masks the broken token 3 but not 2
    routing = make_router(scoring=scoring)(x)
    stats = stats_of(routing, mask)
    expected = by_loop(routing, torch.ones(12, dtype=torch.bool) if mask is None else mask)
    for name, value in expected.items():
        assert getattr(stats, name).tolist() == pytest.approx(value, abs=1e-12), name
    counts = ("tokens_per_expert", "dropped_per_expert", "num_tokens", "nonfinite_tokens")
    assert all(getattr(stats, name).dtype == torch.int64 for name in counts)
    assert stats.nonfinite_tokens.item() == (1 if masked else 2)


def test_dropped_slots_are_counted_as_routed_too() -> None:
    routing = make_router()(make_input(20))
    stats, dropless = stats_of(routing, capacity=3), stats_of(routing)
    assert stats.tokens_per_expert.equal(dropless.tokens_per_expert)
    assert stats.dropped_per_expert.equal((dropless.tokens_per_expert - 3).clamp(min=0))
    torch.testing.assert_close(stats.gate_sum, dropless.gate_sum)


def test_a_hash_router_has_no_logits_and_no_load_of_its_own() -> None:
    routing = HashRouter(EXPERTS, 30, 2)(torch.arange(30))
    stats = stats_of(routing)
    assert stats.logsumexp_sq_sum.item() == 0
    assert stats.entropy_sum.item() == pytest.approx(30 * math.log(2), rel=1e-6)
    assert stats.load.tolist() == stats.tokens_per_expert.tolist()
    torch.testing.assert_close(stats.gate_sum, stats.prob_sum)


def test_expert_choice_counts_the_places_that_were_filled() -> None:
    router = ExpertChoiceRouter(DIM, EXPERTS, capacity_factor=float(EXPERTS), init_scale=1.0, dtype=torch.float64)
    mask = torch.arange(10) >= 7
    routing = router(make_input(10), mask)
    stats = router_stats(routing, plan_expert_choice(routing.token_ids, 10, kept=routing.kept), mask)
    assert stats.tokens_per_expert.tolist() == [3] * EXPERTS
    assert stats.num_tokens.item() == 3
    torch.testing.assert_close(stats.gate_sum, routing.probs[mask].sum(0))
    torch.testing.assert_close(stats.prob_sum, routing.probs[mask].sum(0))


@given(sizes=st.lists(st.integers(0, 6), min_size=1, max_size=4), broken=st.integers(0, 20), masked=st.booleans())
@settings(deadline=None, max_examples=40)
def test_statistics_of_micro_batches_add_up_to_those_of_the_batch(sizes: list[int], broken: int, masked: bool) -> None:
    router, x = make_router(), make_input(sum(sizes))
    x[broken : broken + 1] = math.inf
    mask = torch.arange(sum(sizes)) % 4 != 0 if masked else torch.ones(sum(sizes), dtype=torch.bool)
    parts = [stats_of(router(part), m) for part, m in zip(x.split(sizes), mask.split(sizes), strict=True)]
    assert_equal(sum(parts), stats_of(router(x), mask))


@given(order=st.permutations(range(7)))
@settings(deadline=None, max_examples=20)
def test_the_order_of_tokens_does_not_matter(order: list[int]) -> None:
    router, x = make_router(), make_input(7)
    assert_equal(stats_of(router(x[order])), stats_of(router(x)))


def test_addition_is_by_field_and_keeps_gradients() -> None:
    router = make_router()
    a, b = stats_of(router(make_input(3))), stats_of(router(make_input(4, seed=2)))
    total = a + b
    assert isinstance(total, RouterStats)
    assert total.num_tokens.item() == 7
    torch.testing.assert_close(total.prob_sum, a.prob_sum + b.prob_sum)
    total.prob_sum[0].backward()
    assert router.gate.layers[0].weight.grad.abs().sum() > 0
    assert_equal(sum([a]), a)


def test_other_things_cannot_be_added() -> None:
    stats = stats_of(make_router()(make_input(3)))
    with pytest.raises(TypeError, match="unsupported operand"):
        1 + stats
    with pytest.raises(TypeError, match="unsupported operand"):
        stats + 1


def test_detach_keeps_figures_and_drops_gradients() -> None:
    stats = stats_of(make_router()(make_input(3)))
    detached = stats.detach()
    assert isinstance(detached, RouterStats)
    assert_equal(detached, stats)
    assert stats.prob_sum.requires_grad
    assert not any(field.requires_grad for field in detached)


def test_no_tokens_give_zeros() -> None:
    stats = stats_of(make_router()(make_input(0)))
    assert all(field.eq(0).all() for field in stats)


def test_masked_tokens_have_no_part_in_the_gradient() -> None:
    router = make_router()
    x = make_input(4).requires_grad_()
    stats = stats_of(router(x), torch.tensor([True, True, False, True]))
    (stats.prob_sum.square().sum() + stats.gate_sum.square().sum()).backward()
    assert x.grad[2].eq(0).all()
    assert x.grad[[0, 1, 3]].ne(0).any(-1).all()


def test_entropy_is_in_nats_and_has_a_finite_gradient_at_zero() -> None:
    probs = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    value = entropy(probs)
    assert value.tolist() == pytest.approx([math.log(2), 0.0])
    value.sum().backward()
    assert probs.grad.isfinite().all()
    torch.testing.assert_close(probs.grad[0, :2], torch.full((2,), math.log(2) - 1, dtype=torch.float64))


def test_a_plan_of_another_routing_is_refused() -> None:
    routing = make_router()(make_input(3))
    for ids, num_experts, got in (
        (routing.expert_ids[:2], EXPERTS, "2 tokens and 5"),
        (routing.expert_ids, 7, "3 .* 7"),
    ):
        with pytest.raises(
            ValueError, match=f"plan must be made from the routing, of 3 tokens and 5 .*, got .* {got} ex"
        ):
            router_stats(routing, plan_dispatch(ids, num_experts))


def test_statistics_of_different_layers_do_not_add_up() -> None:
    first, second = (SparseMoE.ffn(4, 4, e, 1)(torch.randn(3, 4)).stats for e in (4, 1))
    with pytest.raises(ValueError, match="only for one number of experts, got 4 and 1"):
        first + second
