"""The Triton kernels of the expert FFN with what a model is trained, compiled and shipped with."""

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from moekit import FFNExperts, plan_dispatch
from moekit_kernels.moe_ffn import moe_ffn
from tests.strategies import Routed, ffn_case
from tests.triton.moe_ffn_cases import IDS, KEPT, LEAVES, operands_of, small_case
from tests.triton.tolerances import assert_near

OPS = torch.ops.moekit


class Layer(nn.Module):
    """Plan and experts, for tokens whose experts and gates are arguments."""

    def __init__(self, device: torch.device, **options) -> None:
        super().__init__()
        self.experts = FFNExperts(12, 10, 4, bias=True, impl="triton", device=device, **options)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(std=0.5)

    def forward(self, x, ids, gates):
        return self.experts(x, plan_dispatch(ids, 4), gates)


def _inputs(device, tokens=7):
    x = torch.randn(tokens, 12, device=device, requires_grad=True)
    return x, IDS[:tokens].to(device), torch.rand(tokens, 2, device=device)


def _gradients(function, layer, inputs):
    return torch.autograd.grad(function(*inputs).square().sum(), (inputs[0], *layer.parameters()))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize("keep", [(True, False), (False, True)])
def test_opcheck(keep, device):
    # Without unassigned rows: what is kept of them is whatever the memory held.
    case = ffn_case(Routed(IDS, torch.ones_like(KEPT), 4, 0), 20, 12, 17, "swiglu", keep[0])
    tensors = operands_of(case, torch.float32, device)
    values = [tensors.leaves.get(name) for name in LEAVES]
    arguments = (*values[:2], *tensors.plan.order, *values[2:])
    torch.library.opcheck(OPS.moe_ffn.default, (*arguments, "swiglu", *keep, "triton"))
    plain = [None if t is None else t.detach() for t in arguments]
    out, *kept = OPS.moe_ffn(*plain, "swiglu", *keep, "triton")
    requested = (True, keep[1], True)
    torch.library.opcheck(
        OPS.moe_ffn_backward.default, (torch.randn_like(out), *plain, *kept, "swiglu", *requested, "triton")
    )


@pytest.mark.parametrize("recompute", ["activation", "all"])
def test_a_retained_graph_gives_the_same_bits_again(recompute, device):
    tensors = operands_of(small_case(), torch.float32, device)
    loss = tensors.run(recompute=recompute).square().sum()
    leaves = tuple(tensors.leaves.values())
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, torch.autograd.grad(loss, leaves), strict=True))


def test_a_second_order_is_refused_and_names_the_remedy(device):
    tensors = operands_of(small_case(), torch.float32, device)
    (grad,) = torch.autograd.grad(tensors.run().square().sum(), tensors.leaves["x"], create_graph=True)
    with pytest.raises(RuntimeError, match=r'first-order gradients only.*impl="reference"'):
        grad.sum().backward()


def test_float64_is_refused(device):
    with pytest.raises(ValueError, match=r'impl="triton" takes tokens and weights of bfloat16, .* got torch.float64'):
        operands_of(small_case(), torch.float64, device).run()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype, device):
    tensors = operands_of(small_case(), torch.float32, device)
    exact = tensors.run_with_gradients()
    with torch.autocast(device.type, dtype=dtype):
        actual = tensors.run_with_gradients()
    assert actual["out"].dtype == dtype
    for name, value in exact.items():
        assert_near(actual[name] / 2, value / 2, torch.bfloat16, name)  # operands are rounded too


def test_compiled_without_a_break_for_any_number_of_tokens(device):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(moe_ffn, backend=counter, fullgraph=True, dynamic=True)
    for tokens in (7, 5, 6):
        case = ffn_case(Routed(IDS[:tokens], KEPT[:tokens], 4, tokens), 20, 12, 17, "geglu", True)
        tensors = operands_of(case, torch.float32, device)
        values = [tensors.leaves[name] for name in LEAVES]
        out = compiled(*values[:2], tensors.plan, tensors.weights, "geglu", impl="triton")
        actual = torch.autograd.grad(out.square().sum(), values)
        expected = torch.autograd.grad(tensors.run().square().sum(), values)
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    assert counter.frame_count == 1


def test_export_for_any_number_of_tokens(device):
    layer = Layer(device).eval()
    tokens = torch.export.Dim("tokens", max=64)
    x, ids, gates = _inputs(device)
    program = torch.export.export(layer, (x.detach(), ids, gates), dynamic_shapes=({0: tokens},) * 3)
    for count in (7, 3):
        inputs = _inputs(device, count)
        assert torch.equal(program.module()(*inputs), layer(*inputs))


def test_checkpointing_changes_no_bit(device):
    layer, inputs = Layer(device, recompute="all"), _inputs(device)
    plain = _gradients(layer, layer, inputs)
    again = _gradients(lambda *t: checkpoint(layer, *t, use_reentrant=False), layer, inputs)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_functional_call(device):
    layer, other, inputs = Layer(device), Layer(device), _inputs(device)
    out = torch.func.functional_call(layer, other.state_dict(), inputs)
    assert torch.equal(out, other(*inputs))
    assert not torch.equal(out, layer(*inputs))


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # one call for each
def test_vmap_makes_one_call_for_each_sample(device):
    tensors = operands_of(small_case(), torch.float32, device)
    x = torch.randn(2, *tensors.leaves["x"].shape, device=device)

    def run(x):
        return tensors._replace(leaves=tensors.leaves | {"x": x}).run()

    assert torch.equal(torch.func.vmap(run)(x), torch.stack([run(one) for one in x]))
