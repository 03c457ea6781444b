"""When the router multiplies by the gate's weight in its own kernel, and when it calls the gate as it is."""

import copy

import pytest
import torch
import torch.nn.modules.module as module_hooks
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

from moekit import FFNExperts, Routing, SparseMoE, TopKRouter, load_balancing_loss, router_stats, router_z_loss
from moekit.routers import top_k as top_k_module
from moekit.routers.gate import Gate
from moekit_kernels.routing.options import RouteOptions

DIM, EXPERTS, TOKENS = 40, 6, 11


def make_router(device: torch.device, impl: str = "triton", **options) -> TopKRouter:
    torch.manual_seed(0)
    return TopKRouter(DIM, EXPERTS, 2, impl=impl, init_scale=4.0, **options).to(device)


def make_input(device: torch.device, *lead: int) -> Tensor:
    return torch.randn(*(lead or (TOKENS,)), DIM, generator=torch.Generator().manual_seed(1)).to(device)


@pytest.fixture
def fused(monkeypatch) -> list[Tensor]:
    """The inputs of every routing that multiplied by the weight itself."""
    calls: list[Tensor] = []
    original = top_k_module.route_linear_by

    def recorded(options: RouteOptions, x: Tensor, *arguments):
        calls.append(x)
        return original(options, x, *arguments)

    monkeypatch.setattr(top_k_module, "route_linear_by", recorded)
    return calls


def results(router: nn.Module, x: Tensor) -> list[Tensor]:
    """Decision, sums, and the gradients of input and parameters that have one."""
    x = x.detach().requires_grad_()
    router.zero_grad()
    routing = router(x)
    sums = routing.sums.sums
    (
        routing.gates.square().sum() + sums.prob_sum.square().sum() + sums.logsumexp_sq_sum + routing.logits.sum()
    ).backward()
    gradients = [p.grad for p in router.parameters() if p.grad is not None]
    return [*(t.detach() for t in (*routing[:5], *sums)), x.grad, *gradients]


def assert_same(actual: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5)


class AddedAdapter(nn.Module):
    """A linear layer with a low-rank update beside it."""

    def __init__(self, layer: nn.Linear, scale: float) -> None:
        super().__init__()
        self.layer = layer
        device = layer.weight.device
        self.down = nn.Parameter(scale * torch.randn(2, layer.in_features, device=device))
        self.up = nn.Parameter(torch.randn(layer.out_features, 2, device=device))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + x @ self.down.T @ self.up.T


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_a_plain_gate_is_never_called_and_gives_the_same(
    device, fused, monkeypatch, bias: bool, training: bool
) -> None:
    router, x = make_router(device, gate_bias=bias).train(training), make_input(device)
    with monkeypatch.context() as patched:
        patched.setattr(Gate, "forward", lambda *_: pytest.fail("the gate was called"))
        actual = results(router, x)
    assert len(fused) == 1
    handle = router.gate.register_forward_hook(lambda *_: None)
    assert_same(actual, results(router, x))
    handle.remove()
    assert len(fused) == 1


def test_an_adapter_on_the_gate_takes_part(device, fused) -> None:
    router, x = make_router(device), make_input(device)
    without = results(router, x)
    router.gate.layers[0] = AddedAdapter(router.gate.layers[0], scale=0.0)
    beside_zeros = router(x)
    assert len(fused) == 1
    assert_same([*beside_zeros[:5]], without[:5])
    router.gate.layers[0] = AddedAdapter(router.gate.layers[0].layer, scale=1.0)
    reference = copy.deepcopy(router)
    reference.impl = "reference"
    routing = router(x)
    assert not torch.allclose(routing.logits, without[2])
    torch.testing.assert_close(routing.logits, reference(x).logits, rtol=2e-5, atol=2e-5)
    routing.gates.square().sum().backward()
    assert router.gate.layers[0].down.grad.ne(0).any()
    assert len(fused) == 1


def hooked(module: nn.Module, kind: str, calls: list[str]) -> None:
    """Registers a hook that notes its call."""
    getattr(module, f"register_{kind}")(lambda *_: calls.append(kind))


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"])
@pytest.mark.parametrize("of_layer", [False, True])
def test_hooks_of_the_gate_fire(device, fused, kind: str, of_layer: bool) -> None:
    router, x, calls = make_router(device), make_input(device).requires_grad_(), []
    hooked(router.gate.layers[0] if of_layer else router.gate, kind, calls)
    router(x).gates.square().sum().backward()
    assert calls == [kind]
    assert not fused


def test_global_hooks_fire_for_the_gate(device, fused) -> None:
    router, x, seen = make_router(device), make_input(device), []
    handle = module_hooks.register_module_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    try:
        router(x)
    finally:
        handle.remove()
    assert "Gate" in seen
    assert not fused
    router(x)
    assert len(fused) == 1


def another_gate(router: TopKRouter, kind: str) -> None:
    """Makes the gate something else than one plain linear layer."""
    gate, layer = router.gate, router.gate.layers[0]
    if kind == "parametrised":
        parametrize.register_parametrization(layer, "weight", Doubled())
    elif kind == "forward of the layer":
        layer.forward = lambda x: 2 * x @ layer.weight.T
    elif kind == "forward of the gate":
        gate.forward = lambda x: 2 * x @ layer.weight.T
    elif kind == "subclass of the gate":
        gate.__class__ = type("TwiceGate", (Gate,), {"forward": lambda self, x: 2 * Gate.forward(self, x)})
    elif kind == "subclass of the weight":
        layer.weight = nn.Parameter(layer.weight.detach().as_subclass(CountsTwice))
    elif kind == "compiled":
        layer.weight.data.mul_(2)
        layer.compile(backend="eager")


