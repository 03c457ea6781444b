"""Merging: what stays the same, what is averaged, what is refused."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from moekit import (
    ExpertChoiceRouter,
    ModuleExperts,
    SparseMoE,
    TopKRouter,
    load_balancing_loss,
)
from moekit.inspect import record_routing
from moekit.interop import (
    MergedRouter,
    merge_experts_,
    prune_experts_,
    upcycle_,
)
from tests.moekit.interop.mlps import DIM, Model, sequential, tokens
from tests.moekit.interop.sparse_models import FOUR, differing, layer_of


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
