"""Pruning: tokens whose experts stay, which experts stay, and what is refused."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from moekit import (
    ExpertChoiceRouter,
    HardRouter,
    HashRouter,
    ModuleExperts,
    SparseMoE,
    TopKRouter,
)
from moekit.inspect import record_routing
from moekit.interop import (
    collect_stats,
    merge_experts_,
    prune_experts_,
    upcycle_,
)
from tests.moekit.interop.mlps import DIM, Gated, Model, tokens
from tests.moekit.interop.sparse_models import LAYERS, differing, layer_of


@settings(max_examples=30)
@given(keep=st.integers(2, 6), top_k=st.integers(1, 2), bias=st.booleans(), seed=st.integers(0, 99))
def test_tokens_whose_experts_all_stay_keep_their_output(keep: int, top_k: int, bias: bool, seed: int) -> None:
    torch.manual_seed(seed)
    if top_k == 1:
        router = HardRouter(DIM, 6, gradient="straight_through", init_scale=1.0)
    else:
        # A bias of selection is added to scores that do not grow as experts leave.
        options = {"scoring": "sigmoid", "selection_bias": True, "gate_bias": True} if bias else {}
        router = TopKRouter(DIM, 6, top_k, init_scale=1.0, gate_hidden_dim=4, **options)
    model, x = layer_of(router), tokens(60)
    if bias and top_k == 2:
        router.selection_bias.normal_(std=0.1)
    output, ids = model["moe"](x).output, model["moe"].route(x).expert_ids
    load = ids.flatten().bincount(minlength=6)
    (kept,) = prune_experts_(model, keep=keep, usage={"moe": load}).values()
    assert kept == sorted(kept)
    left_out = sorted(set(range(6)) - set(kept))
    assert len(kept) == keep
    assert not left_out or load[kept].min() >= load[left_out].max()
    stays = torch.isin(ids, torch.tensor(kept)).all(-1)
    assert torch.allclose(model["moe"](x).output[stays], output[stays], atol=1e-5)
    assert torch.isin(torch.tensor(kept)[model["moe"].route(x).expert_ids[stays]], ids[stays]).all()


@pytest.mark.parametrize("form", ["record", "loads", "a list", "statistics"])
def test_usage_is_read_of_records_loads_and_statistics(form: str) -> None:
    model = differing(Model())
    upcycle_(model, "blocks.*.mlp", num_experts=6, top_k=2, router_init_scale=1.0)
    x = tokens(40)
    with record_routing(model) as record, collect_stats(model) as stats:
        model(x)
    loads = {name: each.tokens_per_expert for name, each in stats.items()}
    usage = {
        "record": record,
        "loads": {name.removesuffix(".moe"): load for name, load in loads.items()},
        "a list": {name: load.tolist() for name, load in loads.items()},
        "statistics": stats,
    }[form]
    kept = prune_experts_(model, "blocks.*.mlp", keep=3, usage=usage)
    for name, ids in kept.items():
        expected = sorted(sorted(range(6), key=lambda each: -loads[f"{name}.moe"][each])[:3])
        assert ids == expected
    assert all(block["mlp"].moe.experts.num_experts == 3 for block in model.blocks)
    assert [each.shape[0] for each in model.blocks[0]["mlp"].moe.parameters()] == [3] * 5
    model(x).sum().backward()


def test_as_many_of_each_part_stay_and_a_pruned_model_loads() -> None:
    def make() -> Model:
        model = Model(Gated)
        upcycle_(model, "blocks.*.mlp", num_experts=8, top_k=2, granularity=2)
        return model

    model, other = differing(make()), make()
    load = [9, 0, 8, 1, 7, 2, 6, 3]  # all copies of part 0 are used more than any of part 1
    kept = prune_experts_(model, keep=4, usage=dict.fromkeys(LAYERS, load))
    assert kept == {name: [0, 2, 5, 7] for name in LAYERS}
    assert model.blocks[0]["mlp"].shard_of_expert == (0, 0, 1, 1)
    prune_experts_(other, keep=kept)
    other.load_state_dict(model.state_dict())
    x = tokens()
    assert torch.equal(other(x), model(x))


def test_settings_and_what_is_trained_stay() -> None:
    router = TopKRouter(
        DIM,
        6,
        2,
        scoring="sigmoid",
        renormalize=True,
        scaling_factor=3.0,
        jitter=0.1,
        return_logits=False,
        impl="torch",
    )
    model = layer_of(router, capacity_factor=2.0, impl="torch")
    model["moe"].experts.up_proj.requires_grad_(False)
    model.eval()
    prune_experts_(model, "moe", keep={"moe": [4, 1]})
    small = model["moe"].router
    for name in ("scoring", "renormalize", "scaling_factor", "jitter", "return_logits", "impl", "top_k"):
        assert getattr(small, name) == getattr(router, name), name
    assert torch.equal(small.gate.layers[0].weight, router.gate.layers[0].weight[[4, 1]])
    assert model["moe"].capacity_factor == 2.0
    assert not model["moe"].experts.up_proj.requires_grad
    assert model["moe"].experts.down_proj.requires_grad
    assert not any(module.training for module in model.modules())


def test_experts_that_are_modules_are_left_out() -> None:
    experts = [nn.Linear(DIM, DIM) for _ in range(4)]
    moe = SparseMoE(TopKRouter(DIM, 4, 2), ModuleExperts(experts))
    prune_experts_(nn.ModuleDict({"moe": moe}), keep={"moe": [0, 3]})
    assert list(moe.experts.experts) == [experts[0], experts[3]]
    assert moe(tokens()).output.shape == (3, 5, DIM)
    alone = SparseMoE(TopKRouter(DIM, 4, 2), ModuleExperts(experts))
    with record_routing(alone) as record:
        alone(tokens())
    assert list(prune_experts_(alone, keep=2, usage=record)) == [""]


BAD_PARTS: list[tuple[Callable[[], nn.Module], str]] = [
    (lambda: layer_of(HashRouter(6, 10)), "has a router of class HashRouter, not TopKRouter or HardRouter"),
    (lambda: layer_of(ExpertChoiceRouter(DIM, 6)), "has a router of class ExpertChoiceRouter"),
    (lambda: layer_of(TopKRouter(DIM, 6, 2, noisy=True)), "has a router with noisy=True or num_groups"),
    (
        lambda: layer_of(TopKRouter(DIM, 6, 2, num_groups=3, topk_groups=1)),
        "has a router with noisy=True or num_groups",
    ),
    (lambda: layer_of(TopKRouter(DIM, 6, 2, gate=nn.Linear(DIM, 6))), "has a gate of its own or a wrapped one, Linear"),
]


@pytest.mark.parametrize(("make", "message"), BAD_PARTS)
def test_parts_that_are_not_understood_are_refused_and_nothing_changes(
    make: Callable[[], nn.Module], message: str
) -> None:
    model = nn.ModuleDict({"a": layer_of(), "b": make()})
    before = [(moe.router, moe.experts) for moe in (model["a"]["moe"], model["b"]["moe"])]
    usage = {"a.moe": [1.0] * 6, "b.moe": [1.0] * 6}
    for change in (
        lambda: prune_experts_(model, keep=3, usage=usage),
        lambda: merge_experts_(model, into=3, usage=usage),
    ):
        with pytest.raises(ValueError, match=f"'b.moe' {message}.*Nothing was changed"):
            change()
    assert [(moe.router, moe.experts) for moe in (model["a"]["moe"], model["b"]["moe"])] == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 7, "usage": {"moe": [1.0] * 6}}, "keep must be from 1 to the 6 experts of layer 'moe', got 7"),
        ({"keep": 1, "usage": {"moe": [1.0] * 6}}, "keep must be at least the top_k=2 of layer 'moe', got 1"),
        ({"keep": 3}, "usage must be given with keep=3"),
        ({"keep": 3, "usage": {"mo": [1.0] * 6}}, "usage must tell the load of layer 'moe', got that of 'mo'"),
        ({"keep": 3, "usage": {"moe": [1.0] * 5}}, r"usage of layer 'moe' must be 6 numbers of at least 0.*got \[1.0"),
        ({"keep": 3, "usage": {"moe": [-1.0] * 6}}, r"usage of layer 'moe' must be 6 numbers of at least 0"),
        ({"keep": 3, "usage": 5}, "usage must be a record of moekit.inspect, or loads by layer, got a int"),
        ({"keep": {"moe": [0, 0, 1]}}, r"keep of layer 'moe' must be different ids of its 6 experts, got \[0, 0, 1\]"),
        ({"keep": {"moe": [0, 6]}}, r"keep of layer 'moe' must be different ids of its 6 experts, got \[0, 6\]"),
        ({"keep": {}}, "keep must have an entry for layer 'moe'"),
        ({"keep": 3, "where": "mo"}, "'mo', which matches none of ModuleDict. Near names: 'moe'"),
        (
            {"keep": 3, "where": "moe.router"},
            "where must match layers that upcycle_ made, or SparseMoE, got 'moe.router'",
        ),
    ],
)
def test_errors_of_pruning(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prune_experts_(layer_of(), **options)