class CountsTwice(Tensor):
    """A weight that is used as twice its value."""

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), options=None):
        if function is nn.functional.linear:
            x, weight, bias = arguments
            return function(x, 2 * weight.as_subclass(Tensor), bias)
        return super().__torch_function__(function, types, arguments, options)


KINDS = [
    "parametrised",
    "forward of the layer",
    "forward of the gate",
    "subclass of the gate",
    "subclass of the weight",
    "compiled",
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_gate_that_is_not_plain_is_called(device, fused, kind: str) -> None:
    router, x = make_router(device), make_input(device)
    before = router(x).logits
    assert len(fused) == 1
    another_gate(router, kind)
    torch.testing.assert_close(router(x).logits, 2 * before, rtol=2e-5, atol=2e-5)
    assert len(fused) == 1


@pytest.mark.parametrize("options", [{"gate_hidden_dim": 5}, {"gate": nn.Linear(DIM, EXPERTS)}])
def test_gates_of_another_kind_are_called(device, fused, options: dict) -> None:
    router, x = make_router(device, **options), make_input(device)
    assert_same([*router(x)[:5]], [*make_router(device, "reference", **options)(x)[:5]])
    assert not fused


@pytest.mark.parametrize("options", [{"jitter": 0.1}, {"noisy": True}])
def test_noise_is_drawn_in_training_alone(device, fused, options: dict) -> None:
    router, x = make_router(device, **options), make_input(device)
    router(x)
    assert not fused
    router.eval()(x)
    assert len(fused) == 1


def test_more_experts_than_a_tile_holds(device, fused) -> None:
    torch.manual_seed(0)
    router = TopKRouter(DIM, 257, 2, impl="triton").to(device)
    x = make_input(device)
    reference = copy.deepcopy(router)
    reference.impl = "reference"
    assert_same([*router(x)[:5]], [*reference(x)[:5]])
    assert not fused


def test_under_autocast_the_gate_computes_in_float32(device, fused) -> None:
    router, x = make_router(device), make_input(device)
    expected = router(x)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        actual = router(x)
    assert len(fused) == 2
    assert all(torch.equal(a, b) for a, b in zip(actual[:5], expected[:5], strict=True))


class Ops(TorchDispatchMode):
    """The operations that compute something."""

    FREE = ("empty", "view", "expand", "squeeze", "detach", "alias", "slice", "select", "permute", "split")

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not any(str(func).startswith(f"aten.{name}") for name in self.FREE):
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_kernel_of_torch_runs_around_the_routers(device, dtype: torch.dtype) -> None:
    layer = SparseMoE(make_router(device), FFNExperts(DIM, 5, EXPERTS).to(device), impl="triton")
    layer, x = layer.to(dtype), make_input(device).to(dtype)
    with torch.no_grad(), Ops() as ops:
        routing = layer.route(x)
    assert ops.names == ["moekit.route_linear.default"]
    plan = layer.plan(routing)
    with torch.no_grad(), Ops() as ops:
        stats = router_stats(routing, plan)
    assert ops.names == []
    assert stats.load.dtype == torch.float32
    assert torch.equal(stats.load.long(), plan.tokens_per_expert)


@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize("masked", [False, True])
def test_a_layer_whose_router_returns_no_logits(device, impl: str, masked: bool) -> None:
    experts = FFNExperts(DIM, 5, EXPERTS, impl="reference").to(device)
    mask = torch.arange(TOKENS, device=device) % 4 > 0 if masked else None
    outcomes = []
    for returned in (True, False):
        layer = SparseMoE(make_router(device, impl, return_logits=returned), experts)
        x = make_input(device).requires_grad_()
        output, stats = layer(x, mask=mask)
        loss = output.square().sum() + load_balancing_loss(stats) + router_z_loss(stats)
        (x_gradient,) = torch.autograd.grad(loss, x)
        outcomes.append([output, *stats, x_gradient])
        routing = layer.route(x, mask=mask)
        assert (routing.logits is None) == (routing.probs is None) == (not returned)
        assert routing.num_experts == EXPERTS
    for with_logits, without in zip(*outcomes, strict=True):
        assert torch.equal(with_logits, without)


def test_a_routing_without_probabilities_is_not_counted_otherwise_than_its_router_did(device) -> None:
    layer = SparseMoE(
        make_router(device, return_logits=False), FFNExperts(DIM, 5, EXPERTS, impl="reference").to(device)
    )
    routing = layer.route(make_input(device))
    plan = layer.plan(routing)
    mask = torch.ones(TOKENS, dtype=torch.bool, device=device)
    for edited, its_mask in ((routing, mask), (routing._replace(gates=2 * routing.gates), None)):
        with pytest.raises(ValueError, match="routing must have the sums that its router made with these tensors"):
            router_stats(edited, plan, its_mask)
    with pytest.raises(
        ValueError, match=r"router must return probabilities where tokens share a decision.*return_logits"
    ):
        layer(make_input(device, 3, 5), router_input=make_input(device, 3))
    with pytest.raises(ValueError, match="routing must have probs or the sums of its router"):
        Routing(routing.gates, routing.expert_ids, None, None, routing.valid).num_experts  # noqa: B018
