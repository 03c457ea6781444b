"""The layer as a whole: held to a loop over tokens, and its options to their documentation."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from moekit import (
    FFN,
    ExpertChoiceRouter,
    FFNExperts,
    HardRouter,
    HashRouter,
    ModuleExperts,
    SparseMoE,
    TopKRouter,
)
from tests.oracles import assert_close, naive_experts, naive_kept, naive_top_k, stacked_expert
from tests.strategies import few

DIM, HIDDEN, EXPERTS = 4, 6, 5


def _loop(moe, x, kept=None):
    """The layer's formula, token by token, for ``SparseMoE.ffn`` layers."""
    logits = x @ moe.router.gate.layers[0].weight.T
    gates, ids = naive_top_k(logits, moe.router.top_k, moe.router.renormalize)
    weights = (moe.experts.up_proj, moe.experts.down_proj, moe.experts.up_bias, moe.experts.down_bias)
    expert = stacked_expert(*weights, moe.experts.activation)
    return gates, ids, naive_experts(x, gates, ids, kept, expert, moe.experts.out_dim)


def _moe(top_k=2, **options):
    options = {"dtype": torch.float64, "activation": "gelu", "bias": True} | options
    moe = SparseMoE.ffn(DIM, HIDDEN, EXPERTS, top_k, **options)
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.normal_()
    return moe


@few
@given(
    st.sampled_from([0, 1, 2, 9]),
    st.integers(1, EXPERTS),
    st.sampled_from(["gelu", "swiglu"]),
    st.booleans(),
    st.sampled_from(["reference", "torch"]),
    st.integers(0, 2**31),
)
def test_output_and_statistics_are_those_of_the_loop(tokens, top_k, activation, bias, impl, seed):
    torch.manual_seed(seed)
    moe = _moe(top_k, activation=activation, bias=bias, impl=impl)
    x = torch.randn(tokens, DIM, dtype=torch.float64)
    gates, ids, expected = _loop(moe, x)
    output, stats = moe(x)
    assert_close(output, expected)
    assert stats.tokens_per_expert.equal(ids.flatten().bincount(minlength=EXPERTS))
    assert_close(stats.gate_sum, torch.zeros(EXPERTS).double().index_add(0, ids.flatten(), gates.flatten()))
    assert stats.num_tokens == tokens
    assert stats.nonfinite_tokens == 0


@pytest.mark.parametrize("top_k", [1, 2, EXPERTS])
def test_torch_is_the_reference_in_every_gradient(top_k):
    x = torch.randn(9, DIM, dtype=torch.float64)
    moes = [_moe(top_k, impl=impl, shared_hidden_dim=3, capacity_factor=1.0) for impl in ("reference", "torch")]
    moes[1].load_state_dict(moes[0].state_dict())
    results = []
    for moe in moes:
        leaf = x.clone().requires_grad_()
        output, stats = moe(leaf)
        loss = output.square().sum() + stats.prob_sum.square().sum() + stats.logsumexp_sq_sum + stats.entropy_sum
        results.append([output, *torch.autograd.grad(loss, [leaf, *moe.parameters()])])
    for mine, theirs in zip(*results, strict=True):
        assert_close(mine, theirs)


def test_leading_dimensions_are_tokens():
    moe = _moe()
    x = torch.randn(2, 3, 4, DIM, dtype=torch.float64)
    assert_close(moe(x).output, moe(x.reshape(-1, DIM)).output.view(x.shape))
    assert_close(moe(x[0, 0, 0]).output, moe(x).output[0, 0, 0])


@pytest.mark.parametrize("gated", [True, False])
def test_shared_expert_is_added_for_every_real_token(gated):
    moe = _moe()
    shared = FFN(DIM, 3, gated=gated, dtype=torch.float64)
    both = SparseMoE(moe.router, moe.experts, shared=shared)
    x = torch.randn(5, DIM, dtype=torch.float64)
    assert_close(both(x).output, moe(x).output + shared(x))
    mask = torch.tensor([True, False, True, True, False])
    masked = both(x, mask=mask).output
    assert_close(masked[mask], moe(x[mask]).output + shared(x[mask]))
    assert not masked[~mask].any()


