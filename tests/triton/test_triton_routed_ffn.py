"""A whole layer as one operation: the same bits as its parts, in everything that compiled code does with it."""

import pytest
import torch
from torch import nn
from torch._dynamo.testing import EagerAndRecordGraphs
from torch.utils.checkpoint import checkpoint

from moekit import FFNExperts, RouterStats, SparseMoE, TopKRouter
from moekit_kernels.flops import routed_ffn_backward_flops, routed_ffn_flops

DIM, EXPERTS, HIDDEN = 8, 4, 6
OPS = torch.ops.moekit

LAYERS = {
    "plain": lambda: SparseMoE.ffn(DIM, HIDDEN, EXPERTS, 2, impl="triton"),
    "shared": lambda: SparseMoE.ffn(DIM, HIDDEN, EXPERTS, 1, impl="triton", shared_hidden_dim=5),
    "biases": lambda: SparseMoE(
        TopKRouter(DIM, EXPERTS, 3, impl="triton", gate_bias=True, return_logits=False),
        FFNExperts(DIM, HIDDEN, EXPERTS, bias=True, activation="gelu", out_dim=7, recompute="all"),
        impl="triton",
    ),
    "groups": lambda: SparseMoE(
        TopKRouter(
            DIM, EXPERTS, 2, impl="triton", scoring="sigmoid", num_groups=2, topk_groups=1, selection_bias=True,
            scaling_factor=2,
        ),
        FFNExperts(DIM, HIDDEN, EXPERTS, activation="swiglu_interleaved", impl="triton", recompute="none"),
        impl="triton",
    ),
}  # fmt: skip
CASES = [(name, loss) for name in LAYERS for loss in ("all", "output", "stats")]


@pytest.fixture(autouse=True)
def _forget_compiled_code():
    torch._dynamo.reset()


def _layer(name, device):
    layer = LAYERS[name]().to(device)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.5)
        if layer.router.selection_bias is not None:
            layer.router.selection_bias.uniform_(-0.1, 0.1)
    return layer


def _x(device, *lead):
    return torch.randn(*(lead or (2, 6)), DIM, device=device)


def _results(layer, x, function=None, loss="all"):
    """Output, statistics and all gradients by name."""
    x = x.detach().requires_grad_()
    layer.zero_grad()
    out = (layer if function is None else function)(x)
    stats = out.stats
    sums = stats.prob_sum.square().sum() + stats.gate_sum.square().sum() + stats.entropy_sum + stats.logsumexp_sq_sum
    losses = {"output": out.output.square().sum(), "stats": sums}
    (losses["output"] + sums if loss == "all" else losses[loss]).backward()
    results = {"output": out.output.detach(), "x": x.grad}
    results |= {name: value.detach() for name, value in stats._asdict().items()}
    return results | {name: parameter.grad for name, parameter in layer.named_parameters()}


def _equal(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        if value is None or actual[name] is None:  # compiled code makes zeros of no gradient
            assert actual[name] is value or not (actual[name] if value is None else value).any(), name
            continue
        assert actual[name].dtype == value.dtype, name
        torch.testing.assert_close(actual[name], value, rtol=1e-6, atol=1e-6, equal_nan=True)


def _operations(layer, x, **arguments):
    """Names of the operations of this package in the graph of a call."""
    backend = EagerAndRecordGraphs()
    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(layer, backend=backend, fullgraph=True)(x, **arguments)
    (graph,) = backend.graphs
    nodes = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    return [name.split(".")[1] for name in nodes if name.startswith("moekit.")]


@pytest.mark.parametrize(
    ("name", "loss"),
    [("plain", "all"), *(pytest.param(*case, marks=pytest.mark.slow) for case in CASES if case != ("plain", "all"))],
)
def test_compiled_layers_are_one_operation_with_the_numbers_of_their_parts(device, name, loss):
    layer = _layer(name, device)
    assert _operations(layer, _x(device)) == ["routed_ffn"]
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    for lead in ((2, 6), (13,)):
        x = _x(device, *lead)
        _equal(_results(layer, x, compiled, loss), _results(layer, x, loss=loss))


@pytest.mark.parametrize("name", ["shared", pytest.param("biases", marks=pytest.mark.slow)])
def test_without_gradients_and_without_statistics(device, name):
    layer, x = _layer(name, device), _x(device)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        out, expected = compiled(x), layer(x)
        assert torch.equal(out.output, expected.output)
        assert isinstance(out.stats, RouterStats)
        assert all(torch.equal(mine, its) for mine, its in zip(out.stats, expected.stats, strict=True))
        assert compiled(x, stats=False).stats is None
        torch.testing.assert_close(compiled(x, stats=False).output, expected.output)


def test_tokens_that_are_not_finite_and_no_tokens(device):
    layer = _layer("plain", device)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=False)
    x = _x(device, 9)
    x[4, 0] = torch.inf
    _equal(_results(layer, x, compiled), _results(layer, x))
    _equal(_results(layer, _x(device, 0), compiled), _results(layer, _x(device, 0)))


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [("router",), ("experts",), ("x",), ("x", "router"), ("experts.up_proj", "x")])
def test_frozen_parts_get_no_gradient_and_the_others_theirs(device, frozen):
    layer = _layer("biases", device)
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(not any(name.startswith(each) for each in frozen))
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)

    def gradients(function):
        x = torch.ones(5, DIM, device=device).requires_grad_("x" not in frozen)
        layer.zero_grad()
        function(x).output.square().sum().backward()
        return {"x": x.grad, **{name: parameter.grad for name, parameter in layer.named_parameters()}}

    _equal(gradients(compiled), gradients(layer))


