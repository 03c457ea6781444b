"""The fused expert FFN: reference held to a loop over tokens, operation held to the reference."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import gradcheck, gradgradcheck

from moekit_kernels.activations import ACTIVATIONS
from moekit_kernels.grouped_gemm import grouped_linear
from moekit_kernels.moe_ffn import moe_ffn, moe_ffn_reference, serves
from tests.oracles import NAIVE_ACTIVATIONS, TOLERANCE, assert_close, naive_experts, poisoned_empty, stacked_expert
from tests.strategies import FFNCase, Routed, few, ffn_case, ffn_cases

OPS = torch.ops.moekit
NAMES = ("x", "gates", "up_proj", "down_proj", "up_bias", "down_bias")
IDS = torch.tensor([[0, 2], [2, 3], [2, 0], [3, 2], [0, 3], [2, 3], [3, 0]])  # expert 1 gets none
KEPT = torch.tensor([[1, 1], [0, 1], [1, 1], [0, 0], [1, 1], [1, 0], [1, 1]], dtype=torch.bool)


def _case(activation="swiglu", bias=True, dim=5, hidden=3, out_dim=4) -> FFNCase:
    return ffn_case(Routed(IDS, KEPT, 4, 0), dim, hidden, out_dim, activation, bias)


def _run(function, case, leaves, activation=None):
    rest = [leaves.get(name) for name in NAMES[2:]]
    named = case.activation if function is moe_ffn else ACTIVATIONS[case.activation].forward
    return function(leaves["x"], leaves["gates"], *case.routed.rows, *rest, named if activation is None else activation)


def _run_with_gradients(function, case, dtype):
    leaves = case.leaves(dtype)
    out = _run(function, case, leaves)
    generator = torch.Generator().manual_seed(case.routed.seed + 1)
    out.backward(torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype))
    return {"out": out.detach()} | {name: leaf.grad for name, leaf in leaves.items()}


@few
@given(ffn_cases())
def test_reference_is_the_loop_over_tokens_in_output_and_gradients(case):
    found = _run_with_gradients(moe_ffn_reference, case, torch.float64)
    leaves = case.leaves()
    weights = [leaves.get(name) for name in NAMES[2:]]
    expert = stacked_expert(*weights, case.activation)
    out = naive_experts(
        leaves["x"], leaves["gates"], case.routed.expert_ids, case.routed.kept, expert, case.down_proj.shape[1]
    )
    assert_close(found["out"], out)
    if out.requires_grad:
        generator = torch.Generator().manual_seed(case.routed.seed + 1)
        out.backward(torch.randn(out.shape, generator=generator, dtype=torch.float64))
    for name, leaf in leaves.items():
        assert_close(found[name], torch.zeros_like(leaf) if leaf.grad is None else leaf.grad)


@few
@given(ffn_cases(), st.sampled_from([torch.float64, torch.float32]))
def test_operation_is_the_reference_in_output_and_gradients(case, dtype):
    found = _run_with_gradients(moe_ffn, case, dtype)
    expected = _run_with_gradients(moe_ffn_reference, case, dtype)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(found[name], value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_half_precision_is_the_float64_reference_of_the_rounded_operands(activation, dtype):
    case = _case(activation)
    rounded = case._replace(**{name: getattr(case, name).to(dtype).double() for name in NAMES})
    exact = _run_with_gradients(moe_ffn_reference, rounded, torch.float64)
    found = _run_with_gradients(moe_ffn, rounded, dtype)
    assert found["out"].dtype == dtype
    assert found["gates"].dtype == torch.float32
    for name, value in exact.items():
        # Gradients pass twice as many roundings as outputs.
        tolerance = TOLERANCE[dtype] * (1 if name == "out" else 2)
        torch.testing.assert_close(found[name].double(), value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("bias", [True, False])
def test_gradcheck(activation, bias):
    case = _case(activation, bias)
    leaves = case.leaves()
    for function in (moe_ffn, moe_ffn_reference):
        assert gradcheck(
            lambda *t, f=function: _run(f, case, dict(zip(leaves, t, strict=True))), tuple(leaves.values())
        )


def test_second_order_of_the_reference():
    case = _case("silu")
    leaves = case.leaves()
    inputs = tuple(leaves.values())
    assert gradgradcheck(lambda *t: _run(moe_ffn_reference, case, dict(zip(leaves, t, strict=True))), inputs)


def test_second_order_of_the_operation_says_what_to_do():
    case = _case()
    leaves = case.leaves()
    (grad,) = torch.autograd.grad(_run(moe_ffn, case, leaves).square().sum(), leaves["x"], create_graph=True)
    with pytest.raises(RuntimeError, match=r'first-order gradients only.*impl="reference"'):
        grad.sum().backward()


@few
@given(ffn_cases())
def test_reference_through_the_grouped_gemm_is_the_reference(case):
    leaves = case.leaves()
    rest = [leaves.get(name) for name in NAMES[2:]]
    forward = ACTIVATIONS[case.activation].forward
    arguments = (leaves["x"], leaves["gates"], *case.routed.rows, *rest, forward)
    assert_close(moe_ffn_reference(*arguments, grouped_linear), moe_ffn_reference(*arguments))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("strided", [True, False])
@pytest.mark.parametrize("keep_pre", [True, False])
def test_opcheck_forward(bias, strided, keep_pre):
    case = _case(bias=bias)
    tensors = _strided(case) if strided else {name: getattr(case, name) for name in NAMES}
    if keep_pre:
        tensors = {name: None if t is None else t.detach().requires_grad_() for name, t in tensors.items()}
    rest = [tensors[name] for name in NAMES[2:]]
    torch.library.opcheck(
        OPS.moe_ffn.default, (tensors["x"], tensors["gates"], *case.routed.rows, *rest, "swiglu", keep_pre)
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("strided", [True, False])
def test_opcheck_backward(bias, strided):
    case = _case(bias=bias)
    tensors = _strided(case) if strided else {name: getattr(case, name) for name in NAMES}
    rest = [tensors[name] for name in NAMES[2:]]
    arguments = (tensors["x"], tensors["gates"], *case.routed.rows, *rest)
    out, pre = OPS.moe_ffn(*arguments, "swiglu", True)
    grad = torch.ones((), dtype=out.dtype).expand(out.shape) if strided else torch.randn_like(out)
    torch.library.opcheck(OPS.moe_ffn_backward.default, (grad, *arguments, pre, "swiglu"))


def _strided(case):
    """The same numbers, laid out so that no tensor of two or more dimensions is contiguous."""
    tensors = {name: getattr(case, name) for name in NAMES}
    return {name: t if t is None else t.mT.contiguous().mT for name, t in tensors.items()}


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_strided_operands_and_expanded_gradients_give_the_same_numbers(activation):
    case = _case(activation)
    leaves, plain = {n: t.detach().requires_grad_() for n, t in _strided(case).items()}, case.leaves()
    out, expected = _run(moe_ffn, case, leaves), _run(moe_ffn_reference, case, plain)
    out.sum().backward()  # hands back a gradient of stride zero
    expected.sum().backward()
    assert_close(out, expected)
    for name, leaf in leaves.items():
        assert not leaf.is_contiguous()
        assert_close(leaf.grad, plain[name].grad)


@few
@given(ffn_cases())
def test_no_uninitialised_memory_shows(case):
    with poisoned_empty():
        found = _run_with_gradients(moe_ffn, case, torch.float32)
    for name, value in _run_with_gradients(moe_ffn_reference, case, torch.float32).items():
        assert_close(found[name], value)


@pytest.mark.parametrize("function", [moe_ffn, moe_ffn_reference])
def test_dead_rows_and_empty_experts(function):
    case = _case()
    case.x[3] = torch.nan  # the token whose slots are all dead
    leaves = case.leaves()
    out = _run(function, case, leaves)
    out.sum().backward()
    assert not out[3].any()
    assert all(leaf.grad.isfinite().all() for leaf in leaves.values())
    assert not leaves["x"].grad[3].any()
    assert not leaves["gates"].grad[~KEPT].any()
    assert all(not leaves[name].grad[1].any() for name in NAMES[2:])  # exact zeros without rows
    assert all(leaves[name].grad[expert].any() for name in NAMES[2:] for expert in (0, 2, 3))


@pytest.mark.parametrize("function", [moe_ffn, moe_ffn_reference])
def test_a_nan_gate_of_a_dead_row_shows_in_its_own_token_only(function):
    case = _case()
    clean = _run(function, case, case.leaves())
    case.gates[3, 0] = torch.nan
    out = _run(function, case, case.leaves())
    others = torch.arange(7) != 3
    assert out[3].isnan().all()
    assert torch.equal(out[others], clean[others])


@pytest.mark.parametrize("wanted", ["x", "gates", "up_proj", "down_bias"])
def test_gradients_only_of_what_asks_for_them(wanted):
    case = _case()
    leaves, every = case.leaves(), case.leaves()
    for name, leaf in leaves.items():
        leaf.requires_grad_(name == wanted)
    _run(moe_ffn, case, leaves).square().sum().backward()
    _run(moe_ffn, case, every).square().sum().backward()
    assert_close(leaves[wanted].grad, every[wanted].grad)
    assert all(leaf.grad is None for name, leaf in leaves.items() if name != wanted)


def test_without_gradients_nothing_is_kept():
    case = _case()
    leaves = case.leaves()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        with torch.no_grad():
            quiet = _run(moe_ffn, case, leaves)
        assert not kept
        loud = _run(moe_ffn, case, leaves)
    assert kept
    assert not quiet.requires_grad
    assert torch.equal(quiet, loud)


def test_the_same_input_gives_the_same_bits_twice():
    case = _case()
    first, second = (_run_with_gradients(moe_ffn, case, torch.float32) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("function", [moe_ffn, moe_ffn_reference])
def test_autocast_gives_the_autocast_dtype(function, dtype):
    case = _case()
    exact = _run_with_gradients(moe_ffn_reference, case, torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        found = _run_with_gradients(function, case, torch.float32)
    assert found["out"].dtype == dtype
    for name, value in exact.items():
        tolerance = TOLERANCE[dtype] * (1 if name == "out" else 2)
        torch.testing.assert_close(found[name].float(), value, rtol=tolerance, atol=tolerance)


def test_compiled_without_a_break_for_any_number_of_tokens():
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(moe_ffn, backend=counter, fullgraph=True, dynamic=True)
    for tokens in (7, 5, 6):
        case = ffn_case(Routed(IDS[:tokens], KEPT[:tokens], 4, tokens), 5, 3, 4, "swiglu", True)
        leaves, plain = case.leaves(), case.leaves()
        rows = case.routed.rows
        rest = [leaves[name] for name in NAMES[2:]]
        out = compiled(leaves["x"], leaves["gates"], *rows, *rest, "swiglu")
        out.sum().backward()
        _run(moe_ffn, case, plain).sum().backward()
        for name, leaf in leaves.items():
            assert_close(leaf.grad, plain[name].grad)
    assert counter.frame_count == 1


def test_the_operation_serves_cpu():
    assert serves(torch.device("cpu"))
    assert not serves(torch.device("cuda"))
    assert sorted(NAIVE_ACTIVATIONS) == sorted(ACTIVATIONS)
