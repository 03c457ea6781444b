"""Every kind of layer with the parts of PyTorch that a model is trained, compiled and shipped with."""

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

from moekit import (
    ExpertChoiceRouter,
    FFNExperts,
    HardRouter,
    ModuleExperts,
    SoftMoE,
    SparseMoE,
    TopKRouter,
    ZeroExpert,
)
from tests.oracles import TOLERANCE, assert_close

DIM, EXPERTS = 8, 4
Options = dict[str, torch.device | torch.dtype | str]


def _experts(**options) -> FFNExperts:
    return FFNExperts(DIM, 6, EXPERTS, **options)


def _modules(options: Options) -> ModuleExperts:
    hidden = nn.Sequential(nn.Linear(DIM, 5, **options), nn.GELU(), nn.Linear(5, DIM, **options))
    return ModuleExperts([hidden, nn.Linear(DIM, DIM, **options), nn.Identity(), ZeroExpert()])


def _sigmoid(options: Options) -> TopKRouter:
    return TopKRouter(
        DIM, EXPERTS, 2, scoring="sigmoid", num_groups=2, topk_groups=1, selection_bias=True, gate_bias=True, **options
    )


LAYERS: dict[str, Callable[[Options], nn.Module]] = {
    "reference": lambda o: SparseMoE.ffn(DIM, 6, EXPERTS, 2, impl="reference", **o),
    "torch": lambda o: SparseMoE.ffn(DIM, 6, EXPERTS, 2, impl="torch", bias=True, **o),
    "shared": lambda o: SparseMoE.ffn(DIM, 6, EXPERTS, 2, shared_hidden_dim=5, capacity_factor=1.0, **o),
    "drop by gate": lambda o: SparseMoE(
        TopKRouter(DIM, EXPERTS, 2, **o), _experts(**o), capacity_factor=1.0, drop_policy="gate"
    ),
    "interleaved": lambda o: SparseMoE.ffn(DIM, 6, EXPERTS, 2, activation="swiglu_interleaved", bias=True, **o),
    "recompute all": lambda o: SparseMoE.ffn(DIM, 6, EXPERTS, 2, recompute="all", bias=True, **o),
    "recompute none": lambda o: SparseMoE(HardRouter(DIM, EXPERTS, **o), _experts(recompute="none", **o)),
    "function": lambda o: SparseMoE.ffn(DIM, 6, EXPERTS, 2, activation=torch.tanh, **o),
    "every expert": lambda o: SparseMoE.ffn(DIM, 6, EXPERTS, EXPERTS, activation="gelu", **o),
    "modules": lambda o: SparseMoE(TopKRouter(DIM, EXPERTS, 2, **o), _modules(o)),
    "sigmoid": lambda o: SparseMoE(_sigmoid(o), _experts(**o)),
    "hard": lambda o: SparseMoE(HardRouter(DIM, EXPERTS, **o), _experts(**o)),
    "expert choice": lambda o: SparseMoE(ExpertChoiceRouter(DIM, EXPERTS, **o), _experts(**o)),
    "soft": lambda o: SoftMoE(DIM, _experts(**o), slots_per_expert=2, **o),
}
layers = pytest.mark.parametrize("name", LAYERS)
COMPILED_ALWAYS = ("torch", "expert choice")
"""Layers whose compilation is tested in the short run; the others are, with the slow tests."""


def _layer(name: str, **options) -> nn.Module:
    layer = LAYERS[name](options)
    if options.get("device") != "meta":
        with torch.no_grad():
            for parameter in layer.parameters():
                if parameter.numel() > 1:  # not the scale of SoftMoE
                    parameter.normal_(std=0.5)
    return layer


def _x(*lead: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*(lead or (2, 6)), DIM, dtype=dtype, requires_grad=True)


def _loss(out) -> torch.Tensor:
    stats = out.stats
    sums = stats.prob_sum.square().sum() + stats.gate_sum.square().sum() + stats.entropy_sum + stats.logsumexp_sq_sum
    return out.output.float().square().sum() + sums


def _gradients(layer: nn.Module, x: torch.Tensor, function=None) -> list[torch.Tensor | None]:
    """Output, statistics and all gradients, in one list."""
    x = x.detach().requires_grad_()
    layer.zero_grad()
    out = (layer if function is None else function)(x)
    _loss(out).backward()
    return [out.output.detach(), *(s.detach() for s in out.stats), x.grad, *(p.grad for p in layer.parameters())]


def _same(results: list, expected: list, dtype: torch.dtype | None = None) -> None:
    for mine, theirs in zip(results, expected, strict=True):
        if mine is None or theirs is None:  # a module without tokens: no gradient, or under a compiler zeros
            assert not any(g is not None and g.any() for g in (mine, theirs))
        elif mine.is_floating_point():
            assert_close(mine, theirs, dtype)
        else:
            assert torch.equal(mine, theirs)


@pytest.fixture(autouse=True)
def _forget_compiled_code():
    # All layers share the code of SparseMoE.forward, and with it the limit of compilations.
    torch._dynamo.reset()