@pytest.mark.slow
def test_activation_checkpointing_in_compiled_code(device):
    layer, x = _layer("plain", device), _x(device)
    compiled = torch.compile(lambda x: checkpoint(layer, x, use_reentrant=False), backend="aot_eager", fullgraph=True)
    _equal(_results(layer, x, compiled), _results(layer, x))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.slow
@pytest.mark.parametrize(("keep", "keep_pre", "keep_hidden"), [(False, False, False), (True, True, True)])
def test_passes_opcheck(device, keep, keep_pre, keep_hidden):
    # Of sizes that leave no gaps between the parts of what is kept: gaps are not written.
    layer = SparseMoE(
        TopKRouter(DIM, 5, 3, gate_bias=True, device=device),
        FFNExperts(DIM, HIDDEN, 5, bias=True, activation="gelu", device=device),
    )
    gate, experts = layer.router.gate.layers[0], layer.experts
    tensors = (gate.weight, gate.bias, None, experts.up_proj, experts.down_proj, experts.up_bias, experts.down_bias)
    tensors = tuple(None if t is None else t.detach().requires_grad_(keep) for t in tensors)
    options = (3, "softmax", True, 1.0, None, None, "top2_sum", "gelu", keep, keep_pre, keep_hidden)
    torch.library.opcheck(OPS.routed_ffn, (_x(device, 8), *tensors, *options))


@pytest.mark.slow
def test_its_backward_pass_passes_opcheck(device):
    layer = _layer("plain", device)
    gate, experts = layer.router.gate.layers[0], layer.experts
    weights = [t.detach() for t in (gate.weight, experts.up_proj, experts.down_proj)]
    tensors = (weights[0], None, None, *weights[1:], None, None)
    options = (2, "softmax", True, 1.0, None, None, "top2_sum", "swiglu", True, True, False)
    x = _x(device, 5)
    kept = OPS.routed_ffn(x, *tensors, *options)[10:]
    grads = (torch.randn(5, DIM, device=device), torch.randn(EXPERTS, device=device), None, None, None)
    arguments = (*grads, x, *tensors[:2], *tensors[3:], *kept, None, 2, "softmax", True, 1.0, "swiglu")
    torch.library.opcheck(OPS.routed_ffn_backward, (*arguments, True, True, False, True, True))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own, in its forward mode
def test_second_derivatives_and_forward_mode_are_refused(device):
    layer, x = _layer("plain", device), _x(device, 3).requires_grad_()
    gate, experts = layer.router.gate.layers[0], layer.experts
    options = (2, "softmax", True, 1.0, None, None, "top2_sum", "swiglu", True, True, False)
    output = OPS.routed_ffn(x, gate.weight, None, None, experts.up_proj, experts.down_proj, None, None, *options)[0]
    (gradient,) = torch.autograd.grad(output.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r'routed_ffn has first-order gradients only.*impl="reference"'):
        gradient.sum().backward()
    compiled = torch.compile(lambda x: layer(x).output, backend="eager")
    with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        torch.func.jvp(compiled, (x.detach(),), (x.detach(),))


