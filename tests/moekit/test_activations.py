"""Layers that hold activations as objects."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from moekit import FFN, FFNExperts, SparseMoE, plan_dispatch
from moekit.activations import Activation, TritonActivation, activation_of, clamped_swiglu, glu
from moekit_kernels.moe_ffn import op
from tests.oracles import assert_close

IDS = torch.tensor([[0, 2], [2, 3], [2, 0], [3, 2], [0, 3]])  # expert 1 gets none


def _ratio(gate, value):
    return value / (1 + gate * gate)


def _ratio_derivatives(gate, value):
    scale = 1 / (1 + gate * gate)
    return -2 * gate * value * scale * scale, scale


PLAIN = Activation("test ratio, plain", _ratio, gated=True)
RATIO = Activation("test ratio", _ratio, _ratio_derivatives, gated=True)
INTERLEAVED = Activation("test ratio, interleaved", _ratio, _ratio_derivatives, gated=True, interleaved=True)


def _experts(activation, dtype=torch.float64, **options):
    experts = FFNExperts(4, 6, 4, activation=activation, bias=True, dtype=dtype, **options)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.normal_()
    return experts


def _inputs():
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    return x, plan_dispatch(IDS, 4), torch.rand(5, 2, dtype=torch.float64, requires_grad=True)


def _run(experts, x, plan, gates):
    out = experts(x, plan, gates)
    grad = torch.arange(out.numel(), dtype=out.dtype).view_as(out)
    return [out.detach(), *torch.autograd.grad(out, [x, gates, *experts.parameters()], grad)]


@pytest.fixture
def fused(monkeypatch):
    """The activations of calls of the fused operation."""
    calls = []
    original = op._fused

    def counted(*arguments):
        calls.append(arguments[4])
        return original(*arguments)

    monkeypatch.setattr(op, "_fused", counted)
    return calls


@pytest.mark.parametrize("recompute", ["activation", "none", "all"])
@pytest.mark.parametrize("activation", [RATIO, INTERLEAVED, clamped_swiglu(limit=0.6), glu("relu2")], ids=str)
def test_an_object_runs_fused_and_is_the_reference_in_output_and_all_gradients(activation, recompute, fused):
    inputs = _inputs()
    experts = _experts(activation, recompute=recompute)
    reference = _experts(activation, impl="reference")
    reference.load_state_dict(experts.state_dict())
    assert experts.up_proj.shape == (4, 12, 4)
    for actual, expected in zip(_run(experts, *inputs), _run(reference, *inputs), strict=True):
        assert_close(actual, expected)
    assert fused == [activation.name]


def test_without_derivatives_it_runs_as_operations_of_its_own(fused):
    inputs = _inputs()
    plain, reference = _experts(PLAIN), _experts(RATIO, impl="reference")
    reference.load_state_dict(plain.state_dict())
    for actual, expected in zip(_run(plain, *inputs), _run(reference, *inputs), strict=True):
        assert_close(actual, expected)
    assert fused == []


def test_a_name_and_its_object_compute_the_same_bits():
    inputs = _inputs()
    by_name, by_object = _experts("clamped_swiglu_interleaved"), _experts(clamped_swiglu())
    by_object.load_state_dict(by_name.state_dict())
    assert all(map(torch.equal, _run(by_name, *inputs), _run(by_object, *inputs)))


def test_gate_and_value_alternate_or_follow_each_other():
    concatenated, interleaved = _experts(RATIO), _experts(INTERLEAVED)
    state = concatenated.state_dict()
    for name in ("up_proj", "up_bias"):
        gate, value = state[name].chunk(2, dim=1)
        state[name] = torch.stack([gate, value], dim=2).flatten(1, 2)
    interleaved.load_state_dict(state)
    assert_close(concatenated(*_same()), interleaved(*_same()))


def _same():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 4, dtype=torch.float64, generator=generator)
    return x, plan_dispatch(IDS, 4), torch.rand(5, 2, dtype=torch.float64, generator=generator)


def test_a_dense_network_and_a_layer_with_a_shared_expert_take_objects():
    ffn = FFN(4, 6, activation=RATIO)
    x = torch.randn(3, 4)
    gate, value = ffn.up_proj(x).chunk(2, -1)
    assert_close(ffn(x), ffn.down_proj(_ratio(gate, value)))
    assert "activation=Activation('test ratio')" in repr(ffn)
    moe = SparseMoE.ffn(4, 6, 4, 2, activation=clamped_swiglu(limit=2.0), shared_hidden_dim=3)
    moe(x).output.sum().backward()
    assert all(parameter.grad is not None for parameter in moe.parameters())
    assert repr(moe).count("Activation('clamped_swiglu_interleaved(alpha=1.702, limit=2.0, offset=1.0)')") == 2


@pytest.mark.parametrize("activation", [RATIO, PLAIN, clamped_swiglu(limit=2.0), activation_of("relu2")], ids=str)
def test_a_layer_is_copied_pickled_and_saved_with_its_activation(activation):
    experts = _experts(activation)
    buffer = io.BytesIO()
    torch.save(experts, buffer)
    buffer.seek(0)
    copies = [
        copy.deepcopy(experts),
        pickle.loads(pickle.dumps(experts)),
        torch.load(buffer, weights_only=False),
    ]
    for each in copies:
        assert each.activation is activation
        assert torch.equal(each(*_same()), experts(*_same()))
    assert not any("activation" in name for name in experts.state_dict())


def test_a_layer_is_read_in_another_process():
    code = """
