"""The Triton kernels of the expert FFN, held to the float64 reference of the same operands."""

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from moekit_kernels import configs
from moekit_kernels.moe_ffn import launches_few_rows
from moekit_kernels.moe_ffn.checks import RECOMPUTE
from moekit_kernels.plan import plan_dispatch, plan_expert_choice
from tests.oracles import NAIVE_ACTIVATIONS, poisoned_empty
from tests.strategies import Routed, ffn_case
from tests.triton.moe_ffn_cases import IDS, KEPT, cases, check, operands_of, small_case
from tests.triton.tolerances import assert_near

# Interpreted, one example takes about a second.
fewer = hypothesis_settings(max_examples=15, deadline=None, derandomize=True, database=None)


@pytest.fixture(params=["few rows", "tiles"])
def path(request, monkeypatch) -> str:
    """Both ways, forward and backward: small cases alone would all take the one for few rows."""
    if request.param == "tiles":
        monkeypatch.setattr(launches_few_rows, "MOST_ROWS", -1)
    return request.param


def test_output_and_all_gradients_are_the_reference(path, device):
    # Within the test, because hypothesis wants no fixture that is made anew for each example.
    @fewer
    @given(cases(), st.sampled_from(RECOMPUTE), st.booleans())
    def law(case, recompute, with_row):
        tensors = operands_of(case, torch.float32, device)
        check(
            tensors if with_row else tensors._replace(plan=tensors.plan._replace(row_of_slot=None)), recompute=recompute
        )

    law()


# Gate and value in turn are the same code for all functions of a gate, and for all of gate and value.
HALF_PRECISION = sorted(NAIVE_ACTIVATIONS.keys() - {"geglu_tanh_interleaved", "situ_glu_interleaved"})


@pytest.mark.parametrize("activation", HALF_PRECISION)
@pytest.mark.parametrize("dtype", [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
def test_every_activation_in_half_precision(activation, dtype, path, device):
    check(operands_of(small_case(activation), dtype, device))


@pytest.mark.parametrize("recompute", RECOMPUTE)
def test_every_recompute(recompute, path, device):
    check(operands_of(small_case("geglu"), torch.float16, device), recompute=recompute)


@pytest.mark.parametrize(("tokens", "experts", "top_k"), [(1, 1, 1), (70, 1, 1), (3, 128, 3), (24, 13, 2), (3, 20, 18)])
def test_numbers_of_tokens_and_experts(tokens, experts, top_k, path, device):
    ids = torch.rand(tokens, experts).argsort(-1)[:, :top_k]
    routed = Routed(ids, torch.ones_like(ids, dtype=torch.bool), experts, 0)
    check(operands_of(ffn_case(routed, 18, 10, 7, "swiglu", True), torch.float32, device))


@pytest.mark.parametrize("choice", ["token", "expert"])
def test_a_hidden_layer_so_wide_that_its_sum_is_split(choice, device):
    ids = torch.tensor([[0, 1], [1, 0]])
    routed = Routed(ids, torch.ones_like(ids, dtype=torch.bool), 2, 0)
    tensors = operands_of(ffn_case(routed, 5, 520, 3, "silu", True), torch.float32, device)
    check(tensors if choice == "token" else tensors._replace(plan=tensors.plan._replace(row_of_slot=None)))


def test_an_expert_with_more_rows_than_a_step_and_widths_beyond_a_tile(device):
    """Few rows: several steps of 16 rows, all of one expert, and more tiles of a gradient than one program writes."""
    ids = torch.cat([torch.zeros(37, 1, dtype=torch.int64), torch.tensor([[2], [4]])])
    kept = torch.ones_like(ids, dtype=torch.bool)
    kept[5] = False
    tensors = operands_of(ffn_case(Routed(ids, kept, 5, 0), 150, 140, 21, "geglu", True), torch.float32, device)
    assert launches_few_rows.serves(len(ids), 5)
    check(tensors)


@pytest.mark.parametrize("other_height", [False, True])
def test_a_plan_with_schedules_gives_the_bits_of_one_without(other_height, path, device):
    case = small_case("geglu")
    bare = operands_of(case, torch.float32, device)
    plan = plan_dispatch(case.routed.expert_ids.to(device), 4, kept=case.routed.kept.to(device), impl="triton")
    assert plan.tiles is not None
    assert bare.plan.tiles is None
    kinds = ("forward", "glu", "activation")
    entries = {operands: [[0, [32, 16, 16, 2, 4, 2, 1]]] for operands in ("16-bit", "32-bit", "odd")}
    table = {name: dict.fromkeys(kinds, entries) for name in configs.committed()} if other_height else {}
    with configs.override(table):
        expected, actual = (t.run_with_gradients() for t in (bare, bare._replace(plan=plan)))
    assert all(torch.equal(actual[name], value) for name, value in expected.items())


def test_experts_that_choose_a_token_twice(path, device):
    choice = torch.tensor([[0, 0, 1], [1, 0, 0], [2, 2, 2], [1, 1, 2]], device=device)
    case = small_case()
    case = case._replace(x=case.x[:4], gates=torch.randn(4, 3, dtype=torch.float64))
    leaves = {name: t.detach().to(device).requires_grad_() for name, t in case.leaves(torch.float32).items()}
    check(operands_of(small_case(), torch.float32, device)._replace(leaves=leaves, plan=plan_expert_choice(choice, 4)))


def test_all_tokens_to_one_of_many_experts(path, device):
    ids = torch.full((19, 1), 3)
    routed = Routed(ids, torch.ones_like(ids, dtype=torch.bool), 7, 0)
    check(operands_of(ffn_case(routed, 12, 20, 9, "swiglu_interleaved", True), torch.float32, device))


def test_expert_choice(path, device):
    """Tokens with no expert, with one and with several; places that an expert could not fill."""
    choice = torch.tensor([[0, 1, 2], [4, 0, 2], [2, 0, 1], [0, 3, 4]])
    kept = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 0, 0], [1, 0, 0]], dtype=torch.bool)
    case = small_case()
    case = case._replace(x=case.x[:6], gates=torch.randn(4, 3, dtype=torch.float64))  # no expert chose token 5
    tensors = operands_of(small_case(), torch.float32, device)
    plan = plan_expert_choice(choice.to(device), 6, kept=kept.to(device))
    leaves = {name: t.detach().to(device).requires_grad_() for name, t in case.leaves(torch.float32).items()}
    tensors = tensors._replace(leaves=leaves, plan=plan)
    check(tensors)
    assert not tensors.run()[5].any()


