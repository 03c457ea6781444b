"""Gates that multiply what experts get: each slot is computed as the formula says, with every option of the layer."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from moekit import ExpertChoiceRouter, FFNExperts, ModuleExperts, SparseMoE, TopKRouter
from tests.strategies import few

IMPLS = ["reference", "torch"]


def layer(impl: str = "auto", top_k: int = 2, activation: str = "swiglu", **options) -> SparseMoE:
    torch.manual_seed(0)
    router = TopKRouter(6, 5, top_k, scoring="sigmoid", renormalize=False, impl=impl)
    return SparseMoE(router, FFNExperts(6, 8, 5, activation=activation, impl=impl), gates_on="inputs", **options)


def by_hand(moe: SparseMoE, x: Tensor, kept: Tensor | None = None) -> Tensor:
    """Token by token, slot by slot."""
    routing = moe.router(x)
    rows = []
    for t, token in enumerate(x):
        total = torch.zeros_like(token)
        for k, expert in enumerate(routing.expert_ids[t].tolist()):
            if kept is None or kept[t, k]:
                pre = (token * routing.gates[t, k]) @ moe.experts.up_proj[expert].T
                gate, value = pre.chunk(2)
                total = total + (nn.functional.silu(gate) * value) @ moe.experts.down_proj[expert].T
        rows.append(total)
    return torch.stack(rows)


@few
@given(tokens=st.integers(1, 9), top_k=st.integers(1, 3), impl=st.sampled_from(IMPLS))
def test_output_and_all_gradients_are_those_of_the_formula(tokens: int, top_k: int, impl: str) -> None:
    moe, x = layer(impl, top_k).double(), torch.randn(tokens, 6, dtype=torch.float64, requires_grad=True)
    leaves = [x, *moe.parameters()]
    results = [
        (y, *torch.autograd.grad(y.square().sum(), leaves, allow_unused=True)) for y in (moe(x).output, by_hand(moe, x))
    ]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("impl", IMPLS)
def test_it_is_another_function_than_gates_on_outputs_but_for_gates_of_one(impl: str) -> None:
    moe, x = layer(impl), torch.randn(7, 6)
    on_inputs = moe(x).output
    moe.gates_on = "outputs"
    assert not torch.allclose(moe(x).output, on_inputs, atol=1e-3)
    routing = moe.route(x)
    ones = routing._replace(gates=torch.ones_like(routing.gates), sums=None)
    outputs = moe(x, routing=ones).output
    moe.gates_on = "inputs"
    torch.testing.assert_close(moe(x, routing=ones).output, outputs)


@pytest.mark.parametrize("impl", IMPLS)
def test_dropped_slots_and_masked_tokens_contribute_nothing(impl: str) -> None:
    moe, x = layer(impl, capacity_factor=0.5), torch.randn(12, 6)
    routing = moe.route(x)
    plan = moe.plan(routing)
    assert int(plan.dropped_per_expert.sum()) > 0
    kept = (plan.row_of_slot < plan.offsets[-1]).view(routing.gates.shape)
    torch.testing.assert_close(moe(x).output, by_hand(moe, x, kept))
    moe.capacity_factor = None
    mask = torch.tensor([True, False] * 6)
    padded = torch.where(mask[:, None], x, torch.nan)
    output, stats = moe(padded, mask=mask)
    torch.testing.assert_close(output[mask], by_hand(moe, x[mask]))
    assert output[~mask].eq(0).all()
    assert int(stats.num_tokens) == 6


@pytest.mark.parametrize("impl", IMPLS)
def test_a_token_that_is_not_finite_shows_and_reaches_no_other(impl: str) -> None:
    moe, x = layer(impl), torch.randn(6, 6)
    x[2, 3] = torch.nan
    x.requires_grad_()
    output = moe(x).output
    assert output[2].isnan().all()
    rest = torch.tensor([0, 1, 3, 4, 5])
    torch.testing.assert_close(output[rest], by_hand(moe, x.detach()[rest]))
    of_tokens, *of_experts = torch.autograd.grad(output[rest].sum(), [x, *moe.experts.parameters()])
    assert of_tokens[rest].isfinite().all()
    for gradient in of_experts:
        assert gradient.isfinite().all()


def test_half_precision_keeps_its_dtype_and_a_shared_expert_is_added() -> None:
    moe = layer(shared=nn.Linear(6, 6)).bfloat16()
    x = torch.randn(2, 5, 6, dtype=torch.bfloat16)
    output = moe(x).output
    assert output.shape == x.shape
    assert output.dtype == torch.bfloat16
    shared = moe.shared(x)
    moe.shared = None
    torch.testing.assert_close(output, moe(x).output + shared)


def test_experts_of_any_module_and_over_samples() -> None:
    torch.manual_seed(0)
    experts = ModuleExperts([nn.Conv1d(3, 3, 1, bias=False) for _ in range(4)], token_ndim=2)
    moe = SparseMoE(TopKRouter(5, 4, 2, renormalize=False), experts, gates_on="inputs")
    x, context = torch.randn(6, 3, 7), torch.randn(6, 5)
    output = moe(x, router_input=context).output
    moe.gates_on = "outputs"  # of linear experts it is the same
    torch.testing.assert_close(output, moe(x, router_input=context).output)


def test_compiled_it_is_the_same() -> None:
    moe, x = layer("torch"), torch.randn(9, 6)
    compiled = torch.compile(moe, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x).output, moe(x).output)


def test_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="gates_on must be one of"):
        layer().gates_on = "weights"
    experts = FFNExperts(6, 8, 5)
    with pytest.raises(ValueError, match="needs a router that chooses experts for tokens, got expert choice"):
        SparseMoE(ExpertChoiceRouter(6, 5), experts, gates_on="inputs")
    assert "gates_on='inputs'" in repr(layer())
