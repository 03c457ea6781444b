"""What a layer refuses, and the messages."""

import pytest
import torch
from torch import nn

from moekit import ExpertChoiceRouter, FFNExperts, HashRouter, ModuleExperts, SoftMoE, SparseMoE, TopKRouter


@pytest.fixture
def moe():
    return SparseMoE.ffn(4, 6, 3, 2)


def test_parts_that_do_not_fit():
    with pytest.raises(ValueError, match="agree on the number of experts, got 3 and 4"):
        SparseMoE(TopKRouter(4, 3, 2), FFNExperts(4, 6, 4))
    with pytest.raises(ValueError, match="top_k must be between 1 and num_experts=3, got 4"):
        SparseMoE.ffn(4, 6, 3, 4)
    with pytest.raises(ValueError, match="top_k must be between 1 and num_experts=3, got 0"):
        SparseMoE.ffn(4, 6, 3, 0)
    with pytest.raises(ValueError, match="num_experts must be at least 1, got 0"):
        SparseMoE.ffn(4, 6, 0, 1)


@pytest.mark.parametrize("factor", [0, -1.5])
def test_capacity_out_of_range(factor):
    with pytest.raises(ValueError, match=f"capacity_factor must be positive, or None for no limit, got {factor}"):
        SparseMoE.ffn(4, 6, 3, 2, capacity_factor=factor)


def test_capacity_of_expert_choice():
    with pytest.raises(ValueError, match="capacity_factor of an expert-choice layer belongs to its router"):
        SparseMoE(ExpertChoiceRouter(4, 3), FFNExperts(4, 6, 3), capacity_factor=1.0)


def test_a_replayed_routing_of_expert_choice_under_a_capacity():
    x = torch.zeros(5, 4)
    routing = SparseMoE(ExpertChoiceRouter(4, 3), FFNExperts(4, 6, 3)).route(x)
    limited = SparseMoE.ffn(4, 6, 3, 2, capacity_factor=1.0)
    with pytest.raises(ValueError, match="capacity_factor of an expert-choice layer belongs to its router: set it"):
        limited(x, routing=routing)


def test_unknown_drop_policy():
    with pytest.raises(ValueError, match="drop_policy must be one of 'position', 'gate', got 'oldest'"):
        SparseMoE(TopKRouter(4, 3, 2), FFNExperts(4, 6, 3), drop_policy="oldest")


def test_inputs_that_do_not_fit(moe):
    with pytest.raises(ValueError, match=r"x must be of a floating dtype, got torch.int64"):
        moe(torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"x must have at least 1 dimensions, got shape \(\)"):
        moe(torch.zeros(()))
    with pytest.raises(ValueError, match=r"x unless given\) must have a last dimension of 4, got shape \(2, 5\)"):
        moe(torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"x must have a last dimension of 4, got shape \(2, 5\)"):
        moe(torch.zeros(2, 5), router_input=torch.zeros(2, 4))
    with pytest.raises(
        ValueError, match=r"x must have the dtype of the experts' weights, torch.float32, got .*float64"
    ):
        moe(torch.zeros(2, 4, dtype=torch.float64))
    with pytest.raises(
        ValueError,
        match=r"x unless given\) must be on the device of the router's weights, cpu, got meta",
    ):
        moe(torch.zeros(2, 4, device="meta"))


def test_masks_that_do_not_fit(moe):
    x = torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match=r"mask must be a bool tensor of shape \(2, 3\) .*got torch.float32 of shape"):
        moe(x, mask=torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"mask must be a bool tensor of shape \(2, 3\) .*bool of shape \(3,\)"):
        moe(x, mask=torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"mask must be a bool tensor of shape \(2, 3\)"):
        moe.route(x, mask=torch.ones(6, dtype=torch.bool))


