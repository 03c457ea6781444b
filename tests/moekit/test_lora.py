"""Grouped LoRA of experts: what it computes, what it trains, and what it never makes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moekit import ExpertChoiceRouter, FFNExperts, HardRouter, SparseMoE
from moekit.lora import (
    add_lora_,
    lora_disabled,
    lora_parameters,
    merge_lora_,
    remove_lora_,
    unmerge_lora_,
)
from moekit.plan import plan_dispatch
from moekit_kernels.moe_ffn import loop
from tests.moekit.lora_models import (
    DIM,
    EXPERTS,
    HIDDEN,
    TOP_K,
    Block,
    largest_allocation,
    make,
    materialised,
    total_allocated,
    trained,
    trained_model,
)
from tests.oracles import relative_error


@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("activation", ["swiglu", "gelu", "clamped_swiglu_interleaved"])
@pytest.mark.parametrize("tokens", [0, 1, 7, 300])
def test_untrained_adapters_leave_the_output_bit_for_bit(impl, dtype, activation, tokens):
    model, x = make(dtype, impl, activation=activation), torch.randn(tokens, DIM, dtype=dtype)
    expected = model(x)
    add_lora_(model, rank=3)
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 3, 64])
@pytest.mark.parametrize("experts", [4, 64])
def test_many_experts_of_a_token_are_added_up_in_the_same_order(impl, dtype, tokens, experts):
    moe = SparseMoE.ffn(16, 32, experts, top_k=4, impl=impl, dtype=dtype)
    x = torch.randn(tokens, 16, dtype=dtype)
    expected = moe(x).output
    add_lora_(moe)
    assert torch.equal(moe(x).output, expected)


@pytest.mark.parametrize(("hidden", "bound"), [(32, 0.0), (5, 1e-6)])
def test_untrained_adapters_leave_the_output_of_many_rows(monkeypatch, hidden, bound):
    # The fused loop takes the activation of one expert's rows at a time; of odd widths, other numbers are then left
    # over from the vectors of the processor, whose exponential rounds otherwise than a single one.
    monkeypatch.setattr(loop, "_FEW_NUMBERS", 0)
    moe, x = SparseMoE.ffn(16, hidden, EXPERTS, TOP_K, bias=True), torch.randn(300, 16)
    expected = moe(x).output
    add_lora_(moe)
    assert relative_error(moe(x).output, expected) <= bound


@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize("products", [("up",), ("down",), ("up", "down")])
@pytest.mark.parametrize("activation", ["swiglu_interleaved", "relu", F.softplus])
def test_output_and_gradients_are_those_of_the_materialised_sum(impl, products, activation):
    model, x = make(torch.float64, impl, activation=activation), torch.randn(20, DIM, dtype=torch.float64)
    add_lora_(model, rank=3, alpha=5.0, products=products, freeze=False)
    trained(model)
    x1, x2 = x.clone().requires_grad_(), x.clone().requires_grad_()
    output, expected = model(x1), materialised(model)(x2)
    torch.testing.assert_close(output, expected)
    leaves = [*lora_parameters(model), model.moe.experts.up_proj, model.moe.experts.down_bias]
    weight = torch.randn_like(output)
    gradients = torch.autograd.grad((output * weight).sum(), [x1, *leaves])
    expected_gradients = torch.autograd.grad((expected * weight).sum(), [x2, *leaves])
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, other)


@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_gradients_of_adapters_pass_gradcheck(impl):
    model, x = (
        make(torch.float64, impl, activation="gelu"),
        torch.randn(5, DIM, dtype=torch.float64, requires_grad=True),
    )
    add_lora_(model, rank=2)
    trained(model)
    routing = model.moe.route(x.detach())
    names = [name for name, p in model.named_parameters() if p.requires_grad]

    def compute(x: Tensor, *adapters: Tensor) -> Tensor:
        return torch.func.functional_call(
            model.moe, dict(zip(names, adapters, strict=True)), (x,), {"routing": routing}
        )[0]

    names = [name.removeprefix("moe.") for name in names]
    assert torch.autograd.gradcheck(compute, (x, *lora_parameters(model)))


def test_experts_without_a_token_get_zero_gradients():
    model = make()
    add_lora_(model, rank=3)
    trained(model)
    plan = plan_dispatch(torch.tensor([[1], [3], [1]]), EXPERTS)
    output = model.moe.experts(torch.randn(3, DIM), plan, torch.ones(3, 1))
    output.sum().backward()
    for parameter in lora_parameters(model):
        assert parameter.grad[[0, 2]].eq(0).all()
        assert parameter.grad[[1, 3]].any()


@pytest.mark.parametrize(
    "router",
    [HardRouter(DIM, EXPERTS, gradient="straight_through"), ExpertChoiceRouter(DIM, EXPERTS, capacity_factor=1.0)],
)
def test_other_routers_and_capacity(router):
    torch.manual_seed(0)
    limit = None if isinstance(router, ExpertChoiceRouter) else 0.7
    moe = SparseMoE(router, FFNExperts(DIM, HIDDEN, EXPERTS), capacity_factor=limit)
    x = torch.randn(30, DIM)
    mask = torch.rand(30) > 0.2
    add_lora_(moe, rank=2)
    trained(moe)
    output = moe(x, mask=mask).output
    merge_lora_(moe)
    assert relative_error(moe(x, mask=mask).output, output) < 1e-5


def test_only_adapters_are_trained():
    model, x, target = make(), torch.randn(64, DIM), torch.randn(64, 3)
    add_lora_(model, rank=4)
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam(lora_parameters(model), lr=0.05)
    losses = []
    for _ in range(30):
        loss = F.mse_loss(model(x), target)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != (".lora." in name), name
        assert (parameter.grad is not None) == parameter.requires_grad == (".lora." in name), name


def test_without_freezing_all_stays_as_it_was():
    model = make()
    model.head.requires_grad_(False)
    expected = {name: p.requires_grad for name, p in model.named_parameters()}
    add_lora_(model, freeze=False)
    states = {name: p.requires_grad for name, p in model.named_parameters() if ".lora." not in name}
    assert states == expected


def test_a_second_call_adapts_other_layers_and_leaves_the_first():
    model = nn.ModuleList([make(), make()])
    first = add_lora_(model, "0.moe")
    second = add_lora_(model, "1.moe.experts", rank=2)
    assert (list(first), list(second)) == (["0.moe.experts"], ["1.moe.experts"])
    assert len(lora_parameters(model)) == 8
    assert all(p.requires_grad for p in lora_parameters(model))


@pytest.mark.parametrize("impl", ["torch", "reference"])
@pytest.mark.parametrize("tokens", [2, 40])
def test_frozen_experts_cost_no_gradient_memory(impl, tokens):
    experts, dim, hidden = 32, 32, 48
    size = experts * dim * hidden * 4  # one gradient of stacked weights; all rows of 40 tokens take less
    model = Block(SparseMoE.ffn(dim, hidden, experts, 1, activation="gelu", impl=impl))
    x = torch.randn(tokens, dim, requires_grad=True)
    assert largest_allocation(model, x) >= size
    model.moe.experts.requires_grad_(False)
    assert largest_allocation(model, x) < size / 8
    assert model.moe.experts.up_proj.grad is not None  # of the first call only
    for name in ("up_proj", "down_proj") if impl == "torch" else ():  # of one matrix: as much as that, not as both
        model.moe.experts.zero_grad()
        model.moe.experts.get_parameter(name).requires_grad_(True)
        assert total_allocated(model, x) < 1.5 * size
        assert model.moe.experts.get_parameter(name).grad is not None
        model.moe.experts.requires_grad_(False)
    add_lora_(model, rank=2)
    assert largest_allocation(model, x) < size / 8


def test_merged_equals_unmerged_and_the_way_back():
    model, x = make(torch.float64), torch.randn(40, DIM, dtype=torch.float64)  # in which merging rounds nothing away
    plain = copy.deepcopy(model)
    add_lora_(model, rank=3)
    trained(model)
    output = model(x)
    assert relative_error(plain(x), output) > 1e-2
    merge_lora_(model)
    merge_lora_(model)
    torch.testing.assert_close(model(x), output)
    unmerge_lora_(model)
    unmerge_lora_(model)
    torch.testing.assert_close(model(x), output)
    torch.testing.assert_close(model.moe.experts.up_proj, plain.moe.experts.up_proj)
    with lora_disabled(model):
        torch.testing.assert_close(model(x), plain(x))
    assert torch.equal(model(x), output) or relative_error(model(x), output) < 1e-14
    merge_lora_(model)
    remove_lora_(model)
    assert type(model.moe.experts) is FFNExperts
    assert model.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(model(x), output)


def test_dropout_is_of_training_only():
    model, x = trained_model(dropout=0.5), torch.randn(40, DIM)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
    model.train().moe.experts.lora.dropout = 0.0
    assert torch.equal(model(x), model(x))
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), got 1.0"):
        model.moe.experts.lora.dropout = 1.0


def test_adapters_of_their_own_dtype_and_autocast():
    model, x = make(torch.bfloat16), torch.randn(40, DIM, dtype=torch.bfloat16)
    add_lora_(model, rank=3, dtype=torch.float32)
    trained(model)
    assert {p.dtype for p in lora_parameters(model)} == {torch.float32}
    output = model(x)
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.any() for p in lora_parameters(model))
    wide = trained_model()
    rows = torch.randn(40, DIM)
    with torch.autocast("cpu", torch.bfloat16):
        low = wide(rows)
    assert low.dtype == torch.bfloat16
    assert 0 < relative_error(low.float(), wide(rows)) < 0.05


def test_random_numbers_are_those_of_the_generator():
    first, second = make(), make()
    add_lora_(first, generator=torch.Generator().manual_seed(5))
    add_lora_(second, generator=torch.Generator().manual_seed(5))
    assert torch.equal(first.moe.experts.lora.up_a, second.moe.experts.lora.up_a)
    assert first.moe.experts.lora.up_a.abs().max() <= DIM**-0.5