@layers
def test_gradcheck(name):
    layer = _layer(name, dtype=torch.float64)
    x = _x(5, dtype=torch.float64)
    names = [name for name, _ in layer.named_parameters()]

    def function(x, *values):
        out = torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))
        return out.output, out.stats.prob_sum, out.stats.gate_sum, out.stats.entropy_sum, out.stats.logsumexp_sq_sum

    assert torch.autograd.gradcheck(function, (x, *layer.parameters()), fast_mode=True)


@layers
@pytest.mark.parametrize("mode", ["real", "fake"])
def test_make_fx_traces_output_statistics_and_gradients(name, mode):
    layer = _layer(name)
    tensors = dict(layer.named_parameters()) | dict(layer.named_buffers())

    def results(x, *values):
        out = torch.func.functional_call(layer, dict(zip(tensors, values, strict=True)), (x,))
        trained = [value for value in values if value.requires_grad]
        return [out.output, *out.stats, *torch.autograd.grad(_loss(out), (x, *trained), allow_unused=True)]

    graph = make_fx(results, tracing_mode=mode)(_x(), *tensors.values())
    x = _x()  # other tokens than those of the trace
    _same(graph(x, *tensors.values()), results(x, *tensors.values()))


@pytest.mark.parametrize(
    "name", [name if name in COMPILED_ALWAYS else pytest.param(name, marks=pytest.mark.slow) for name in LAYERS]
)
def test_compile_without_a_break_or_a_recompilation(name):
    layer = _layer(name)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True, dynamic=True)
    compilations = set()
    for lead in ((2, 6), (3, 5), (2, 11)):
        x = _x(*lead)
        _same(_gradients(layer, x, compiled), _gradients(layer, x))
        compilations.add(counter.frame_count)
    assert len(compilations) == 1  # none after the first call


def test_compile_with_a_mask():
    layer = _layer("shared")
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    x, mask = _x(), torch.rand(2, 6) > 0.3
    _same(_gradients(layer, x, lambda x: compiled(x, mask=mask)), _gradients(layer, x, lambda x: layer(x, mask=mask)))


def test_inductor():
    layer = _layer("torch")
    x = _x(2, 7)
    _same(_gradients(layer, x, torch.compile(layer, fullgraph=True)), _gradients(layer, x))


@layers
def test_export_for_any_batch(name):
    layer = _layer(name).eval()
    dims = {"x": {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("tokens", max=64)}}
    program = torch.export.export(layer, (_x(3, 5).detach(),), dynamic_shapes=dims)
    for lead in ((3, 5), (2, 4), (5, 11)):
        x = _x(*lead).detach()
        exported, eager = program.module()(x), layer(x)
        _same([exported.output, *exported.stats], [eager.output, *eager.stats])


def test_export_of_a_routing_by_sample_for_any_batch():
    layer = SparseMoE(TopKRouter(3, EXPERTS, 2), _experts(), capacity_factor=1.0).eval()
    batch, tokens = torch.export.Dim("batch", max=64), torch.export.Dim("tokens", max=64)
    dims = {"x": {0: batch, 1: tokens}, "router_input": {0: batch}, "mask": {0: batch, 1: tokens}}

    def inputs(*lead):
        return {"x": _x(*lead).detach(), "router_input": torch.randn(lead[0], 3), "mask": torch.rand(*lead) > 0.2}

    program = torch.export.export(layer, (), inputs(3, 5), dynamic_shapes=dims)
    for lead in ((3, 5), (2, 4), (5, 11)):
        arguments = inputs(*lead)
        exported, eager = program.module()(**arguments), layer(**arguments)
        _same([exported.output, *exported.stats], [eager.output, *eager.stats])