@few
@given(st.integers(0, 2**31), st.booleans())
def test_the_order_of_tokens_does_not_matter(seed, expert_choice):
    torch.manual_seed(seed)
    moe = _moe()
    if expert_choice:
        moe = SparseMoE(ExpertChoiceRouter(DIM, EXPERTS, dtype=torch.float64), moe.experts)
    x = torch.randn(9, DIM, dtype=torch.float64)
    order = torch.randperm(9)
    (output, stats), (permuted, permuted_stats) = moe(x), moe(x[order])
    assert_close(permuted, output[order])
    assert permuted_stats.tokens_per_expert.equal(stats.tokens_per_expert)
    assert_close(permuted_stats.prob_sum, stats.prob_sum)


@few
@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(0, 2**31))
def test_statistics_of_micro_batches_add_up(sizes, seed):
    torch.manual_seed(seed)
    moe = _moe()
    x = torch.randn(sum(sizes), DIM, dtype=torch.float64)
    mask = torch.rand(len(x)) > 0.3
    whole = moe(x, mask=mask).stats
    parts = sum(moe(a, mask=b).stats for a, b in zip(x.split(sizes), mask.split(sizes), strict=True))
    for mine, theirs in zip(parts, whole, strict=True):
        assert_close(mine.double(), theirs.double())


@pytest.mark.parametrize("drop_policy", ["position", "gate"])
@pytest.mark.parametrize("factor", [0.5, 1.0, 1.25, 5.0])
def test_capacity_drops_the_slots_that_the_queue_drops(drop_policy, factor):
    base = _moe()
    moe = SparseMoE(base.router, base.experts, capacity_factor=factor, drop_policy=drop_policy)
    x = torch.randn(11, DIM, dtype=torch.float64)
    gates, ids, _ = _loop(base, x)
    capacity = min(-(-int(factor * 100) * 11 * 2 // (100 * EXPERTS)), 11)
    slots = [(t, k) for k in range(2) for t in range(11)]
    if drop_policy == "gate":
        slots = sorted(((t, k) for t in range(11) for k in range(2)), key=lambda place: -gates[place].item())
    kept = naive_kept(ids, EXPERTS, capacity, slots)
    output, stats = moe(x)
    assert_close(output, _loop(base, x, kept)[2])
    assert stats.dropped_per_expert.equal(ids[~kept].bincount(minlength=EXPERTS))
    assert stats.tokens_per_expert.sum() == 22


@pytest.mark.parametrize("factor", [0.3, 1.0, 1.0004, 4 / 3])
@pytest.mark.parametrize("tokens", [0, 1, 7, 21])
def test_capacity_counts_unmasked_tokens_exactly(factor, tokens):
    moe = _moe(capacity_factor=factor)
    x = torch.randn(tokens, DIM, dtype=torch.float64)
    padded = torch.cat([x, torch.randn(5, DIM, dtype=torch.float64)])
    mask = torch.arange(tokens + 5) < tokens
    output, stats = moe(x)
    masked_output, masked_stats = moe(padded, mask=mask)
    assert masked_stats.dropped_per_expert.equal(stats.dropped_per_expert)
    assert_close(masked_output[:tokens], output)


@pytest.mark.parametrize("kind", ["top-k", "expert choice", "modules"])
def test_masked_tokens_are_routed_and_counted_nowhere(kind):
    router = TopKRouter(DIM, EXPERTS, 2, dtype=torch.float64)
    experts = _moe().experts
    if kind == "expert choice":
        router = ExpertChoiceRouter(DIM, EXPERTS, dtype=torch.float64)
    if kind == "modules":
        experts = ModuleExperts([nn.Linear(DIM, DIM, dtype=torch.float64) for _ in range(EXPERTS)])
    moe = SparseMoE(router, experts)
    x = torch.randn(2, 6, DIM, dtype=torch.float64)
    mask = torch.tensor([[True, True, False, True, False, True], [True, False, True, True, True, True]])
    results = []
    for filler in (0.0, 7.0, torch.nan, torch.inf):
        filled = x.clone()
        filled[~mask] = filler
        filled.requires_grad_()
        moe.zero_grad()
        output, stats = moe(filled, mask=mask)
        (output.square().sum() + stats.entropy_sum).backward()
        results.append([output, *stats, filled.grad, *(p.grad for p in moe.parameters())])
        assert not output[~mask].any()
        assert not filled.grad[~mask].any()
        assert stats.num_tokens == mask.sum()
        assert stats.nonfinite_tokens == 0
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True) if a is not None)
    assert_close(results[0][0][mask], moe(x[mask]).output)


