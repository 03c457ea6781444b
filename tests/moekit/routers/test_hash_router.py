"""Hash routing: a table from id to experts, drawn once, even in ids or in occurrences."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from moekit import FFNExperts, HashRouter, ModuleExperts, SparseMoE, TopKRouter
from tests.oracles import assert_close
from tests.strategies import few


def load_of(router: HashRouter, frequencies: torch.Tensor) -> torch.Tensor:
    ids = torch.arange(len(frequencies))
    return torch.zeros(router.num_experts).index_add(0, router(ids).expert_ids[:, 0], frequencies)


@given(
    num_experts=st.integers(1, 9),
    vocab_size=st.integers(1, 60),
    seed=st.integers(0, 1000),
    data=st.data(),
)
@settings(deadline=None, max_examples=50)
def test_every_id_gets_k_different_experts_and_every_expert_as_many_ids(
    num_experts: int, vocab_size: int, seed: int, data
) -> None:
    top_k = data.draw(st.integers(1, num_experts))
    router = HashRouter(num_experts, vocab_size, top_k, seed=seed)
    routing = router(torch.arange(vocab_size))
    for row in routing.expert_ids.tolist():
        assert len(set(row)) == top_k
        assert set(row) <= set(range(num_experts))
    counts = routing.expert_ids[:, 0].bincount(minlength=num_experts)
    assert counts.max() - counts.min() <= 1
    assert routing.gates.eq(1 / top_k).all()
    torch.testing.assert_close(routing.probs.sum(-1), torch.ones(vocab_size))
    assert routing.probs.gather(-1, routing.expert_ids).equal(routing.gates)
    assert routing.logits is None
    assert routing.valid.all()


def test_the_seed_alone_decides_the_table() -> None:
    ids = torch.arange(100)
    first = HashRouter(8, 100, 2, seed=3)(ids).expert_ids
    torch.manual_seed(123)
    assert HashRouter(8, 100, 2, seed=3)(ids).expert_ids.equal(first)
    assert not HashRouter(8, 100, 2, seed=4)(ids).expert_ids.equal(first)


def test_the_random_generator_of_the_caller_is_left_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    HashRouter(8, 100, 2)
    assert torch.rand(3).equal(expected)


def test_the_table_travels_with_the_state() -> None:
    router, other = HashRouter(8, 100, seed=1), HashRouter(8, 100, seed=2)
    other.load_state_dict(router.state_dict(), strict=True)
    assert other(torch.arange(100)).expert_ids.equal(router(torch.arange(100)).expert_ids)


def test_balanced_hash_evens_the_load_of_zipf_distributed_ids_better_than_random_hash() -> None:
    frequencies = 1 / torch.arange(1, 1001).float()
    frequencies = frequencies[torch.randperm(1000, generator=torch.Generator().manual_seed(0))]
    balanced = load_of(HashRouter(4, 1000, frequencies=frequencies), frequencies)
    assert balanced.max() / balanced.min() < 1.01
    for seed in range(5):
        random = load_of(HashRouter(4, 1000, seed=seed), frequencies)
        assert random.max() - random.min() > 10 * (balanced.max() - balanced.min())


def test_balanced_hash_gives_each_id_to_the_least_loaded_expert_in_order_of_frequency() -> None:
    router = HashRouter(2, 4, frequencies=torch.tensor([1.0, 5, 3, 3]))
    assert router(torch.arange(4)).expert_ids.flatten().tolist() == [0, 0, 1, 1]


@given(token=st.integers(-(2**40), 2**40))
@settings(deadline=None, max_examples=50)
def test_ids_outside_the_table_wrap_around(token: int) -> None:
    router = HashRouter(5, 30, 2)
    routing = router(torch.tensor([token, token % 30]))
    assert routing.expert_ids[0].equal(routing.expert_ids[1])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_every_integer_dtype_is_an_id(dtype: torch.dtype) -> None:
    router = HashRouter(5, 30)
    assert router(torch.arange(30, dtype=dtype)).expert_ids.equal(router(torch.arange(30)).expert_ids)


def test_no_ids_and_masks() -> None:
    router = HashRouter(5, 30, 2)
    assert router(torch.arange(0)).gates.tolist() == []
    masked = router(torch.arange(4), torch.tensor([True, False, True, False]))
    assert masked.expert_ids.equal(router(torch.arange(4)).expert_ids)


def test_nothing_is_learned_and_one_graph_compiles() -> None:
    router, ids = HashRouter(5, 30, 2), torch.arange(7)
    assert list(router.parameters()) == []
    compiled = torch.compile(router, fullgraph=True, backend="aot_eager")
    assert compiled(ids).expert_ids.equal(router(ids).expert_ids)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="top_k must be between 1 and num_experts=4, got 5"):
        HashRouter(4, 10, 5)
    with pytest.raises(ValueError, match="num_experts must be at least 1, got 0"):
        HashRouter(0, 10)
    with pytest.raises(ValueError, match="vocab_size must be at least 1, got 0"):
        HashRouter(4, 0)
    with pytest.raises(ValueError, match=r"frequencies must have shape \(10,\), got \(9,\)"):
        HashRouter(4, 10, frequencies=torch.ones(9))
    with pytest.raises(ValueError, match=r"frequencies must be finite and at least 0, got values from -1.0 to 2.0"):
        HashRouter(4, 2, frequencies=torch.tensor([2.0, -1.0]))
    for value in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match=r"frequencies must be finite and at least 0, got values from .* to"):
            HashRouter(4, 2, frequencies=torch.tensor([1.0, value]))


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(3),
        torch.zeros(3, dtype=torch.bool),
        torch.zeros(3, dtype=torch.complex64),
        torch.zeros(3, 1, dtype=torch.int64),
    ],
)
def test_inputs_that_are_no_ids_are_refused(x: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"router_input must hold integer token ids, one per token, got torch\.\w+ of"):
        HashRouter(4, 10)(x)


def test_the_table_comes_back_after_building_on_the_meta_device() -> None:
    built = HashRouter(4, 30, 2, seed=5)
    router = HashRouter(4, 30, 2, seed=5, device="meta").to_empty(device="cpu")
    router.reset_parameters()
    assert torch.equal(router.table, built.table)


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float16, torch.float64])
def test_gates_probabilities_and_table_do_not_follow_the_default_dtype(default: torch.dtype) -> None:
    ids = torch.arange(30)
    expected = HashRouter(3, 30, 2, seed=1)
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        router = HashRouter(3, 30, 2, seed=1)
        routing = router(ids)
    finally:
        torch.set_default_dtype(before)
    assert routing.gates.dtype == routing.probs.dtype == torch.float32
    assert torch.equal(router.table, expected.table)
    assert torch.equal(routing.probs, expected(ids).probs)


@pytest.mark.parametrize(("name", "value"), [("num_experts", 5), ("top_k", 1), ("seed", 2), ("input_ndim", 1)])
def test_what_the_table_was_drawn_for_cannot_be_set_later(name: str, value: int) -> None:
    router = HashRouter(3, 30, 2, seed=1)
    with pytest.raises(AttributeError, match=f"{name}=. of HashRouter is fixed once it is built, got {value}: build"):
        setattr(router, name, value)
    assert getattr(router, name) != value


def learned(**options) -> HashRouter:
    torch.manual_seed(0)
    return HashRouter(6, 50, 2, dim=5, init_scale=4.0, dtype=torch.float64, **options)


@few
@given(
    scoring=st.sampled_from(["softmax", "sigmoid", "sqrt_softplus"]),
    renormalize=st.booleans(),
    tokens=st.integers(0, 12),
    seed=st.integers(0, 2**31),
)
def test_learned_gates_are_those_of_a_top_k_router_that_chose_the_same(scoring, renormalize, tokens, seed) -> None:
    options = {"scoring": scoring, "renormalize": renormalize, "scaling_factor": 1.5}
    router = learned(**options)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, 5, generator=generator, dtype=torch.float64)
    ids = torch.randint(200, (tokens,), generator=generator)
    routing = router(ids, tokens=x)
    assert torch.equal(routing.expert_ids, router.table[ids % 50])
    for token, chosen in enumerate(routing.expert_ids):
        # A bias on the chosen experts makes them the best.
        other = TopKRouter(5, 6, 2, selection_bias=True, gate=router.gate, **options)
        other.selection_bias[chosen] = 1e3
        expected = other(x[token : token + 1])
        order = chosen.argsort()
        assert torch.equal(chosen[order], expected.expert_ids[0].sort().values)
        assert_close(routing.gates[token][order], expected.gates[0][expected.expert_ids[0].argsort()])
        assert_close(routing.probs[token], expected.probs[0])
        assert_close(routing.logits[token], expected.logits[0])


def test_learned_gates_are_those_of_transformers_deepseek_v4() -> None:
    configuration = pytest.importorskip("transformers.models.deepseek_v4.configuration_deepseek_v4")
    modeling = pytest.importorskip("transformers.models.deepseek_v4.modeling_deepseek_v4")
    config = configuration.DeepseekV4Config(
        hidden_size=5, num_local_experts=6, num_experts_per_tok=2, routed_scaling_factor=1.5, vocab_size=50
    )
    x, ids = torch.randn(40, 5, dtype=torch.float64, requires_grad=True), torch.randint(50, (40,))
    weight = torch.randn(40, 2, dtype=torch.float64)
    options = {"scoring": "sqrt_softplus", "scaling_factor": 1.5}
    by_hash = learned(**options)
    theirs = modeling.DeepseekV4HashRouter(config).double()
    theirs.tid2eid.copy_(by_hash.table)
    by_score = TopKRouter(5, 6, 2, selection_bias=True, dtype=torch.float64, init_scale=4.0, **options)
    by_score.selection_bias.normal_(std=0.3)
    their_choice = modeling.DeepseekV4TopKRouter(config).double()
    their_choice.e_score_correction_bias.copy_(by_score.selection_bias)
    for mine, router, arguments in (
        (by_hash(ids, tokens=x), theirs, (x, ids)),
        (by_score(x), their_choice, (x,)),
    ):
        gate = by_hash.gate if router is theirs else by_score.gate
        router.weight = nn.Parameter(gate.layers[0].weight.detach().clone())
        logits, gates, chosen = router(*arguments)
        order, their_order = mine.expert_ids.argsort(-1), chosen.argsort(-1)
        assert torch.equal(mine.expert_ids.gather(1, order), chosen.gather(1, their_order))
        actual, expected = mine.gates.gather(1, order), gates.gather(1, their_order)
        assert_close(mine.logits, logits)
        assert_close(actual, expected)
        leaves = ((x, gate.layers[0].weight), (x, router.weight))
        for a, b in zip(
            torch.autograd.grad((actual * weight).sum(), leaves[0]),
            torch.autograd.grad((expected * weight).sum(), leaves[1]),
            strict=True,
        ):
            assert_close(a, b)


@pytest.mark.parametrize("mask", [None, torch.tensor([[True, True, False], [False, True, True]])])
def test_a_layer_hands_over_the_tokens_and_trains_the_gate(mask) -> None:
    layer = SparseMoE(learned(scoring="sqrt_softplus"), FFNExperts(5, 4, 6, dtype=torch.float64))
    x, ids = torch.randn(2, 3, 5, dtype=torch.float64), torch.randint(50, (2, 3))
    if mask is not None:
        x[~mask] = torch.nan
    output, stats = layer(x, router_input=ids, mask=mask)
    assert output.isfinite().all()
    routing = layer.router(
        ids.flatten(),
        tokens=torch.where(mask.view(2, 3, 1), x, 0).flatten(0, 1) if mask is not None else x.flatten(0, 1),
    )
    again = layer(x, routing=routing, mask=mask)
    assert_close(output, again.output)
    assert_close(stats.prob_sum, again.stats.prob_sum)
    assert stats.num_tokens == (6 if mask is None else 4)
    (output.square().sum() + stats.logsumexp_sq_sum).backward()
    assert layer.router.gate.layers[0].weight.grad.abs().sum() > 0
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_an_id_may_be_shared_by_tokens_whose_gates_differ() -> None:
    layer = SparseMoE(learned(), FFNExperts(5, 4, 6, dtype=torch.float64))
    x, ids = torch.randn(2, 3, 5, dtype=torch.float64), torch.tensor([7, 9])
    shared = layer.route(x, router_input=ids)
    each = layer.route(x, router_input=ids.view(2, 1).expand(2, 3))
    assert torch.equal(shared.expert_ids, each.expert_ids)
    assert torch.equal(shared.gates, each.gates)
    assert not torch.equal(shared.gates[0], shared.gates[1])


def test_learned_gates_compile_and_pass_a_checkpointed_layer() -> None:
    layer = SparseMoE(learned(scoring="sigmoid"), FFNExperts(5, 4, 6, dtype=torch.float64))
    x, ids = torch.randn(2, 3, 5, dtype=torch.float64), torch.randint(50, (2, 3))
    expected = layer(x, router_input=ids)
    for function in (
        torch.compile(layer, backend="aot_eager", fullgraph=True),
        lambda x, **options: checkpoint(layer, x, use_reentrant=False, **options),
    ):
        output, stats = function(x, router_input=ids)
        assert_close(output, expected.output)
        assert torch.equal(stats.tokens_per_expert, expected.stats.tokens_per_expert)


def test_tokens_that_are_not_finite_are_marked() -> None:
    x = torch.randn(4, 5, dtype=torch.float64)
    x[1, 2] = torch.nan
    routing = learned()(torch.arange(4), tokens=x)
    assert routing.valid.tolist() == [True, False, True, True]
    assert routing.gates.isnan().all(-1).tolist() == [False, True, False, False]
    assert routing.probs[1].eq(0).all()


def test_weights_of_the_gate_are_drawn_anew_and_the_settings_shown() -> None:
    router = learned(scoring="sigmoid")
    weight, table = router.gate.layers[0].weight.detach().clone(), router.table.clone()
    router.reset_parameters()
    assert not torch.equal(router.gate.layers[0].weight, weight)
    assert torch.equal(router.table, table)
    assert "top_k=2, scoring='sigmoid', renormalize=True, scaling_factor=1.0" in repr(router)
    router.scoring, router.renormalize = "sqrt_softplus", False
    x = torch.randn(3, 5, dtype=torch.float64)
    scores = nn.functional.softplus(router.gate(x)).sqrt()
    routing = router(torch.arange(3), tokens=x)
    assert_close(routing.gates, scores.gather(1, routing.expert_ids))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scoring": "sigmoid"}, "scoring, renormalize and scaling_factor describe learned gates: give dim"),
        ({"renormalize": True}, "scoring, renormalize and scaling_factor describe learned gates: give dim"),
        ({"scaling_factor": 2.0}, "scoring, renormalize and scaling_factor describe learned gates: give dim"),
        ({"gate_bias": True}, "gate, gate_hidden_dim and gate_bias describe learned gates: give dim"),
        ({"gate": nn.Identity()}, "gate, gate_hidden_dim and gate_bias describe learned gates: give dim"),
        ({"dim": 5, "gate": nn.Identity(), "gate_bias": True}, "gate_hidden_dim and gate_bias describe the built-in"),
        ({"dim": 5, "scoring": "tanh"}, "scoring must be one of 'softmax', .*, got 'tanh'"),
        ({"dim": 5, "top_k": 1, "renormalize": True}, "top_k=1 with renormalised gates makes every gate 1"),
        ({"dim": 5, "scoring": "topk_softmax", "renormalize": False}, "always renormalises: leave renormalize out"),
    ],
)
def test_options_of_learned_gates_that_contradict_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HashRouter(4, 50, **{"top_k": 2, **options})


def test_tokens_that_are_missing_or_of_other_ids_are_refused() -> None:
    x = torch.randn(4, 5, dtype=torch.float64)
    with pytest.raises(ValueError, match="tokens must be given to a hash router with learned gates"):
        learned()(torch.arange(4))
    with pytest.raises(ValueError, match=r"tokens must be 3, one for each id, got shape \(4, 5\)"):
        learned()(torch.arange(3), tokens=x)
    with pytest.raises(ValueError, match=r"must have a last dimension of 5, got shape \(4, 4\)"):
        learned()(torch.arange(4), tokens=x[:, :4])
    with pytest.raises(ValueError, match="tokens serve learned gates alone, got some for constant gates"):
        HashRouter(4, 50)(torch.arange(4), tokens=x)
    with pytest.raises(ValueError, match="router_input must be given: experts over samples and routers by id"):
        SparseMoE(learned(), FFNExperts(5, 4, 6))(x)
    samples = ModuleExperts([nn.Conv2d(3, 3, 1) for _ in range(6)], token_ndim=3)
    with pytest.raises(ValueError, match="router must read its router_input alone where experts are over samples"):
        SparseMoE(learned(), samples)(torch.randn(2, 3, 4, 4), router_input=torch.arange(2))