LAYOUTS = {
    "transposed": lambda t: t.mT.contiguous().mT,
    "every third element": lambda t: t.repeat_interleave(3, dim=-1)[..., ::3],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strided_operands_and_expanded_gradients(layout, path, device):
    tensors = operands_of(small_case("geglu_interleaved"), torch.float16, device)
    leaves = {name: LAYOUTS[layout](t.detach()).requires_grad_() for name, t in tensors.leaves.items()}
    assert not any(t.is_contiguous() for t in leaves.values())
    check(tensors._replace(leaves=leaves), grad=lambda out: torch.ones((), dtype=out.dtype).to(out).expand_as(out))


def test_unassigned_rows_and_experts_without_rows(path, device):
    case = small_case()
    case.x[3] = torch.nan  # the token whose slots are all unassigned
    tensors = operands_of(case, torch.float32, device)
    actual = tensors.run_with_gradients()
    assert not actual["out"][3].any()
    assert all(value.isfinite().all() for value in actual.values())
    assert not actual["x"][3].any()
    assert not actual["gates"][~KEPT.to(device)].any()
    for name in ("up_proj", "down_proj", "up_bias", "down_bias"):
        assert not actual[name][1].any()
        assert all(actual[name][expert].any() for expert in (0, 2, 3))


def test_a_nan_gate_of_an_unassigned_row_shows_in_its_own_token_only(path, device):
    case = small_case()
    clean = operands_of(case, torch.float32, device).run()
    case.gates[3, 0] = torch.nan
    tensors = operands_of(case, torch.float32, device)
    out = tensors.run()
    others = torch.arange(len(IDS), device=device) != 3
    assert out[3].isnan().all()
    assert torch.equal(out[others], clean[others])
    check(tensors)


@pytest.mark.parametrize("recompute", RECOMPUTE)
def test_no_uninitialised_memory_shows_and_the_bits_are_the_same_twice(recompute, path, device):
    tensors = operands_of(small_case(), torch.float16, device)
    first = tensors.run_with_gradients(recompute=recompute)
    with poisoned_empty():
        second = tensors.run_with_gradients(recompute=recompute)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("requested", [["x"], ["gates"], ["up_proj"], ["down_proj", "down_bias"]], ids="+".join)
def test_gradients_only_of_what_requires_them(requested, path, device):
    tensors = operands_of(small_case(), torch.float32, device)
    every = tensors.run_with_gradients()
    for name, leaf in tensors.leaves.items():
        leaf.requires_grad_(name in requested)
    grad = torch.randn(every["out"].shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(every["out"])
    tensors.run().backward(grad)
    for name, leaf in tensors.leaves.items():
        assert torch.equal(leaf.grad, every[name]) if name in requested else leaf.grad is None


def test_offsets_beyond_32_bits(path, device):
    """Rows of tokens, and matrices of experts, that lie more than 2^31 elements apart."""
    tensors = operands_of(small_case("silu", bias=False), torch.float16, device)
    expected = tensors.run_with_gradients()
    apart = 2**30
    leaves = dict(tensors.leaves)
    for name, count, distance in (("x", 7, apart // 2), ("up_proj", 4, apart), ("down_proj", 4, apart)):
        value = leaves[name].detach()
        strides = (distance, *value[0].contiguous().stride())
        try:
            memory = torch.empty(distance * (count - 1) + value[0].numel(), dtype=value.dtype, device=device)
        except RuntimeError as error:
            pytest.skip(f"cannot map the memory: {error}")
        leaves[name] = memory.as_strided(value.shape, strides).copy_(value).requires_grad_()
        assert (count - 1) * distance > 2**31 - 1
    actual = tensors._replace(leaves=leaves).run_with_gradients()
    for name, value in expected.items():  # another stride is another specialisation, which may round in another order
        assert_near(actual[name], value, torch.float16, name)