def test_router_inputs_that_do_not_fit(moe):
    x = torch.zeros(2, 3, 4)
    with pytest.raises(
        ValueError, match=r"leading dimensions of x, \(2, 3\), or the first of them before its features"
    ):
        moe(x, router_input=torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"router_input must have the leading dimensions.*got shape \(2, 3, 1, 4\)"):
        moe(x, router_input=torch.zeros(2, 3, 1, 4))
    with pytest.raises(ValueError, match=r"router_input must have the leading dimensions.*got shape \(\)"):
        moe(x, router_input=torch.zeros(()))
    with pytest.raises(ValueError, match=r"x unless given\) must have a last dimension of 4, got shape \(2, 5\)"):
        moe(x, router_input=torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"x unless given\) must be of a floating dtype, got torch.int64"):
        moe(x, router_input=torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="router_input must be on the device of x, cpu, got meta"):
        moe(x, router_input=torch.zeros(2, 4, device="meta"))


def test_routers_by_id():
    moe = SparseMoE(HashRouter(3, vocab_size=9), FFNExperts(4, 6, 3))
    x = torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match=r"router_input must be given: .* routers by id cannot route on x itself"):
        moe(x)
    with pytest.raises(ValueError, match=r"or the first of them, got shape \(2, 2\)"):
        moe(x, router_input=torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"router_input must hold integer token ids, one per token, got torch.float32"):
        moe(x, router_input=torch.zeros(2, 3))


def test_experts_over_samples_need_a_router_input():
    moe = SparseMoE(TopKRouter(4, 2, 1), ModuleExperts([nn.Conv2d(3, 3, 1)] * 2, token_ndim=3))
    with pytest.raises(ValueError, match="router_input must be given: experts over samples"):
        moe(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match=r"x must have at least 3 dimensions, got shape \(8, 8\)"):
        moe(torch.zeros(8, 8))


def test_expert_choice_needs_a_row_per_token():
    moe = SparseMoE(ExpertChoiceRouter(4, 3), FFNExperts(4, 6, 3))
    with pytest.raises(ValueError, match=r"one row per token of x, \(2, 3\), for expert choice, got shape \(2, 4\)"):
        moe(torch.zeros(2, 3, 4), router_input=torch.zeros(2, 4))


def test_routings_that_do_not_fit(moe):
    x = torch.zeros(5, 4)
    routing = moe.route(x)
    with pytest.raises(ValueError, match="router_input and routing exclude each other"):
        moe(x, router_input=x, routing=routing)
    with pytest.raises(ValueError, match="routing must be for the 6 tokens of x, got 5 rows"):
        moe(torch.zeros(2, 3, 4), routing=routing, mask=torch.ones(2, 3, dtype=torch.bool))
    other = SparseMoE.ffn(4, 6, 5, 2)
    with pytest.raises(ValueError, match="plan must be for 3 experts, got one for 5"):
        moe.experts(x, other.plan(other.route(x)), routing.gates)


def test_a_routing_for_another_number_of_experts(moe):
    x = torch.zeros(5, 4)
    wide = SparseMoE.ffn(4, 6, 5, 2)
    with pytest.raises(ValueError, match="routing must be for the 3 experts of this layer, got one for 5: make"):
        moe(x, routing=wide.route(x))
    choice = SparseMoE(ExpertChoiceRouter(4, 5), FFNExperts(4, 6, 5)).route(x)
    with pytest.raises(ValueError, match="routing must be for the 3 experts of this layer, got one for 5"):
        moe.plan(choice)
    moe.router = TopKRouter(4, 5, 2)
    with pytest.raises(ValueError, match="routing must be for the 3 experts of this layer, got one for 5"):
        moe(x)


