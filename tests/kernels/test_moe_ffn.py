"""The fused expert FFN: reference held to a loop over tokens, operation held to the reference."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from moekit_kernels.activations.activation import BUILT_IN
from moekit_kernels.moe_ffn import ExpertWeights, loop, moe_ffn, moe_ffn_reference
from moekit_kernels.moe_ffn.checks import RECOMPUTE
from tests.kernels.moe_ffn_runs import (
    IDS,
    KEPT,
    LOOPS,
    NAMES,
    each_loop,
    run,
    run_with_gradients,
    small_case,
    take,
    weights_of,
)
from tests.oracles import NAIVE_ACTIVATIONS, TOLERANCE, assert_close, naive_experts, poisoned_empty, stacked_expert
from tests.strategies import Routed, few, ffn_case, ffn_cases


@few
@given(ffn_cases())
def test_reference_is_the_loop_over_tokens_in_output_and_gradients(case):
    actual = run_with_gradients(moe_ffn_reference, case, torch.float64)
    leaves = case.leaves()
    weights = [leaves.get(name) for name in NAMES[2:]]
    expert = stacked_expert(*weights, case.activation)
    out = naive_experts(
        leaves["x"], leaves["gates"], case.routed.expert_ids, case.routed.kept, expert, case.down_proj.shape[1]
    )
    assert_close(actual["out"], out)
    if out.requires_grad:
        generator = torch.Generator().manual_seed(case.routed.seed + 1)
        out.backward(torch.randn(out.shape, generator=generator, dtype=torch.float64))
    for name, leaf in leaves.items():
        assert_close(actual[name], torch.zeros_like(leaf) if leaf.grad is None else leaf.grad)


@few
@given(
    ffn_cases(), st.sampled_from([torch.float64, torch.float32]), st.sampled_from(RECOMPUTE), st.sampled_from([*LOOPS])
)
def test_operation_is_the_reference_in_output_and_gradients(case, dtype, recompute, way):
    with pytest.MonkeyPatch.context() as patch:
        take(patch, way)
        actual = run_with_gradients(moe_ffn, case, dtype, recompute=recompute)
    expected = run_with_gradients(moe_ffn_reference, case, dtype)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(actual[name], value)


@each_loop
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("activation", sorted(NAIVE_ACTIVATIONS))
def test_half_precision_is_the_float64_reference_of_the_rounded_operands(activation, dtype):
    case = small_case(activation)
    rounded = case._replace(**{name: getattr(case, name).to(dtype).double() for name in NAMES})
    exact = run_with_gradients(moe_ffn_reference, rounded, torch.float64)
    actual = run_with_gradients(moe_ffn, rounded, dtype)
    assert actual["out"].dtype == dtype
    assert actual["gates"].dtype == torch.float32
    for name, value in exact.items():
        # Gradients pass twice as many roundings as outputs.
        tolerance = TOLERANCE[dtype] * (1 if name == "out" else 2)
        torch.testing.assert_close(actual[name].double(), value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dim", [16, 12])  # 12 is too narrow for grouped_mm in half precision
@pytest.mark.parametrize("strided", [True, False])
def test_products_by_grouped_mm_are_the_float64_reference_of_the_rounded_operands(dim, dtype, strided, monkeypatch):
    products, original = [], torch.nn.functional.grouped_mm
    monkeypatch.setattr(
        torch.nn.functional, "grouped_mm", lambda *args, **options: products.append(1) or original(*args, **options)
    )
    case = small_case("swiglu", bias=False, dim=dim, hidden=16, out_dim=16)
    rounded = case._replace(**{name: getattr(case, name).to(dtype).double() for name in NAMES[:4]})
    if strided:
        case = case._replace(up_proj=case.up_proj.mT.contiguous().mT)
    exact = run_with_gradients(moe_ffn_reference, rounded, torch.float64)
    with poisoned_empty():
        actual = run_with_gradients(moe_ffn, case, dtype)
    tolerance = 2 * TOLERANCE[dtype]
    for name, value in exact.items():
        torch.testing.assert_close(actual[name].double(), value, rtol=tolerance, atol=tolerance)
    # Two forward, two for the gradients of hidden rows and of tokens, two for those of the weights.
    assert len(products) == (6 if dim == 16 or dtype == torch.float32 else 3)


@each_loop
@pytest.mark.parametrize("activation", sorted(NAIVE_ACTIVATIONS))
@pytest.mark.parametrize("bias", [True, False])
def test_gradcheck(activation, bias):
    case = small_case(activation, bias)
    leaves = case.leaves()
    runs = [(moe_ffn_reference, {}), *((moe_ffn, {"recompute": recompute}) for recompute in RECOMPUTE)]
    for function, options in runs:
        assert gradcheck(
            lambda *t, f=function, o=options: run(f, case, dict(zip(leaves, t, strict=True)), **o),
            tuple(leaves.values()),
        )


def test_second_order_of_the_reference():
    case = small_case("silu")
    leaves = case.leaves()
    inputs = tuple(leaves.values())
    assert gradgradcheck(lambda *t: run(moe_ffn_reference, case, dict(zip(leaves, t, strict=True))), inputs)


@few
@given(ffn_cases(), st.sampled_from(RECOMPUTE), st.sampled_from([*LOOPS]))
def test_no_uninitialised_memory_shows(case, recompute, way):
    with poisoned_empty(), pytest.MonkeyPatch.context() as patch:
        take(patch, way)
        actual = run_with_gradients(moe_ffn, case, torch.float32, recompute=recompute)
    for name, value in run_with_gradients(moe_ffn_reference, case, torch.float32).items():
        assert_close(actual[name], value)


@each_loop
@pytest.mark.parametrize("function", [moe_ffn, moe_ffn_reference])
def test_unassigned_rows_and_empty_experts(function):
    case = small_case()
    case.x[3] = torch.nan  # the token whose slots are all unassigned
    leaves = case.leaves()
    out = run(function, case, leaves)
    out.sum().backward()
    assert not out[3].any()
    assert all(leaf.grad.isfinite().all() for leaf in leaves.values())
    assert not leaves["x"].grad[3].any()
    assert not leaves["gates"].grad[~KEPT].any()
    assert all(not leaves[name].grad[1].any() for name in NAMES[2:])  # exact zeros without rows
    assert all(leaves[name].grad[expert].any() for name in NAMES[2:] for expert in (0, 2, 3))


@each_loop
@pytest.mark.parametrize("function", [moe_ffn, moe_ffn_reference])
def test_a_nan_gate_of_an_unassigned_row_shows_in_its_own_token_only(function):
    case = small_case()
    clean = run(function, case, case.leaves())
    case.gates[3, 0] = torch.nan
    out = run(function, case, case.leaves())
    others = torch.arange(7) != 3
    assert out[3].isnan().all()
    assert torch.equal(out[others], clean[others])


@each_loop
@pytest.mark.parametrize("recompute", RECOMPUTE)
@pytest.mark.parametrize("requested", [*([name] for name in NAMES), ["x", "gates"], ["gates", "up_bias"]], ids="+".join)
def test_gradients_only_of_what_requires_them(requested, recompute):
    case = small_case()
    leaves, every = case.leaves(), case.leaves()
    for name, leaf in leaves.items():
        leaf.requires_grad_(name in requested)
    run(moe_ffn, case, leaves, recompute=recompute).square().sum().backward()
    run(moe_ffn, case, every).square().sum().backward()
    for name, leaf in leaves.items():
        if name in requested:
            assert_close(leaf.grad, every[name].grad)
        else:
            assert leaf.grad is None


class Calls(TorchDispatchMode):
    """Records the operations that are called, and their arguments."""

    def __init__(self):
        super().__init__()
        self.recorded = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.recorded.append((func._overloadpacket, args))
        return func(*args, **(kwargs or {}))


@each_loop
@pytest.mark.parametrize(
    ("keep", "requested", "products"),
    [
        ((True, False), (True, True, True), 4),
        ((True, True), (True, True, True), 4),
        ((False, False), (True, True, True), 5),
        ((True, False), (True, False, False), 2),
        ((True, False), (True, True, False), 3),
        ((True, False), (True, False, True), 3),
        ((True, False), (False, True, True), 3),
        ((False, False), (False, True, True), 4),
        ((True, False), (False, False, True), 2),
    ],
)
def test_gradients_that_are_not_requested_cost_no_products(keep, requested, products):
    case = small_case(bias=False)
    weights = ExpertWeights(*(getattr(case, name) for name in NAMES[2:]))
    arguments = (case.x, case.gates, case.routed.plan.order, weights)
    out, *kept = loop.forward(*arguments, "swiglu", *keep)
    with Calls() as calls:
        actual = loop.backward(torch.ones_like(out), *arguments, *kept, "swiglu", *requested)
    count = sum(name in (torch.ops.aten.mm, torch.ops.aten.addmm) for name, _ in calls.recorded)
    assert count == 3 * products  # three of the four experts have rows
    assert [g is not None for g in actual] == [requested[0], requested[0], *requested[1:], False, False]


@pytest.mark.parametrize(
    ("frozen", "requested"),
    [
        ((), (True, True, True)),
        (("up_proj", "down_proj", "up_bias", "down_bias"), (True, False, False)),
        (("up_proj", "up_bias"), (True, False, True)),
        (("down_proj", "down_bias"), (True, True, False)),
        (("x", "gates"), (False, True, True)),
        (("x", "up_proj"), (True, True, True)),
    ],
)
def test_no_gradients_of_frozen_experts_are_requested(frozen, requested):
    case = small_case()
    leaves = case.leaves()
    for name in frozen:
        leaves[name].requires_grad_(False)
    out = run(moe_ffn, case, leaves)
    with Calls() as calls:
        out.sum().backward()
    (arguments,) = [arguments for name, arguments in calls.recorded if name is torch.ops.moekit.moe_ffn_backward]
    assert arguments[-4:-1] == requested


@pytest.mark.parametrize("recompute", RECOMPUTE)
@pytest.mark.parametrize("activation", ["gelu", "swiglu_interleaved"])
def test_recompute_keeps_what_it_documents_to_the_byte(activation, recompute):
    case = small_case(activation)
    leaves, plan = case.leaves(torch.float32), case.routed.plan
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        moe_ffn(leaves["x"], leaves["gates"], plan, weights_of(leaves), activation, recompute=recompute)
    inputs = {t.untyped_storage().data_ptr() for t in (*leaves.values(), *plan.order) if t is not None}
    made = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept if t.numel()}
    rows, columns, hidden = IDS.numel(), leaves["up_proj"].shape[1], leaves["down_proj"].shape[2]
    expected = {"activation": [rows * columns * 4], "none": [rows * columns * 4, rows * hidden * 4], "all": []}
    assert [size for pointer, size in made.items() if pointer not in inputs] == expected[recompute]


@pytest.mark.parametrize("activation", ["gelu", "swiglu", "geglu_interleaved"])
@pytest.mark.parametrize("recompute", RECOMPUTE)
def test_single_rows_of_experts_are_the_reference(activation, recompute):
    routed = Routed(torch.tensor([[4, 1], [2, 0]]), torch.tensor([[True, True], [True, False]]), 6, 0)
    case = ffn_case(routed, 5, 3, 4, activation, bias=False)
    with poisoned_empty():
        actual = run_with_gradients(moe_ffn, case, torch.float32, recompute=recompute)
    for name, value in run_with_gradients(moe_ffn_reference, case, torch.float32).items():
        assert_close(actual[name], value)


def test_a_gate_of_zero_hides_no_number_that_is_not_finite():
    case = ffn_case(
        Routed(torch.tensor([[1, 0]]), torch.ones(1, 2, dtype=torch.bool), 3, 0), 4, 3, 4, "gelu", bias=False
    )
    case.gates[0, 0] = 0
    case.down_proj[1] = torch.inf
    assert not run(moe_ffn, case, case.leaves(torch.float32)).isfinite().any()
    case.gates[0] = torch.nan
    case.down_proj[1] = 1
    assert run(moe_ffn, case, case.leaves(torch.float32)).isnan().all()


def test_a_nan_gate_of_an_unassigned_single_row_shows_in_its_own_token_only():
    routed = Routed(torch.tensor([[1, 0], [2, 2]]), torch.tensor([[True, True], [True, False]]), 3, 0)
    case = ffn_case(routed, 4, 3, 4, "gelu", bias=False)
    clean = run(moe_ffn, case, case.leaves(torch.float32))
    case.gates[1, 1] = torch.nan
    out = run(moe_ffn, case, case.leaves(torch.float32))
    assert torch.equal(out[0], clean[0])
    assert out[1].isnan().all()


@each_loop
def test_interleaved_experts_are_the_concatenated_ones_in_another_order():
    case = small_case("swiglu")
    order = torch.tensor([0, 3, 1, 4, 2, 5])  # hidden width 3: gate and value in turn
    other = case._replace(
        up_proj=case.up_proj[:, order], up_bias=case.up_bias[:, order], activation="swiglu_interleaved"
    )
    actual, expected = (run_with_gradients(moe_ffn, c, torch.float64) for c in (other, case))
    for name, value in expected.items():
        assert_close(actual[name], value[:, order] if name.startswith("up_") else value)


@each_loop
def test_the_same_input_gives_the_same_bits_twice():
    case = small_case()
    first, second = (run_with_gradients(moe_ffn, case, torch.float32) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_every_activation_has_a_formula():
    assert NAIVE_ACTIVATIONS.keys() == BUILT_IN