import io, sys, torch
experts = torch.load(io.BytesIO(sys.stdin.buffer.read()), weights_only=False)
assert experts.activation.name == "clamped_swiglu_interleaved(alpha=1.702, limit=2.25, offset=1.0)"
experts(torch.ones(1, 4, dtype=torch.float64), experts.plan, torch.ones(1, 1, dtype=torch.float64)).sum().backward()
"""
    experts = _experts(clamped_swiglu(limit=2.25))
    experts.plan = plan_dispatch(torch.tensor([[1]]), 4)
    buffer = io.BytesIO()
    torch.save(experts, buffer)
    subprocess.run([sys.executable, "-c", code], input=buffer.getvalue(), check=True)


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("activation", [RATIO, PLAIN, "clamped_swiglu"], ids=str)
def test_compiled_whole_and_once_however_many_activations_there_are(activation, impl):
    experts = _experts(activation, impl=impl)
    x, plan, gates = _inputs()
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, gates: experts(x, plan, gates), fullgraph=True, backend="aot_eager")
    assert_close(compiled(x, gates), experts(x, plan, gates))
    Activation(f"test made later {activation} {impl}", F.relu)
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled(x, gates)


def test_an_activation_that_cannot_run_fused_is_refused_where_that_is_asked_for():
    with pytest.raises(
        ValueError, match=r"got Activation\('test ratio'\), which has no Triton functions: use impl=\"a"
    ):
        _experts(RATIO, impl="triton")
    with pytest.raises(
        ValueError, match=r"recompute='all' needs the fused kernels, got Activation\('test ratio, plain'"
    ):
        _experts(PLAIN, recompute="all")
    with pytest.raises(ValueError, match=r"activation must be one that is not gated, as the weights were built for"):
        _experts("gelu").activation = RATIO
    experts = _experts("swiglu")
    experts.activation = RATIO
    assert experts.activation is RATIO
    with pytest.raises(
        ValueError, match=r"needs an activation with Triton functions, got 'test ratio', which has none"
    ):
        op._resolve("triton", torch.ones(1), torch.ones(1), "test ratio")


def test_a_function_of_triton_alone_still_needs_derivatives_on_cpu(fused):
    triton = pytest.importorskip("triton")

    @triton.jit
    def function(x):
        return x

    @triton.jit
    def with_derivatives(x):
        return x, x

    activation = Activation("test triton alone", torch.sin, triton=TritonActivation(function, with_derivatives))
    experts = FFNExperts(4, 6, 4, activation=activation, dtype=torch.float64, recompute="none")
    with pytest.raises(ValueError, match="recompute='none' needs the fused kernels, got impl='torch' on device 'cpu'"):
        experts(*_same())
    experts.recompute = "activation"
    experts(*_same())
    assert fused == []