class OutputOnly(nn.Module):
    """Returns the output alone: ``torch.export.save`` takes registered named tuples only."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x).output


@pytest.mark.parametrize("name", ["reference", "torch", "modules", "expert choice", "soft"])
def test_an_exported_program_survives_saving(name):
    layer = _layer(name).eval()
    x = _x().detach()
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(OutputOnly(layer), (x,)), buffer)
    buffer.seek(0)
    assert_close(torch.export.load(buffer).module()(x), layer(x).output)


@layers
def test_meta_device(name):
    layer = _layer(name, device="meta")
    assert all(t.is_meta for t in layer.state_dict().values())
    layer.to_empty(device="cpu")
    with torch.no_grad():
        for value in layer.state_dict().values():
            value.fill_(torch.nan)
    layer.apply(lambda module: module.reset_parameters() if hasattr(module, "reset_parameters") else None)
    assert all(value.isfinite().all() for value in layer.state_dict().values())
    assert layer(_x()).output.isfinite().all()
    layer.load_state_dict(_layer(name).state_dict())


@layers
def test_the_meta_device_reset_draws_from_the_same_distribution(name):
    direct = LAYERS[name]({})
    meta = _layer(name, device="meta").to_empty(device="cpu")
    meta.apply(lambda module: module.reset_parameters() if hasattr(module, "reset_parameters") else None)
    for (key, drawn), expected in zip(meta.state_dict().items(), direct.state_dict().values(), strict=True):
        assert drawn.dtype == expected.dtype
        # At most twice the largest of another draw of the same cut or uniform distribution.
        assert drawn.abs().max() <= 2 * expected.abs().max() + 1e-6, key


@layers
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(name, dtype):
    layer = _layer(name)
    x = _x()
    exact = _gradients(layer, x)
    with torch.autocast("cpu", dtype=dtype):
        out = layer(x)
        assert out.stats.prob_sum.dtype == out.stats.logsumexp_sq_sum.dtype == torch.float32
    rounded = _gradients(layer, x, lambda x: _under_autocast(layer, x, dtype))
    assert out.output.dtype == (torch.float32 if name == "modules" else dtype)  # Identity passes float32 on
    for mine, theirs in zip(rounded, exact, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            assert mine.isfinite().all()
            # The norm of the whole: single elements cancel. Forward and backward round half a dozen times.
            error = (mine.double() - theirs.double()).norm()
            assert error <= 2 * TOLERANCE[dtype] * theirs.double().norm().clamp(min=1)


def _under_autocast(layer, x, dtype):
    with torch.autocast("cpu", dtype=dtype):
        return layer(x)


@layers
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_layers_in_another_dtype(name, dtype):
    layer = _layer(name, dtype=dtype)
    exact = copy.deepcopy(layer).double()
    x = _x(dtype=dtype)
    out = layer(x)
    assert out.output.dtype == dtype
    assert out.stats.prob_sum.dtype == torch.promote_types(dtype, torch.float32)
    tolerance = TOLERANCE[dtype]
    expected = exact(x.double()).output
    assert (out.output.double() - expected).norm() <= tolerance * expected.norm()


@layers
def test_activation_checkpointing_changes_no_figure(name):
    layer = _layer(name)
    x = _x()
    counted = _gradients(layer, x, lambda x: checkpoint(layer, x, use_reentrant=False))
    plain = _gradients(layer, x)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(counted, plain, strict=True))


@layers
def test_copies_give_the_same_output(name):
    layer = _layer(name)
    x = _x().detach()
    expected = layer(x).output
    fresh = _layer(name)
    fresh.load_state_dict(layer.state_dict())
    saved = io.BytesIO()
    torch.save(layer.state_dict(), saved)
    saved.seek(0)
    loaded = _layer(name, device="meta")
    loaded.load_state_dict(torch.load(saved), assign=True)
    for other in (fresh, loaded, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x).output, expected)
        assert all(mine is not theirs for mine, theirs in zip(other.parameters(), layer.parameters(), strict=True))


@layers
def test_functional_call(name):
    layer, other = _layer(name), _layer(name)
    x = _x().detach()
    out = torch.func.functional_call(layer, other.state_dict(), (x,))
    assert torch.equal(out.output, other(x).output)
    assert not torch.equal(out.output, layer(x).output)


@layers
@pytest.mark.parametrize("lead", [(0,), (0, 3), (3, 0)])
def test_no_tokens(name, lead):
    layer = _layer(name)
    x = _x(*lead)
    results = _gradients(layer, x)
    assert results[0].shape == x.shape
    assert all(value is None or value.isfinite().all() for value in results)
    assert not any(p.grad is not None and p.grad.any() for p in layer.parameters())
    assert layer(x).stats.num_tokens == 0


@layers
def test_one_token(name):
    layer = _layer(name)
    results = _gradients(layer, _x(1))
    assert all(value is None or value.isfinite().all() for value in results)
    assert results[0].any() or name == "modules"  # which may choose to skip


@layers
def test_strided_input(name):
    layer = _layer(name)
    x = _x(6, 2).detach().transpose(0, 1)
    assert not x.is_contiguous()
    _same(_gradients(layer, x), _gradients(layer, x.contiguous()))
    expanded = _x(1, 1).detach().expand(3, 4, DIM)
    _same(_gradients(layer, expanded), _gradients(layer, expanded.contiguous()))


@pytest.mark.parametrize("name", ["reference", "torch", "shared", "function", "modules", "sigmoid", "hard"])
def test_experts_without_tokens(name):
    layer = _layer(name)
    routing = layer.route(_x())
    ids = torch.zeros_like(routing.expert_ids)  # a token may hold one expert twice: only the sums matter
    out = layer(_x(), routing=routing._replace(expert_ids=ids))
    out.output.square().sum().backward()
    for key, parameter in layer.experts.named_parameters():
        if isinstance(layer.experts, FFNExperts):
            assert parameter.grad[0].any()
            assert not parameter.grad[1:].any()
        else:
            assert parameter.grad.any() if key.startswith("experts.0.") else parameter.grad is None


def test_no_gradient_is_asked_for_without_need():
    layer = _layer("torch").requires_grad_(False)
    assert not layer(_x().detach()).output.requires_grad
    x = _x()
    layer(x).output.sum().backward()
    assert x.grad.any()