def test_a_router_input_per_token():
    moe = SparseMoE(TopKRouter(3, EXPERTS, 2, dtype=torch.float64), _moe().experts)
    x = torch.randn(2, 6, DIM, dtype=torch.float64)
    context = torch.randn(2, 6, 3, dtype=torch.float64)
    output = moe(x, router_input=context).output
    routing = moe.router(context.reshape(-1, 3))
    experts = moe.experts
    expert = stacked_expert(experts.up_proj, experts.down_proj, experts.up_bias, experts.down_bias, "gelu")
    expected = naive_experts(x.reshape(-1, DIM), routing.gates, routing.expert_ids, None, expert, DIM)
    assert_close(output.reshape(-1, DIM), expected)


@pytest.mark.parametrize(
    "router", [TopKRouter(3, EXPERTS, 2, noisy=True), HardRouter(3, EXPERTS)], ids=["top-k", "hard"]
)
def test_a_router_input_per_sample_is_repeated_for_its_tokens(router):
    torch.manual_seed(3)
    for parameter in router.parameters():
        nn.init.normal_(parameter)
    moe = SparseMoE(router.eval(), FFNExperts(DIM, HIDDEN, EXPERTS))
    x, context = torch.randn(2, 6, 5, DIM), torch.randn(2, 3)
    mask = torch.rand(2, 6, 5) > 0.2
    each = context[:, None, None].expand(2, 6, 5, 3)
    for shared, manual in (
        (context, each),
        (context[:, None].expand(2, 6, 3), each),
        (context[0], each[:1].expand_as(each)),
    ):
        a, b = moe(x, router_input=shared, mask=mask), moe(x, router_input=manual, mask=mask)
        assert_close(a.output, b.output)
        for mine, theirs in zip(a.stats, b.stats, strict=True):
            assert_close(mine.double(), theirs.double(), torch.float32)


def test_a_repeated_decision_keeps_the_smooth_load_of_noise():
    router = TopKRouter(3, EXPERTS, 2, noisy=True)
    moe = SparseMoE(router, FFNExperts(DIM, HIDDEN, EXPERTS))
    x, context = torch.randn(2, 4, DIM), torch.randn(2, 3)
    torch.manual_seed(5)
    once = router(context)
    torch.manual_seed(5)
    stats = moe(x, router_input=context).stats
    assert_close(stats.load, 4 * once.load_probs.sum(0))


def test_hash_routing_per_token_and_per_sample():
    moe = SparseMoE(HashRouter(EXPERTS, vocab_size=50, top_k=2), FFNExperts(DIM, HIDDEN, EXPERTS))
    x, ids = torch.randn(2, 3, DIM), torch.tensor([[1, 7, 7], [49, 50, 0]])
    output, stats = moe(x, router_input=ids)
    assert stats.tokens_per_expert.sum() == 12
    swapped = moe(x.flip(1), router_input=ids.flip(1)).output.flip(1)
    assert_close(swapped, output)
    per_sample = moe(x, router_input=ids[:, 0]).output
    assert_close(per_sample, moe(x, router_input=ids[:, :1].expand(2, 3)).output)


