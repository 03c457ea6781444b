"""Pruning, merging and the way back to dense: what stays the same, what is averaged, what is refused."""

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from moekit import (
    ExpertChoiceRouter,
    FFNExperts,
    HardRouter,
    HashRouter,
    ModuleExperts,
    SparseMoE,
    TopKRouter,
    load_balancing_loss,
)
from moekit.inspect import record_routing
from moekit.interop import (
    DropUpcycling,
    MergedRouter,
    collect_stats,
    merge_experts_,
    prune_experts_,
    to_dense_,
    upcycle_,
)
from tests.moekit.interop.mlps import DIM, KINDS, Gated, Model, Plain, sequential, tokens

FOUR = {"num_experts": 4, "top_k": 2}
LAYERS = ["blocks.0.mlp", "blocks.1.mlp"]


def layer_of(router: nn.Module | None = None, num_experts: int = 6, **options) -> nn.ModuleDict:
    router = TopKRouter(DIM, num_experts, 2, init_scale=1.0) if router is None else router
    experts = FFNExperts(DIM, 5, num_experts, bias=True, init_scale=1.0)
    nn.init.normal_(experts.down_bias)
    return nn.ModuleDict({"moe": SparseMoE(router, experts, **options)})


def differing(model: nn.Module) -> nn.Module:
    """Makes experts and routers differ, as training does."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".moe." in name:
                weight.add_(0.3 * torch.randn_like(weight))
    return model


# Pruning.


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


# Merging.


@settings(max_examples=30)
@given(
    groups=st.lists(st.integers(0, 3), min_size=6, max_size=6),
    top_k=st.integers(1, 4),
    granularity=st.sampled_from([1, 2]),
    scoring=st.sampled_from(["softmax", "sigmoid", "topk_softmax"]),
    seed=st.integers(0, 99),
)
def test_merging_experts_that_are_alike_changes_nothing(
    groups: list[int], top_k: int, granularity: int, scoring: str, seed: int
) -> None:
    torch.manual_seed(seed)
    model = Model(depth=1)
    top_k = top_k if granularity == 1 else 2 * -(-top_k // 2)
    upcycle_(model, "**.mlp", num_experts=6, top_k=top_k, granularity=granularity, router_init_scale=1.0)
    if top_k > 1:
        model.blocks[0]["mlp"].moe.router.scoring = scoring
    x = tokens()
    before = model(x)
    # Only copies of one part are merged.
    keys = [(group, expert % granularity) for expert, group in enumerate(groups)]
    into = [[e for e in range(6) if keys[e] == key] for key in sorted(set(keys))]
    result = merge_experts_(model, into={"blocks.0.mlp": into})
    assert result == {"blocks.0.mlp": into}
    assert torch.allclose(model(x), before, atol=1e-5)
    routing = model.blocks[0]["mlp"].moe.route(x)
    assert routing.expert_ids.shape[1] == min(top_k, len(into))
    assert all(len(set(row)) == len(row) for row in routing.expert_ids.tolist())
    assert routing.probs.sum(-1).allclose(torch.ones(15))
    assert (routing.probs.log() - routing.logits.log_softmax(-1)).abs().max() < 1e-4 or scoring == "sigmoid"


def test_weights_are_averaged_by_load_and_the_most_used_are_centres() -> None:
    model = layer_of(num_experts=4)
    experts = model["moe"].experts
    with torch.no_grad():
        for weight in experts.parameters():
            weight.copy_(
                torch.randn_like(weight[:1]) + torch.tensor([0, 9.0, 1, 10]).view(-1, *[1] * (weight.ndim - 1))
            )
    before = copy.deepcopy(experts)
    groups = merge_experts_(model, into=2, usage={"moe": [3.0, 1.0, 0.0, 7.0]})
    assert groups == {"moe": [[0, 2], [1, 3]]}
    merged = model["moe"].experts
    for name, weight in merged.named_parameters():
        old = getattr(before, name)
        assert torch.allclose(weight[0], old[0], atol=1e-5), name
        assert torch.allclose(weight[1], old[1] / 8 + old[3] * 7 / 8, atol=1e-5), name


def test_experts_of_different_parts_are_never_merged_however_near() -> None:
    model = nn.Sequential(sequential())
    experts = upcycle_(model, "0", **FOUR, granularity=2)["0"].moe.experts
    with torch.no_grad():
        for weight in experts.parameters():
            weight[2] = weight[1]
    assert merge_experts_(model, into=2, usage={"0": [2, 2, 1, 1]}) == {"0": [[0, 2], [1, 3]]}


def test_without_usage_or_load_weights_are_averaged_alike() -> None:
    for usage in (None, {"moe": [0, 0, 5.0, 5.0]}):
        model = layer_of(num_experts=4)
        old = model["moe"].experts.up_proj.detach().clone()
        merge_experts_(model, into={"moe": [[0, 1], [3], [2]]}, usage=usage)
        expected = torch.stack([old[:2].mean(0), old[3], old[2]])
        assert torch.allclose(model["moe"].experts.up_proj, expected, atol=1e-6)


def test_statistics_of_merged_experts_and_their_gradients() -> None:
    model, x = layer_of(), tokens()
    before = model["moe"](x).stats
    merge_experts_(model, into={"moe": [[0, 5], [1], [2, 3, 4]]})
    output, stats = model["moe"](x)
    for mine, its in (
        (stats.prob_sum, before.prob_sum),
        (stats.gate_sum, before.gate_sum),
    ):
        assert torch.allclose(mine, torch.stack([its[[0, 5]].sum(), its[1], its[[2, 3, 4]].sum()]), atol=1e-5)
    assert torch.allclose(stats.logsumexp_sq_sum, before.logsumexp_sq_sum, rtol=1e-5)
    assert stats.tokens_per_expert.sum() == 2 * 15
    (output.sum() + load_balancing_loss(stats)).backward()
    assert all(each.grad.isfinite().all() and each.grad.abs().sum() > 0 for each in model.parameters())
    with record_routing(model) as record:
        model["moe"](x)
    assert record.layers["moe"].load.sum() == 30


def test_a_router_that_returned_no_logits_returns_them_for_the_groups() -> None:
    model, x = layer_of(TopKRouter(DIM, 6, 2, return_logits=False)), tokens()
    before = model["moe"](x).stats
    merge_experts_(model, into={"moe": [[0, 5], [1], [2, 3, 4]]})
    stats = model["moe"](x).stats
    assert torch.allclose(stats.prob_sum[0], before.prob_sum[[0, 5]].sum(), atol=1e-5)


def test_tokens_that_are_not_finite_keep_to_themselves_and_huge_logits_have_finite_gradients() -> None:
    model, x = layer_of(), 300 * tokens(8)
    merge_experts_(model, into={"moe": [[0, 1], [5], [2, 3, 4]]})
    x[2] = torch.nan
    output, stats = model["moe"](x)
    assert model["moe"].route(x).gates.isnan().all(-1).nonzero().tolist() == [[2]]
    assert output.isnan().any(-1).nonzero().tolist() == [[2]]
    assert stats.nonfinite_tokens == 1
    x[2] = 0.0
    output, stats = model["moe"](x)
    (output.sum() + stats.logsumexp_sq_sum).backward()
    assert all(each.grad.isfinite().all() for each in model["moe"].router.parameters())


def test_merged_layers_compile_and_take_masks() -> None:
    model, x, mask = layer_of(), tokens(), torch.rand(3, 5) > 0.3
    merge_experts_(model, into={"moe": [[0, 5], [1], [2, 3, 4]]})
    moe = model["moe"]
    output, stats = moe(x, mask=mask)
    assert stats.num_tokens == mask.sum()
    assert (output[~mask] == 0).all()
    compiled = torch.compile(moe, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(x).output, moe(x).output, atol=1e-6)


def test_merged_layers_can_be_pruned_and_merged_again() -> None:
    model, x = layer_of(), tokens(40)
    merge_experts_(model, into={"moe": [[0, 5], [1], [2, 4], [3]]})
    twin = copy.deepcopy(model)
    prune_experts_(model, keep={"moe": [0, 1, 3]})
    router = model["moe"].router
    assert router.group_of_expert.tolist() == [0, 1, 2, 0]
    ids = twin["moe"].route(x).expert_ids
    stays = (ids != 2).all(-1)
    assert stays.any()
    assert torch.allclose(model["moe"](x).output[stays], twin["moe"](x).output[stays], atol=1e-5)
    merge_experts_(model, into={"moe": [[0, 1, 2]]})
    assert model["moe"].route(x).gates.allclose(torch.ones(40, 1))


def test_a_merged_model_loads() -> None:
    model, other = (nn.Sequential(sequential()) for _ in range(2))
    for each in (model, other):
        upcycle_(each, "0", **FOUR)
    groups = merge_experts_(differing(model), into=2, usage={"0": [1, 2, 3, 4]})
    merge_experts_(other, into=groups)
    other.load_state_dict(model.state_dict())
    x = tokens()
    assert torch.equal(other(x), model(x))


# Back to dense.


@pytest.mark.parametrize("granularity", [1, 2])
@pytest.mark.parametrize("kind", [each for each in KINDS if "square" not in each and "wide" not in each])
def test_copies_give_the_mlp_back(kind: str, granularity: int) -> None:
    model = nn.Sequential(KINDS[kind]()).train()
    for name, weight in model.named_parameters():
        weight.requires_grad_("down" not in name and "last" not in name)
    before = copy.deepcopy(model)
    upcycle_(model, "0", **FOUR, granularity=granularity)
    assert list(to_dense_(model)) == ["0"]
    assert repr(model) == repr(before)
    assert list(model.state_dict()) == list(before.state_dict())
    for (name, mine), its in zip(model.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(mine, its), name
        assert mine.requires_grad == its.requires_grad, name
    assert all(module.training for module in model.modules())
    x = tokens()
    assert torch.equal(model.eval()(x), before.eval()(x))


def test_the_mode_is_that_of_the_layer() -> None:
    model = nn.Sequential(sequential()).eval()
    upcycle_(model, "0", **FOUR)
    model.train()
    to_dense_(model)
    assert all(module.training for module in model.modules())


def test_weights_of_each_part_are_averaged() -> None:
    model = nn.Sequential(Plain())
    layer = upcycle_(model, "0", num_experts=4, top_k=2, granularity=2, method=DropUpcycling(0.5))["0"]
    up, down_bias = layer.moe.experts.up_proj.detach(), layer.moe.experts.down_bias.detach()
    mlp = to_dense_(model, usage={"0": [1.0, 1.0, 3.0, 0.0]})["0"]
    assert mlp is model[0]
    assert isinstance(mlp, Plain)
    assert torch.allclose(mlp.first.weight, torch.cat([up[0] / 4 + up[2] * 3 / 4, up[1]]), atol=1e-6)
    assert torch.allclose(mlp.last.bias, down_bias[0] / 4 + down_bias[2] * 3 / 4 + down_bias[1], atol=1e-6)


def test_merged_and_pruned_layers_become_dense() -> None:
    model = Model(Gated)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    upcycle_(model, "blocks.*.mlp", num_experts=8, top_k=4, granularity=2)
    usage = dict.fromkeys(LAYERS, range(8, 0, -1))
    prune_experts_(model, keep=6, usage=usage)
    merge_experts_(model, into=2, usage=dict.fromkeys(usage, range(6)))
    to_dense_(model)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


# Errors.

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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"into": 0, "usage": {"0": [1.0] * 4}}, "into must be from 1 to the 4 experts of layer '0'.*got 0"),
        ({"into": 3, "usage": {"0": [1.0] * 4}}, "layer '0', a multiple of its 2 parts, got 3"),
        ({"into": 2}, "usage must be given with into=2"),
        ({"into": {"0": [[0, 2], [1]]}}, r"into of layer '0' must hold each of its 4 experts in one group, got"),
        ({"into": {"0": [[0, 2], [1, 3], []]}}, r"into of layer '0' must hold each of its 4 experts in one group, got"),
        ({"into": {"0": [[0, 1], [2, 3]]}}, r"must not merge different parts of the MLP, got \[0, 1\]"),
    ],
)
def test_errors_of_merging(options: dict, message: str) -> None:
    model = nn.Sequential(sequential())
    upcycle_(model, "0", **FOUR, granularity=2)
    with pytest.raises(ValueError, match=message):
        merge_experts_(model, **options)


def test_modules_as_experts_have_no_average() -> None:
    model = nn.ModuleDict({"moe": SparseMoE(TopKRouter(DIM, 2, 2), ModuleExperts([nn.Identity(), nn.Identity()]))})
    with pytest.raises(
        ValueError, match="'moe' has experts of class ModuleExperts, not FFNExperts, which cannot be av"
    ):
        merge_experts_(model, into={"moe": [[0, 1]]})


def test_errors_of_to_dense() -> None:
    with pytest.raises(ValueError, match="model must hold sparse layers, got a Linear without any"):
        to_dense_(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="'moe' is no layer that upcycle_ made, whose place is that of an MLP"):
        to_dense_(layer_of())
    model = nn.Sequential(sequential())
    moe = upcycle_(model, "0", **FOUR, granularity=2)["0"].moe
    prune_experts_(model, keep={"0": [0, 2]})
    with pytest.raises(ValueError, match=r"'0' has no expert of parts \[1\] of the MLP any more"):
        to_dense_(model)
    moe.router.scaling_factor = 1.0
    with pytest.raises(ValueError, match="'0' has a router whose gates do not sum to 2"):
        to_dense_(model)
    moe.shared = nn.Identity()
    with pytest.raises(ValueError, match="'0' has other experts than FFNExperts, or a shared one"):
        to_dense_(model)


def test_errors_of_merged_routers() -> None:
    router = TopKRouter(DIM, 3, 2)
    for groups in ([0, 1], [0, 2, 2], [1, 1, 1]):
        with pytest.raises(
            ValueError, match="group_of_expert must give each of the 3 experts a group, numbered from 0"
        ):
            MergedRouter(router, groups)
    with pytest.raises(ValueError, match="router must choose experts for each token, got a ExpertChoiceRouter"):
        MergedRouter(ExpertChoiceRouter(DIM, 3), [0, 0, 1])
    silent = MergedRouter(TopKRouter(DIM, 3, 2, return_logits=False), [0, 0, 1])
    with pytest.raises(ValueError, match="router must return probabilities, got a routing without"):
        silent(tokens(4))
