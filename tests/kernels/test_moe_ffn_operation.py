"""The fused expert FFN as an operation of torch: schema, strides, autograd, autocast, compiler, vmap."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from moekit_kernels.moe_ffn import moe_ffn, moe_ffn_reference
from moekit_kernels.moe_ffn.checks import RECOMPUTE
from tests.kernels.moe_ffn_runs import (
    IDS,
    KEPT,
    NAMES,
    each_loop,
    run,
    run_with_gradients,
    small_case,
    weights_of,
)
from tests.oracles import TOLERANCE, assert_close
from tests.strategies import Routed, ffn_case

OPS = torch.ops.moekit


def test_a_second_order_of_the_operation_is_refused_and_names_the_remedy():
    case = small_case()
    leaves = case.leaves()
    (grad,) = torch.autograd.grad(run(moe_ffn, case, leaves).square().sum(), leaves["x"], create_graph=True)
    with pytest.raises(RuntimeError, match=r'first-order gradients only.*impl="reference"'):
        grad.sum().backward()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("strided", [True, False])
@pytest.mark.parametrize("keep", [(False, False), (True, False), (True, True)])
def test_opcheck_forward(bias, strided, keep):
    tensors, arguments = _arguments(bias, strided)
    if any(keep):
        arguments = [t.detach().requires_grad_() if any(t is named for named in tensors) else t for t in arguments]
    torch.library.opcheck(OPS.moe_ffn.default, (*arguments, "swiglu", *keep, "torch"))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
def test_opcheck_of_a_forward_that_computes_everything_again():
    tensors, arguments = _arguments(True, False)
    arguments = [t.detach().requires_grad_() if any(t is named for named in tensors) else t for t in arguments]
    torch.library.opcheck(OPS.moe_ffn.default, (*arguments, "geglu_interleaved", False, False, "auto"))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("strided", [True, False])
@pytest.mark.parametrize("keep", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize(
    "requested", [(True, True, True), (True, False, False), (True, True, False), (False, False, True)]
)
def test_opcheck_backward(bias, strided, keep, requested):
    _, arguments = _arguments(bias, strided)
    out, *kept = OPS.moe_ffn(*arguments, "swiglu", *keep, "torch")
    grad = torch.ones((), dtype=out.dtype).expand(out.shape) if strided else torch.randn_like(out)
    torch.library.opcheck(OPS.moe_ffn_backward.default, (grad, *arguments, *kept, "swiglu", *requested, "torch"))


def _arguments(bias, strided):
    """The floating tensors of a case, and all tensor arguments of the operation."""
    case = small_case(bias=bias)
    tensors = _strided(case) if strided else {name: getattr(case, name) for name in NAMES}
    rest = [tensors[name] for name in NAMES[2:]]
    arguments = [tensors["x"], tensors["gates"], *case.routed.plan.order, *rest]
    return [t for t in tensors.values() if t is not None], arguments


def _strided(case):
    """The same numbers, laid out so that no tensor of two or more dimensions is contiguous."""
    tensors = {name: getattr(case, name) for name in NAMES}
    return {name: t if t is None else t.mT.contiguous().mT for name, t in tensors.items()}


@each_loop
@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_strided_operands_and_expanded_gradients_give_the_same_numbers(activation):
    case = small_case(activation)
    leaves, plain = {n: t.detach().requires_grad_() for n, t in _strided(case).items()}, case.leaves()
    out, expected = run(moe_ffn, case, leaves), run(moe_ffn_reference, case, plain)
    out.sum().backward()  # its gradient has a stride of zero
    expected.sum().backward()
    assert_close(out, expected)
    for name, leaf in leaves.items():
        assert not leaf.is_contiguous()
        assert_close(leaf.grad, plain[name].grad)


@pytest.mark.parametrize("recompute", RECOMPUTE)
def test_a_retained_graph_gives_the_same_bits_again(recompute):
    case = small_case()
    leaves = case.leaves(torch.float32)
    loss = run(moe_ffn, case, leaves, recompute=recompute).square().sum()
    first = torch.autograd.grad(loss, tuple(leaves.values()), retain_graph=True)
    second = torch.autograd.grad(loss, tuple(leaves.values()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_without_gradients_nothing_is_kept():
    case = small_case()
    leaves = case.leaves()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        with torch.no_grad():
            without_gradients = run(moe_ffn, case, leaves)
        assert not kept
        with_gradients = run(moe_ffn, case, leaves)
    assert kept
    assert not without_gradients.requires_grad
    assert torch.equal(without_gradients, with_gradients)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("function", [moe_ffn, moe_ffn_reference])
def test_autocast_gives_the_autocast_dtype(function, dtype):
    case = small_case()
    exact = run_with_gradients(moe_ffn_reference, case, torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        actual = run_with_gradients(function, case, torch.float32)
    assert actual["out"].dtype == dtype
    for name, value in exact.items():
        tolerance = TOLERANCE[dtype] * (1 if name == "out" else 2)
        torch.testing.assert_close(actual[name].float(), value, rtol=tolerance, atol=tolerance)


def test_compiled_without_a_break_for_any_number_of_tokens():
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(moe_ffn, backend=counter, fullgraph=True, dynamic=True)
    for tokens in (7, 5, 6):
        case = ffn_case(Routed(IDS[:tokens], KEPT[:tokens], 4, tokens), 5, 3, 4, "swiglu", True)
        leaves, plain = case.leaves(), case.leaves()
        out = compiled(leaves["x"], leaves["gates"], case.routed.plan, weights_of(leaves), "swiglu")
        out.sum().backward()
        run(moe_ffn, case, plain).sum().backward()
        for name, leaf in leaves.items():
            assert_close(leaf.grad, plain[name].grad)
    assert counter.frame_count == 1


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # one call for each
def test_vmap_makes_one_call_for_each_sample():
    case = small_case()
    leaves, x = case.leaves(), torch.randn(3, *case.x.shape, dtype=torch.float64)
    out = torch.func.vmap(lambda x: run(moe_ffn, case, leaves | {"x": x}))(x)
    expected = torch.stack([run(moe_ffn, case, leaves | {"x": one}) for one in x])
    assert_close(out, expected)
    for a, b in zip(*(torch.autograd.grad(o.sum(), leaves["up_proj"]) for o in (out, expected)), strict=True):
        assert_close(a, b)