def test_what_is_no_routing_or_plan(moe):
    x = torch.zeros(5, 4)
    with pytest.raises(ValueError, match="routing must be a Routing, as route\\(\\) returns, got a MoEOutput"):
        moe(x, routing=moe(x))
    plan = moe.plan(moe.route(x))
    with pytest.raises(ValueError, match="plan must come with the routing that it was made from: give routing too"):
        moe(x, plan=plan)
    with pytest.raises(ValueError, match="x must have the plan's 5 tokens, got shape"):
        moe(x[:4], routing=moe.route(x[:4]), plan=plan)
    moe.router = nn.Linear(4, 3)
    with pytest.raises(ValueError, match="router must return a Routing, got a Tensor from Linear"):
        moe(x)


def test_parts_in_the_wrong_place(moe):
    router, experts = moe.router, moe.experts
    with pytest.raises(ValueError, match="router must be a Router, got experts, FFNExperts: the router comes first"):
        SparseMoE(experts, router)
    with pytest.raises(ValueError, match="experts must be Experts, got a router, TopKRouter: experts come second"):
        SparseMoE(router, router)
    with pytest.raises(ValueError, match="router must be a Router, got experts, FFNExperts"):
        moe.router = experts
    with pytest.raises(ValueError, match="experts must be Experts, got a router, TopKRouter"):
        moe.experts = router
    assert moe.router is router
    assert moe.experts is experts


def test_parts_of_the_wrong_type(moe):
    router, experts = moe.router, moe.experts
    with pytest.raises(ValueError, match=r"router must be an nn\.Module, got a str"):
        SparseMoE("top_k", experts)
    with pytest.raises(ValueError, match=r"experts must be an nn\.Module, got a list"):
        SparseMoE(router, [nn.Linear(4, 4)] * 3)
    with pytest.raises(ValueError, match=r"experts must be an nn\.Module, got a NoneType"):
        moe.experts = None
    with pytest.raises(ValueError, match=r"shared must be an nn\.Module, got a int"):
        SparseMoE(router, experts, shared=12)
    with pytest.raises(ValueError, match=r"router must have the attributes .*, as every moekit.Router has, got Linear"):
        SparseMoE(nn.Linear(4, 3), experts)
    wrapped = nn.Sequential(experts)
    with pytest.raises(
        ValueError,
        match=r"experts must have the attributes .*, got Sequential without num_experts, token_ndim, takes_pyramid. "
        r"Give the layer the part itself and wrap it then, as in layer.experts = wrap\(layer.experts\)",
    ):
        SparseMoE(router, wrapped)


def test_soft_moe():
    moe = SoftMoE(4, FFNExperts(4, 6, 3))
    with pytest.raises(ValueError, match=r"experts must take feature vectors \(token_ndim 1\), got token_ndim 3"):
        SoftMoE(4, ModuleExperts([nn.Conv2d(3, 3, 1)], token_ndim=3))
    with pytest.raises(ValueError, match="slots_per_expert must be at least 1, got 0"):
        SoftMoE(4, FFNExperts(4, 6, 3), slots_per_expert=0)
    with pytest.raises(ValueError, match=r"x must have shape \(..., S, D\), got shape \(4,\)"):
        moe(torch.zeros(4))
    with pytest.raises(ValueError, match=r"x must have a last dimension of 4, got shape \(2, 5\)"):
        moe(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="x must be of a floating dtype"):
        moe(torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"x must be on the device of the layer's parameters, cpu, got meta"):
        moe(torch.zeros(2, 4, device="meta"))
    with pytest.raises(ValueError, match=r"mask must be a bool tensor of shape \(2, 3\)"):
        moe(torch.zeros(2, 3, 4), mask=torch.ones(2, 3))


def test_a_mask_on_another_device():
    x = torch.randn(3, 4)
    with pytest.raises(ValueError, match="mask must be on the device of x, cpu, got meta"):
        SparseMoE.ffn(4, 6, 3, 2)(x, mask=torch.ones(3, dtype=torch.bool, device="meta"))
    with pytest.raises(ValueError, match="mask must be on the device of x, cpu, got meta"):
        SoftMoE(4, FFNExperts(4, 6, 3))(x, mask=torch.ones(3, dtype=torch.bool, device="meta"))
