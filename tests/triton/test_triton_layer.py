"""Whole layers on Triton kernels: the same function as the reference, in everything that PyTorch does with a module."""

import io

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from moekit import ExpertChoiceRouter, FFNExperts, SparseMoE, TopKRouter, ZeroComputationExperts
from tests.triton.tolerances import assert_near

DIM, EXPERTS = 8, 4


def _experts(impl, **options):
    return FFNExperts(DIM, 6, EXPERTS, impl=impl, **options)


LAYERS = {
    "plain": lambda impl: SparseMoE(TopKRouter(DIM, EXPERTS, 2, impl=impl), _experts(impl)),
    "biases": lambda impl: SparseMoE(
        TopKRouter(DIM, EXPERTS, 3, impl=impl, gate_bias=True), _experts(impl, bias=True, activation="gelu")
    ),
    "groups": lambda impl: SparseMoE(
        TopKRouter(
            DIM, EXPERTS, 2, impl=impl, scoring="sigmoid", num_groups=2, topk_groups=1, selection_bias=True,
            scaling_factor=2.5,
        ),
        _experts(impl, activation="swiglu_interleaved"),
    ),
    "capacity": lambda impl: SparseMoE(
        TopKRouter(DIM, EXPERTS, 2, impl=impl, scoring="topk_softmax"),
        _experts(impl, recompute=_for_fused(impl, "all")),
        capacity_factor=0.6,
    ),
    "gates on inputs": lambda impl: SparseMoE(
        TopKRouter(DIM, EXPERTS, 2, impl=impl, scoring="sigmoid", renormalize=False),
        _experts(impl),
        gates_on="inputs",
    ),
    "zero and identity experts": lambda impl: SparseMoE(
        TopKRouter(DIM, EXPERTS + 3, 3, impl=impl, scoring="sqrt_softplus"),
        ZeroComputationExperts(_experts(impl), num_zero=1, num_identity=2),
        capacity_factor=0.9,
    ),
    "expert choice": lambda impl: SparseMoE(
        ExpertChoiceRouter(DIM, EXPERTS), _experts(impl, recompute=_for_fused(impl, "none"))
    ),
}  # fmt: skip
layers = pytest.mark.parametrize("name", LAYERS)
two_layers = pytest.mark.parametrize(  # in the short run; the others with the slow tests
    "name",
    [name if name in ("plain", "expert choice") else pytest.param(name, marks=pytest.mark.slow) for name in LAYERS],
)


def _for_fused(impl, recompute):
    """What only the fused kernels take; the default for the reference."""
    return recompute if impl == "triton" else "activation"


@pytest.fixture(autouse=True)
def _forget_compiled_code():
    torch._dynamo.reset()


def _pair(name, device):
    """A layer on kernels, and its twin on the reference."""
    layer, twin = LAYERS[name]("triton").to(device), LAYERS[name]("reference").to(device)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.5)
        if name == "groups":
            layer.router.selection_bias.uniform_(-0.1, 0.1)
    twin.load_state_dict(layer.state_dict())
    return layer, twin


def _x(device, *lead):
    return torch.randn(*(lead or (2, 6)), DIM, device=device)


def _results(layer, x, function=None, **arguments):
    """Output, statistics and all gradients by name."""
    x = x.detach().requires_grad_()
    layer.zero_grad()
    out = (layer if function is None else function)(x, **arguments)
    stats = out.stats
    sums = stats.prob_sum.square().sum() + stats.gate_sum.square().sum() + stats.entropy_sum + stats.logsumexp_sq_sum
    (out.output.float().square().sum() + sums).backward()
    results = {"output": out.output.detach(), "x": x.grad}
    results |= {name: value.detach() for name, value in stats._asdict().items()}
    return results | {name: parameter.grad for name, parameter in layer.named_parameters()}


def _near(actual, expected, dtype=torch.float32):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        if value.is_floating_point():
            assert_near(actual[name], value, dtype, name, least=1e-1)
        else:
            assert torch.equal(actual[name], value), name


def _equal(actual, expected):
    assert all(torch.equal(actual[name], value) for name, value in expected.items())


@layers
@pytest.mark.parametrize("masked", [False, True])
def test_the_layer_is_its_twin_on_the_reference(device, name, masked):
    layer, twin = _pair(name, device)
    x = _x(device, 3, 7)
    mask = {"mask": torch.rand(3, 7, device=device) > 0.3} if masked else {}
    _near(_results(layer, x, **mask), _results(twin, x, **mask))


def test_a_token_that_is_not_finite_changes_no_other(device):
    layer, twin = _pair("plain", device)
    x = _x(device, 9)
    x[4, 0] = torch.inf
    actual, expected = layer(x), twin(x)
    assert actual.output[4].isnan().all()
    assert_near(actual.output, expected.output, torch.float32)
    assert actual.stats.nonfinite_tokens == 1
    assert torch.equal(actual.stats.tokens_per_expert, expected.stats.tokens_per_expert)


@layers
def test_the_same_bits_twice(device, name):
    layer, _ = _pair(name, device)
    x = _x(device, 11)
    _equal(_results(layer, x), _results(layer, x))


@layers
@pytest.mark.parametrize("lead", [(0,), (3, 0), (1,)])
def test_no_token_and_one(device, name, lead):
    layer, twin = _pair(name, device)
    x = _x(device, *lead)
    _near(_results(layer, x), _results(twin, x))


