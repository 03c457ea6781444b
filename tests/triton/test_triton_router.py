"""``TopKRouter(impl="triton")`` alone and in a layer, against the same router in plain PyTorch."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from moekit import FFNExperts, MoEOutput, SparseMoE, TopKRouter, router_stats
from moekit import routing as routing_module

DIM, EXPERTS = 8, 6
ROUTERS = {
    "softmax": {},
    "topk_softmax": {"scoring": "topk_softmax", "scaling_factor": 2.0},
    "sigmoid": {"scoring": "sigmoid", "selection_bias": True, "num_groups": 3, "topk_groups": 2},
    "sqrt_softplus": {"scoring": "sqrt_softplus", "num_groups": 3, "topk_groups": 2, "group_score": "max"},
    "plain": {"renormalize": False, "gate_bias": True},
}
routers = pytest.mark.parametrize("name", ROUTERS)


def make_router(device: torch.device, impl: str = "triton", **options) -> TopKRouter:
    torch.manual_seed(0)
    router = TopKRouter(DIM, EXPERTS, 2, impl=impl, init_scale=4.0, **options)
    if router.selection_bias is not None:
        router.selection_bias.copy_(0.1 * torch.randn(EXPERTS))
    return router.to(device)


def make_layer(device: torch.device, name: str, impl: str = "triton") -> SparseMoE:
    router = make_router(device, impl, **ROUTERS[name])
    return SparseMoE(router, FFNExperts(DIM, 5, EXPERTS, impl="reference").to(device))


def make_input(device: torch.device, *lead: int) -> Tensor:
    return torch.randn(*lead, DIM, generator=torch.Generator().manual_seed(1)).to(device)


def loss_of(out: MoEOutput) -> Tensor:
    stats = out.stats
    sums = stats.prob_sum.square().sum() + stats.gate_sum.square().sum() + stats.entropy_sum + stats.logsumexp_sq_sum
    return out.output.square().sum() + sums


def results(layer: nn.Module, x: Tensor, function=None, **options) -> list[Tensor]:
    """Output, statistics and all gradients."""
    x = x.detach().requires_grad_()
    layer.zero_grad()
    out = (layer if function is None else function)(x, **options)
    loss_of(out).backward()
    return [out.output.detach(), *(s.detach() for s in out.stats), x.grad, *(p.grad for p in layer.parameters())]


def assert_same(actual: list | tuple, expected: list | tuple) -> None:
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5, equal_nan=True)


@pytest.fixture
def recomputed(monkeypatch) -> list[tuple[object, ...]]:
    """The arguments of every routing whose sums were computed again."""
    calls: list[tuple[object, ...]] = []
    original = routing_module.routing_sums

    def recorded(*arguments, **options):
        calls.append(arguments)
        return original(*arguments, **options)

    monkeypatch.setattr(routing_module, "routing_sums", recorded)
    return calls


@routers
@pytest.mark.parametrize("masked", [False, True])
def test_a_layer_gives_what_the_reference_gives(device, recomputed, name: str, masked: bool) -> None:
    x = make_input(device, 3, 5)
    options = {"mask": torch.arange(15, device=device).view(3, 5) % 4 > 0} if masked else {}
    actual = results(make_layer(device, name), x, **options)
    assert not recomputed
    assert_same(actual, results(make_layer(device, name, "reference"), x, **options))
    assert len(recomputed) == 1


@routers
def test_a_routing_has_the_fields_of_the_reference(device, name: str) -> None:
    x = make_input(device, 7)
    x[2, 1] = torch.nan
    actual = make_router(device, **ROUTERS[name])(x)
    expected = make_router(device, "reference", **ROUTERS[name])(x)
    assert_same(actual[:5], expected[:5])
    assert actual.logits.isfinite().all()
    assert actual.sums.mask is None
    assert expected.sums is None


def test_noisy_logits_choose_and_clean_logits_are_counted(device) -> None:
    x = make_input(device, 9)
    x[2, 1] = torch.nan
    routings = []
    for impl in ("triton", "reference"):
        router = make_router(device, impl, noisy=True)
        nn.init.normal_(router.gate.layers[0].weight, generator=torch.Generator(device).manual_seed(0))
        torch.manual_seed(5)
        routings.append(router(x))
    rows = torch.arange(9, device=device) != 2
    actual, expected = routings
    assert torch.equal(actual.expert_ids[rows], expected.expert_ids[rows])
    assert_same(
        [actual.gates, actual.logits, actual.probs, actual.valid, actual.load_probs],
        [expected.gates, expected.logits, expected.probs, expected.valid, expected.load_probs],
    )
    assert actual.sums is None
    actual.gates[rows].square().sum().backward()
    assert router.eval()(x[rows]).load_probs is None


def test_sums_are_used_only_with_the_tensors_and_the_mask_that_they_were_made_with(device, recomputed) -> None:
    layer, x = make_layer(device, "softmax"), make_input(device, 10)
    mask = torch.arange(10, device=device) > 3
    routing = layer.route(x, mask=mask)
    plan = layer.plan(routing, mask)
    same = router_stats(routing, plan, routing.sums.mask)
    assert not recomputed
    assert_same(router_stats(routing, plan, mask.clone()), same)
    assert len(recomputed) == 1
    every = router_stats(routing, plan)
    assert not every.prob_sum.allclose(same.prob_sum)
    assert len(recomputed) == 2
    doubled = router_stats(routing._replace(gates=2 * routing.gates), plan, routing.sums.mask)
    torch.testing.assert_close(doubled.gate_sum, 2 * same.gate_sum)
    assert len(recomputed) == 3


def test_one_decision_per_sample_is_counted_once_per_token(device, recomputed) -> None:
    x, context = make_input(device, 3, 5), make_input(device, 3)
    actual = results(make_layer(device, "softmax"), x, router_input=context)
    assert len(recomputed) == 1
    assert_same(actual, results(make_layer(device, "softmax", "reference"), x, router_input=context))


def test_a_routing_is_replayed(device) -> None:
    layer, x = make_layer(device, "softmax"), make_input(device, 6)
    replayed, fresh = layer(x, routing=layer.route(x)), layer(x)
    assert_same([replayed.output, *replayed.stats], [fresh.output, *fresh.stats])


@routers
def test_compiles_without_a_break_or_a_recompilation(device, name: str) -> None:
    torch._dynamo.reset()
    layer = make_layer(device, name)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True, dynamic=True)
    compilations = set()
    for lead in ((2, 6), (3, 5), (2, 11)):
        x, mask = make_input(device, *lead), torch.ones(lead, dtype=torch.bool, device=device)
        mask[0, 1] = False
        assert_same(results(layer, x, compiled, mask=mask), results(layer, x, mask=mask))
        compilations.add(counter.frame_count)
    assert len(compilations) == 1


def test_exports_for_any_number_of_tokens(device) -> None:
    layer = make_layer(device, "sigmoid").eval()
    dims = {"x": {0: torch.export.Dim("tokens", max=64)}}
    program = torch.export.export(layer, (make_input(device, 5),), dynamic_shapes=dims)
    for tokens in (5, 3, 17):
        x = make_input(device, tokens)
        exported, eager = program.module()(x), layer(x)
        assert_same([exported.output, *exported.stats], [eager.output, *eager.stats])


def test_activation_checkpointing_gives_the_same(device) -> None:
    layer, x = make_layer(device, "softmax"), make_input(device, 6)
    again = results(layer, x, lambda x: checkpoint(layer, x, use_reentrant=False))
    assert_same(again, results(layer, x))


def test_functional_call_and_half_precision(device) -> None:
    router, x = make_router(device), make_input(device, 6)
    weights = {name: value.detach().clone() for name, value in router.named_parameters()}
    assert_same(torch.func.functional_call(router, weights, (x,))[:5], router(x)[:5])
    half = copy.deepcopy(router).bfloat16()
    routing = half(x.bfloat16())
    assert routing.gates.dtype == routing.probs.dtype == torch.float32


def test_vmap_routes_each_batch_with_gradients(device) -> None:
    router, x = make_router(device), make_input(device, 3, 6)

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        routing = router(x)
        return routing.gates, routing.sums.sums.prob_sum

    gates, prob_sum = torch.vmap(both)(x)
    alone = [both(part) for part in x]
    assert_same([gates, prob_sum], [torch.stack(field) for field in zip(*alone, strict=True)])
    gates.square().sum().backward()
    actual = router.gate.layers[0].weight.grad.clone()
    router.zero_grad()
    sum(both(part)[0].square().sum() for part in x).backward()
    assert_same([actual], [router.gate.layers[0].weight.grad])


def test_gradients_inside_a_function_transform_are_refused(device) -> None:
    router = make_router(device)
    with pytest.raises(RuntimeError, match=r"autograd\.Function with functorch transforms"):
        torch.func.grad(lambda x: router(x).gates.square().sum())(make_input(device, 6))


def test_float64_is_refused(device) -> None:
    router = make_router(device).double()
    with pytest.raises(ValueError, match=r"takes logits of bfloat16, float16 and float32, got torch.float64"):
        router(make_input(device, 3).double())
