"""Activations in Triton: those of the package beyond the rest of the tests, GPT-OSS's experts, and a user's own."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from transformers import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

from moekit import FFNExperts, plan_dispatch
from moekit.activations import Activation, TritonActivation, activation_of, clamped_swiglu, glu, situ, situ_glu
from moekit_kernels import kernel_language
from moekit_kernels.activations import ACTIVATIONS
from moekit_kernels.moe_ffn import launches_few_rows
from tests.oracles import relative_error
from tests.strategies import FFNCase, Routed, ffn_case
from tests.triton.moe_ffn_cases import IDS, KEPT, check, operands_of, small_case


@pytest.fixture(params=["few rows", "tiles"])
def path(request, monkeypatch) -> str:
    """Both ways, forward and backward: small cases alone would all take the one for few rows."""
    if request.param == "tiles":
        monkeypatch.setattr(launches_few_rows, "MOST_ROWS", -1)
    return request.param


@triton.jit
def cosine(x, SHIFT: tl.constexpr):
    return tl.cos(x + SHIFT)


@triton.jit
def cosine_with_derivatives(x, SHIFT: tl.constexpr):
    return tl.cos(x + SHIFT), -tl.sin(x + SHIFT)


@triton.jit
def shifted(gate, value, SHIFT: tl.constexpr, SCALE: tl.constexpr):
    return (value + SHIFT) * SCALE / (1.0 + tl.abs(gate))


@triton.jit
def shifted_with_derivatives(gate, value, SHIFT: tl.constexpr, SCALE: tl.constexpr):
    size = 1.0 + tl.abs(gate)
    result = (value + SHIFT) * SCALE / size
    return result, tl.where(gate < 0, result / size, -result / size), SCALE / size


@triton.jit
def identity(x):
    return x


@triton.jit
def pair_without_constants(gate, value):
    return gate * value, value, gate


def _cosine(x):
    return (x + 0.5).cos()


def _shifted(gate, value):
    return (value + 0.5) * 2.0 / (1 + gate.abs())


# Neither is zero at zero, so what pads a tile must not count.
COSINE = Activation("test cosine", _cosine, triton=TritonActivation(cosine, cosine_with_derivatives, constants=(0.5,)))
SHIFTED_FORM = TritonActivation(shifted, shifted_with_derivatives, constants=(0.5, 2.0))
SHIFTED = Activation("test shifted", _shifted, gated=True, triton=SHIFTED_FORM)
SHIFTED_INTERLEAVED = Activation(
    "test shifted interleaved", _shifted, gated=True, interleaved=True, triton=SHIFTED_FORM
)
OTHERS = [
    clamped_swiglu(alpha=1.0, limit=0.7, offset=0.0),
    situ(0.5),
    situ_glu(2.0, 0.75, interleaved=True),
    glu("relu2"),
    COSINE,
    glu(COSINE),
    SHIFTED,
    SHIFTED_INTERLEAVED,
]


def _case(activation: Activation, bias: bool = True) -> FFNCase:
    named = small_case("swiglu" if activation.gated else "silu", bias)
    return named._replace(activation=activation.name)


@pytest.mark.parametrize("activation", OTHERS, ids=lambda a: a.name)
def test_output_and_all_gradients_are_the_reference(activation, path, device):
    check(operands_of(_case(activation), torch.float32, device))


@pytest.mark.parametrize("activation", [SHIFTED, COSINE], ids=lambda a: a.name)
@pytest.mark.parametrize("recompute", ["none", "all"])
def test_a_users_own_with_every_recompute_in_half_precision(activation, recompute, path, device):
    check(operands_of(_case(activation, bias=False), torch.float16, device), recompute=recompute)


def test_a_users_own_with_weights_of_both_layouts(path, device):
    for activation in (SHIFTED, SHIFTED_INTERLEAVED):
        operands = operands_of(_case(activation), torch.float32, device)
        for name in ("up_proj", "down_proj"):
            stored = operands.leaves[name].detach().mT.contiguous()
            operands.leaves[name] = stored.mT.requires_grad_()
        check(operands)


@triton.jit
def _function_kernel(x_ptr, y_ptr, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):
    places = tl.arange(0, BLOCK)
    y, slope = ACTIVATION.with_derivatives(tl.load(x_ptr + places), *ACTIVATION.constants)
    tl.store(y_ptr + places, ACTIVATION.function(tl.load(x_ptr + places), *ACTIVATION.constants))
    tl.store(y_ptr + BLOCK + places, y)
    tl.store(y_ptr + 2 * BLOCK + places, slope)


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "relu", "relu2", "silu", "situ"])
def test_functions_of_one_number_over_their_range(name, device):
    x = torch.cat([torch.linspace(-30, 30, 2041), torch.tensor([0.0, -0.0, 1e-6, -1e-6, 1e4, -1e4, float("nan")])])
    x = x.to(device)
    exact = x.double().requires_grad_()
    value = ACTIVATIONS[name](exact)
    (slope,) = torch.autograd.grad(value.sum(), exact)
    out = torch.empty(3, 2048, device=device)
    with np.errstate(over="ignore"):  # exp of large numbers, when interpreted
        _function_kernel[(1,)](x, out, ACTIVATION=ACTIVATIONS[name].triton, BLOCK=2048)
    for actual, expected in ((out[0], value), (out[1], value), (out[2], slope)):
        torch.testing.assert_close(actual[:-1].double(), expected[:-1].detach(), rtol=2e-6, atol=1e-6)
    assert out[:2, -1].isnan().all()


@triton.jit
def _tanh_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    places = tl.arange(0, BLOCK)
    tl.store(y_ptr + places, kernel_language.tanh(tl.load(x_ptr + places)))


def test_tanh_is_exact_to_a_relative_error(device):
    x = torch.cat([torch.linspace(-12, 12, 1025), torch.logspace(-30, 2, 1023), torch.tensor([0.0])])[:2048].to(device)
    y = torch.empty_like(x)
    with np.errstate(over="ignore"):  # exp of large numbers, when interpreted
        _tanh_kernel[(1,)](x, y, BLOCK=2048)
    torch.testing.assert_close(y.double(), x.double().tanh(), rtol=6e-7, atol=0.0)


def test_nan_and_values_beyond_the_limits_of_clamped_swiglu(path, device):
    operands = operands_of(_case(clamped_swiglu(limit=0.3)), torch.float32, device)
    check(operands)
    with torch.no_grad():
        operands.leaves["x"][2] = float("nan")
    out, expected = operands.run(), operands.exactly().run(impl="reference")
    assert torch.equal(out.isnan(), expected.isnan())


@pytest.mark.parametrize("limit", [7.0, 0.5])
def test_experts_of_gpt_oss(limit, path, device):
    """Biases, gates and values in turn, and weights stored input by output, which are used as they are."""
    torch.manual_seed(0)
    config = GptOssConfig(hidden_size=64, intermediate_size=48, num_local_experts=4, swiglu_limit=limit)
    config._experts_implementation = "eager"
    theirs = GptOssExperts(config).to(device)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.3)
    activation = clamped_swiglu(theirs.alpha, theirs.limit, interleaved=True)
    experts = FFNExperts(64, 48, 4, activation=activation, bias=True, impl="triton", device=device)
    matrices = {"up_proj": theirs.gate_up_proj, "down_proj": theirs.down_proj}
    for name, stored in matrices.items():
        setattr(experts, name, torch.nn.Parameter(stored.detach().mT))
    biases = {"up_bias": theirs.gate_up_proj_bias, "down_bias": theirs.down_proj_bias}
    for name, stored in biases.items():
        getattr(experts, name).data.copy_(stored.detach())
    x = torch.randn(19, 64, device=device, requires_grad=True)
    scores, ids = torch.randn(19, 4, device=device).softmax(-1).topk(2)
    gates = scores.detach().requires_grad_()
    out = experts(x, plan_dispatch(ids, 4), gates)
    expected = theirs(x, ids, gates)
    assert relative_error(out, expected) <= 1e-6
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    grad = torch.randn_like(out)
    own = torch.autograd.grad(out, [x, gates, *(getattr(experts, name) for name in (*matrices, *biases))], grad)
    right = torch.autograd.grad(expected, [x, gates, *matrices.values(), *biases.values()], grad)
    for name, actual, want in zip(("x", "gates", *matrices, *biases), own, right, strict=True):
        want = want.mT if name in matrices else want
        assert relative_error(actual, want) <= 1e-5, name
        torch.testing.assert_close(actual, want, rtol=1e-5, atol=1e-5 * want.abs().max().item(), msg=name)


def test_an_activation_of_names_and_objects_is_one(device):
    ids = torch.rand(7, 4, device=device).argsort(-1)[:, :2]
    by_name = FFNExperts(16, 8, 4, activation="clamped_swiglu_interleaved", impl="triton", device=device)
    by_object = FFNExperts(16, 8, 4, activation=clamped_swiglu(), impl="triton", device=device)
    by_object.load_state_dict(by_name.state_dict())
    x, gates = torch.randn(7, 16, device=device), torch.rand(7, 2, device=device)
    assert torch.equal(by_name(x, plan_dispatch(ids, 4), gates), by_object(x, plan_dispatch(ids, 4), gates))


def test_functions_that_are_no_pair_are_refused():
    with pytest.raises(ValueError, match=r"function must be a function with the decorator @triton.jit, got <function"):
        TritonActivation(_cosine, cosine_with_derivatives)
    with pytest.raises(ValueError, match=r"with_derivatives must be a function with the decorator @triton.jit"):
        TritonActivation(cosine, _cosine, (0.5,))
    with pytest.raises(ValueError, match=r"with_derivatives must take the parameters of function, got \['gate', 'va"):
        TritonActivation(identity, pair_without_constants)
    with pytest.raises(ValueError, match=r"function must take x, or gate and value, and then the 0 constants, got"):
        TritonActivation(shifted, shifted_with_derivatives)
    with pytest.raises(ValueError, match=r"triton must take gate and value, as gated=True says, got cosine\(0.5\)"):
        Activation(
            "test refused", _shifted, gated=True, triton=TritonActivation(cosine, cosine_with_derivatives, (0.5,))
        )
    with pytest.raises(ValueError, match=r"triton must take x alone, as gated=False says, got shifted\(0.5,2.0\)"):
        Activation("test refused", _cosine, triton=SHIFTED_FORM)


def test_all_tokens_of_a_routing_without_rows(path, device):
    routed = Routed(IDS, torch.zeros_like(KEPT), 4, 0)
    case = ffn_case(routed, 20, 12, 17, "swiglu", True)._replace(activation=activation_of(SHIFTED).name)
    check(operands_of(case, torch.float32, device))