@pytest.mark.parametrize("name", ["plain", "capacity"])
def test_compiled_without_a_break_or_a_recompilation(device, name):
    layer, _ = _pair(name, device)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True, dynamic=True)
    compilations = set()
    for lead in ((2, 6), (3, 5), (2, 11)):
        x = _x(device, *lead)
        _near(_results(layer, x, compiled), _results(layer, x))
        compilations.add(counter.frame_count)
    assert len(compilations) == 1


@pytest.mark.parametrize("name", ["plain", "biases", "expert choice"])
def test_exported_for_any_batch(device, name):
    layer = _pair(name, device)[0].eval()
    dims = {"x": {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("tokens", max=64)}}
    program = torch.export.export(layer, (_x(device, 3, 5),), dynamic_shapes=dims)
    for lead in ((3, 5), (2, 4)):
        x = _x(device, *lead)
        assert torch.equal(program.module()(x).output, layer(x).output)


class OutputOnly(nn.Module):
    """``torch.export.save`` knows no named tuples but registered ones."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x).output


def test_an_exported_program_survives_saving(device):
    layer = _pair("plain", device)[0].eval()
    x = _x(device)
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(OutputOnly(layer), (x,)), buffer)
    buffer.seek(0)
    assert torch.equal(torch.export.load(buffer).module()(x), layer(x).output)


@two_layers
def test_activation_checkpointing_changes_no_bit(device, name):
    layer, _ = _pair(name, device)
    x = _x(device)
    _equal(_results(layer, x, lambda x: checkpoint(layer, x, use_reentrant=False)), _results(layer, x))


def test_a_replayed_routing_gives_the_same(device):
    layer, _ = _pair("plain", device)
    x = _x(device)
    routing = layer.route(x)
    _equal(
        {"output": layer(x, routing=routing).output, "stats": layer(x, routing=routing).stats.prob_sum},
        {"output": layer(x).output, "stats": layer(x).stats.prob_sum},
    )


@two_layers
def test_functional_call(device, name):
    layer, other = _pair(name, device)[0], _pair(name, device)[0]
    x = _x(device)
    out = torch.func.functional_call(layer, other.state_dict(), (x,))
    assert torch.equal(out.output, other(x).output)
    assert not torch.equal(out.output, layer(x).output)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(device, dtype):
    layer, twin = _pair("biases", device)
    x = _x(device, 9)
    exact = _results(twin, x)
    with torch.autocast(device.type, dtype=dtype):
        out = layer(x)
    assert out.output.dtype == dtype
    assert out.stats.prob_sum.dtype == torch.float32

    def run(x):
        with torch.autocast(device.type, dtype=dtype):
            return layer(x)

    actual = _results(layer, x, run)
    for name, value in exact.items():
        if value.is_floating_point():
            # Weights and tokens are rounded too; single elements cancel, so the whole is compared.
            assert (actual[name].double() - value.double()).norm() <= 4e-2 * value.double().norm().clamp(min=1), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_layers_in_half_precision(device, dtype):
    layer, _ = _pair("plain", device)
    layer = layer.to(dtype)
    exact = SparseMoE(TopKRouter(DIM, EXPERTS, 2, impl="reference"), _experts("reference")).to(device)
    exact.load_state_dict(layer.state_dict())
    exact = exact.double()
    x = _x(device, 12).to(dtype)
    out, expected = layer(x), exact(x.double())
    assert out.output.dtype == dtype
    assert torch.equal(out.stats.tokens_per_expert, expected.stats.tokens_per_expert)
    assert_near(out.output, expected.output, dtype)


def test_float64_is_refused_by_name(device):
    layer = _pair("plain", device)[0].double()
    with pytest.raises(ValueError, match=r'impl="triton".*float64'):
        layer(_x(device).double())


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's own: kernels have no batching rule
@pytest.mark.filterwarnings("ignore:torch.searchsorted")
@two_layers
def test_vmap_takes_one_sample_after_the_other(device, name):
    layer, _ = _pair(name, device)
    x = _x(device, 3, 5)
    with torch.no_grad():
        actual = torch.vmap(lambda x: layer(x).output)(x)
        expected = torch.stack([layer(sample).output for sample in x])
    assert_near(actual, expected, torch.float32)


def test_gradients_inside_a_function_transform_are_refused(device):
    layer, _ = _pair("plain", device)
    with pytest.raises(RuntimeError, match=r"autograd\.Function with functorch transforms"):
        torch.func.grad(lambda x: layer(x).output.sum())(_x(device, 5))


def test_frozen_experts_get_no_gradient_and_the_others_theirs(device):
    layer, twin = _pair("biases", device)
    for module in (layer, twin):
        module.experts.requires_grad_(False)
    x = _x(device)
    actual, expected = _results(layer, x), _results(twin, x)
    for name in ("x", "router.gate.layers.0.weight"):
        assert_near(actual[name], expected[name], torch.float32, name)
    assert all(parameter.grad is None for parameter in layer.experts.parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@layers
def test_a_captured_step_replays(name):
    device = torch.device("cuda")
    layer, _ = _pair(name, device)
    static = _x(device, 16)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), torch.no_grad():
        for _ in range(3):
            layer(static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        captured = layer(static).output
    fresh = _x(device, 16)
    static.copy_(fresh)
    graph.replay()
    with torch.no_grad():
        assert torch.equal(captured, layer(fresh).output)