def test_experts_over_samples_are_routed_by_a_context():
    experts = ModuleExperts([nn.Conv2d(3, 3, k, padding=k // 2) for k in (1, 3)], token_ndim=3)
    moe = SparseMoE(HardRouter(2, 2), experts)
    images, context = torch.randn(4, 3, 8, 8), torch.randn(4, 2)
    output = moe(images, router_input=context).output
    routing = moe.route(images, router_input=context)
    for t in range(4):
        one = experts.experts[routing.expert_ids[t, 0]](images[t : t + 1])[0]
        assert_close(output[t], routing.gates[t, 0] * one)


@pytest.mark.parametrize("kind", ["top-k", "noisy", "expert choice", "per sample"])
def test_a_routing_can_be_replayed(kind):
    routers = {
        "top-k": TopKRouter(DIM, EXPERTS, 2),
        "noisy": TopKRouter(DIM, EXPERTS, 2, noisy=True),
        "expert choice": ExpertChoiceRouter(DIM, EXPERTS),
        "per sample": TopKRouter(3, EXPERTS, 2),
    }
    moe = SparseMoE(routers[kind], FFNExperts(DIM, HIDDEN, EXPERTS))
    x, mask = torch.randn(2, 6, DIM), torch.rand(2, 6) > 0.3
    context = torch.randn(2, 3) if kind == "per sample" else None
    torch.manual_seed(1)
    routing = moe.route(x, router_input=context, mask=mask)
    torch.manual_seed(1)
    direct = moe(x, router_input=context, mask=mask)
    replayed = moe(x, mask=mask, routing=routing)
    assert torch.equal(replayed.output, direct.output)
    assert all(torch.equal(a, b) for a, b in zip(replayed.stats, direct.stats, strict=True))
    moved = routing._replace(gates=routing.gates * 2)
    assert_close(moe(x, mask=mask, routing=moved).output, 2 * direct.output)


def test_the_width_may_change_with_the_experts():
    moe = SparseMoE(TopKRouter(DIM, EXPERTS, 2), FFNExperts(DIM, HIDDEN, EXPERTS, out_dim=3))
    x = torch.randn(2, 5, DIM)
    output = moe(x).output
    one = moe(x[1, 2]).output
    assert output.shape == (2, 5, 3)
    assert_close(output[1, 2], one)


def test_nothing_is_written_in_forward_and_twice_is_the_same():
    moe = _moe(capacity_factor=1.0)
    x = torch.randn(9, DIM, dtype=torch.float64)
    before = {name: value.clone() for name, value in moe.state_dict().items()}
    first, second = moe(x), moe(x)
    assert torch.equal(first.output, second.output)
    assert all(torch.equal(a, b) for a, b in zip(first.stats, second.stats, strict=True))
    assert all(torch.equal(value, before[name]) for name, value in moe.state_dict().items())


def test_repr_names_the_settings():
    assert "dropless" in repr(_moe())
    assert "capacity_factor=1.5, drop_policy='position'" in repr(_moe(capacity_factor=1.5))


def test_the_builder_passes_its_arguments_on():
    moe = SparseMoE.ffn(
        4, 6, 3, 2, activation="relu", bias=True, shared_hidden_dim=7, capacity_factor=2.0, impl="torch"
    )
    assert moe.experts.activation == moe.shared.activation == "relu"
    assert moe.experts.up_bias.shape == (3, 6)
    assert moe.shared.up_proj.weight.shape == (7, 4)
    assert moe.shared.up_proj.bias is not None
    assert (moe.router.top_k, moe.capacity_factor, moe.experts.impl) == (2, 2.0, "torch")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e38])
@pytest.mark.parametrize("gated", [True, False])
def test_masked_tokens_reach_neither_the_shared_module_nor_its_gradients(gated, value):
    moe = SparseMoE(
        TopKRouter(DIM, EXPERTS, 2), FFNExperts(DIM, 6, EXPERTS), shared=FFN(DIM, 3, gated=gated, bias=True)
    )
    x, mask = torch.randn(2, 6, DIM), torch.rand(2, 6) > 0.4
    results = []
    for filler in (0.0, value):
        leaf = torch.where(mask[..., None], x, filler).requires_grad_()
        moe.zero_grad()
        output = moe(leaf, mask=mask).output
        (output * torch.arange(DIM)).sum().backward()
        assert not output[~mask].any()
        results.append([output.detach(), leaf.grad, *(p.grad for p in moe.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert all(grad.isfinite().all() for grad in results[0])


@pytest.mark.parametrize("kind", ["top-k", "expert choice", "capacity"])
def test_statistics_can_be_left_out(kind):
    router = ExpertChoiceRouter(DIM, EXPERTS) if kind == "expert choice" else TopKRouter(DIM, EXPERTS, 2)
    moe = SparseMoE(router, FFNExperts(DIM, 6, EXPERTS), capacity_factor=1.0 if kind == "capacity" else None)
    x, mask = torch.randn(2, 6, DIM), torch.rand(2, 6) > 0.4
    out = moe(x, mask=mask, stats=False)
    assert out.stats is None
    assert torch.equal(out.output, moe(x, mask=mask).output)
    compiled = torch.compile(moe, fullgraph=True, backend="aot_eager")
    assert compiled(x, stats=False).stats is None
    program = torch.export.export(moe, (x,), {"stats": False})
    assert_close(program.module()(x, stats=False).output, moe(x).output)


def test_a_plan_can_be_used_again(monkeypatch):
    moe = _moe(capacity_factor=1.0)
    x, mask = torch.randn(2, 6, DIM, dtype=torch.float64), torch.rand(2, 6) > 0.4
    routing = moe.route(x, mask=mask)
    plan, expected = moe.plan(routing, mask.flatten()), moe(x, mask=mask)
    monkeypatch.setattr(moe, "plan", None)  # planned once: no second time
    again = moe(x, mask=mask, routing=routing, plan=plan)
    assert torch.equal(again.output, expected.output)
    assert all(torch.equal(a, b) for a, b in zip(again.stats, expected.stats, strict=True))


def test_a_replayed_expert_choice_is_under_the_mask_of_the_call():
    moe = SparseMoE(ExpertChoiceRouter(DIM, EXPERTS), FFNExperts(DIM, 6, EXPERTS))
    x, mask = torch.randn(12, DIM), torch.arange(12) < 7
    routing = moe.route(x)
    output, stats = moe(x, routing=routing, mask=mask)
    assert not output[~mask].any()
    assert_close(output[mask], moe(x, routing=routing).output[mask])
    assert stats.tokens_per_expert.sum() == mask[routing.token_ids].sum()
    assert_close(stats.gate_sum, torch.where(mask[routing.token_ids], routing.gates, 0).sum(-1))


@pytest.mark.parametrize("kind", ["top-k", "by gate", "expert choice"])
def test_padding_takes_no_capacity(kind):
    router = ExpertChoiceRouter(DIM, EXPERTS, capacity_factor=1.0) if kind == "expert choice" else None
    options = {} if router else {"capacity_factor": 0.5, "drop_policy": "gate" if kind == "by gate" else "position"}
    moe = SparseMoE(router or TopKRouter(DIM, EXPERTS, 2), FFNExperts(DIM, 6, EXPERTS), **options)
    x = torch.randn(20, DIM)
    mask = torch.arange(100) % 5 == 2
    padded = torch.full((100, DIM), torch.nan).index_copy(0, mask.nonzero().flatten(), x)
    alone, beside = moe(x), moe(padded, mask=mask)
    assert_close(beside.output[mask], alone.output)
    for mine, theirs in zip(beside.stats, alone.stats, strict=True):
        torch.testing.assert_close(mine, theirs)