class Doubled(nn.Module):
    """A wrapper around a part."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, *arguments):
        return self.part(*arguments)


def _hooked(part):
    part.register_forward_hook(lambda module, inputs, output: output)


def _changed(**settings):
    def change(layer):
        for name, value in settings.items():
            setattr(layer, name, value)

    return change


NOT_SERVED = {
    "capacity": _changed(capacity_factor=1.0),
    "gates on inputs": _changed(gates_on="inputs"),
    "noise": lambda layer: setattr(layer.router, "jitter", 0.1),
    "hooked gate": lambda layer: _hooked(layer.router.gate),
    "hooked router": lambda layer: _hooked(layer.router),
    "hooked experts": lambda layer: _hooked(layer.experts),
    "wrapped experts": lambda layer: setattr(layer, "experts", Doubled(layer.experts)),
    "wrapped router": lambda layer: setattr(layer, "router", Doubled(layer.router)),
    "activation that is a function": lambda layer: setattr(
        layer,
        "experts",
        FFNExperts(DIM, HIDDEN, EXPERTS, activation=torch.tanh, device=layer.experts.up_proj.device),
    ),
}


FAST = ("capacity", "hooked gate")


@pytest.mark.parametrize(
    "kind", ["capacity", "hooked gate", *(pytest.param(k, marks=pytest.mark.slow) for k in NOT_SERVED if k not in FAST)]
)
def test_what_one_operation_does_not_serve_is_traced_part_by_part(device, kind):
    layer, x = _layer("plain", device), _x(device)
    if kind == "activation that is a function":
        layer.impl = "auto"
    NOT_SERVED[kind](layer)
    names = _operations(layer, x)
    assert names
    assert "routed_ffn" not in names


@pytest.mark.parametrize("argument", ["mask", "routing", "router_input"])
def test_calls_with_more_than_tokens_are_traced_part_by_part(device, argument):
    layer, x = _layer("plain", device), _x(device, 5)
    values = {"mask": torch.ones(5, dtype=torch.bool, device=device), "router_input": x}
    with torch.no_grad():
        value = layer.route(x) if argument == "routing" else values[argument]
    assert "routed_ffn" not in _operations(layer, x, **{argument: value})


def test_under_autocast_and_exported_it_is_traced_part_by_part(device):
    layer, x = _layer("plain", device).eval(), _x(device, 5)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert "routed_ffn" not in _operations(layer, x)
    for strict in (False, True):
        program = torch.export.export(layer, (x,), strict=strict)
        names = [str(node.target) for node in program.graph.nodes]
        assert "moekit.moe_ffn.default" in names
        assert "moekit.routed_ffn.default" not in names


def test_wrong_tokens_are_refused_as_ever(device):
    layer = _layer("plain", device)
    compiled = torch.compile(layer, backend="eager", fullgraph=False)
    with pytest.raises(
        ValueError, match=r"router_input \(x unless given\) must have a last dimension of 8, got shape \(3, 9\)"
    ):
        compiled(torch.randn(3, DIM + 1, device=device))


@pytest.mark.slow
def test_a_setting_that_changes_is_seen(device):
    layer, x = _layer("plain", device), _x(device)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for top_k, scoring in ((2, "softmax"), (3, "softmax"), (3, "sigmoid")):
        layer.router.top_k, layer.router.scoring = top_k, scoring
        torch.testing.assert_close(compiled(x).output, layer(x).output)
    layer.experts.activation = "geglu"
    torch.testing.assert_close(compiled(x).output, layer(x).output)


def test_its_products_are_counted():
    x, gate, up, down = (10, 8), (4, 8), (4, 12, 8), (4, 8, 6)
    of_router, of_experts = 2 * 10 * 8 * 4, 2 * 20 * (12 * 8 + 8 * 6)
    assert routed_ffn_flops(x, gate, None, None, up, down, None, None, 2) == of_router + of_experts
    more = (None, None, None, None, x, gate, None, up, down, None, None, (99,), (99,))
    rest = (2, "softmax", True, 1.0, "swiglu", True, True, False, True, True)
    assert routed_ffn_backward_flops(x, *more, (20, 12), None, *rest) == 2 * (of_router + of_experts)
    assert routed_ffn_backward_flops(None, *more, (20, 12), None, *rest) == 2 * of_router
