"""Statistics that are computed when they are read: the numbers and gradients of those that are computed at once."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import Tensor
from torch.nn.parallel.distributed import _find_tensors
from torch.utils import _pytree
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from moekit import (
    ExpertChoiceRouter,
    FFNExperts,
    RouterStats,
    SparseMoE,
    TopKRouter,
    deferred_stats,
    load_balancing_loss,
    router_stats,
)
from moekit.deferred_stats import DeferredStats

TOKENS, DIM, EXPERTS = 12, 8, 4


def _layer() -> SparseMoE:
    torch.manual_seed(0)
    return SparseMoE.ffn(DIM, 6, EXPERTS, 2)


def _x(**options) -> Tensor:
    return torch.randn(TOKENS, DIM, generator=torch.Generator().manual_seed(1)).requires_grad_(**options)


def _at_once(layer: SparseMoE, x: Tensor, **options) -> RouterStats:
    routing = layer.route(x)
    return router_stats(routing, layer.plan(routing))


def _loss(stats: RouterStats) -> Tensor:
    return load_balancing_loss(stats) + stats.gate_sum.square().sum() + stats.logsumexp_sq_sum + 2 * stats.entropy_sum


def _assert_same(mine, theirs) -> None:
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(mine, theirs, strict=True))


@pytest.fixture
def computed(monkeypatch) -> list[int]:
    """One number for each time that statistics are computed."""
    calls: list[int] = []
    original = deferred_stats.sum_up
    monkeypatch.setattr(deferred_stats, "sum_up", lambda *arguments: calls.append(1) or original(*arguments))
    return calls


def test_nothing_is_computed_until_a_field_is_read_and_then_once(computed) -> None:
    layer, x = _layer(), _x()
    output, stats = layer(x)
    output.sum().backward()
    assert not computed
    assert isinstance(stats, RouterStats)
    assert isinstance(stats, DeferredStats)
    assert stats.prob_sum is stats.prob_sum
    _assert_same(stats, _at_once(layer, x))
    assert len(computed) == 1


@pytest.mark.parametrize("router", ["top-k", "expert choice", "noisy", "capacity"])
def test_numbers_and_gradients_are_those_of_statistics_computed_at_once(router: str) -> None:
    layer = _layer()
    if router == "expert choice":
        layer.router = ExpertChoiceRouter(DIM, EXPERTS)
    elif router == "noisy":
        layer.router = TopKRouter(DIM, EXPERTS, 2, noisy=True)
    elif router == "capacity":
        layer.capacity_factor = 0.5
    x = _x()
    torch.manual_seed(3)
    stats = layer(x).stats
    torch.manual_seed(3)
    expected = _at_once(layer, x)
    _assert_same(stats, expected)
    parameters = [x, *layer.router.parameters()]
    mine, theirs = (
        torch.autograd.grad(_loss(each) + each.load.square().sum(), parameters, allow_unused=True)
        for each in (stats, expected)
    )
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("reading", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_gradients_are_those_of_the_mode_of_the_call_not_of_the_reading(reading) -> None:
    layer, x = _layer(), _x()
    stats = layer(x).stats
    with reading():
        assert stats.prob_sum.requires_grad
    _loss(stats).backward()
    assert layer.router.gate.layers[0].weight.grad is not None
    for calling in (torch.no_grad, torch.inference_mode):
        with calling():
            stats = layer(x).stats
        assert not stats.prob_sum.requires_grad
        assert stats.prob_sum.is_inference() == (calling is torch.inference_mode)


def test_it_is_a_tuple_of_the_fields_in_all_that_python_does(computed) -> None:
    layer, x = _layer(), _x(requires_grad=False)
    expected = _at_once(layer.requires_grad_(False), x)
    stats = layer(x).stats
    for values in (list(stats), tuple(stats), [*stats], RouterStats(*stats), stats[:], stats._asdict().values()):
        _assert_same(values, expected)
    assert torch.equal(stats[2], expected[2])
    assert len(stats) == 9
    assert stats == stats.computed()
    assert not stats.__ne__(stats.computed())  # a tuple has a comparison of its own for "!="
    assert hash(stats) == hash(stats.computed())
    assert repr(stats) == repr(expected)
    assert stats.tokens_per_expert in stats
    assert len(computed) == 1
    changed = layer(x).stats._replace(load=torch.zeros(EXPERTS))
    assert type(changed) is RouterStats
    assert not changed.load.any()
    _assert_same(layer(x).stats + layer(x).stats, expected + expected)
    _assert_same(sum([layer(x).stats, layer(x).stats]), expected + expected)
    for copied in (copy.copy, copy.deepcopy, lambda stats: pickle.loads(pickle.dumps(stats))):
        again = copied(layer(x).stats)
        assert type(again) is RouterStats
        _assert_same(again, expected)


def test_wrappers_that_look_for_tensors_find_those_of_the_statistics() -> None:
    layer, x = _layer(), _x()
    leaves, spec = _pytree.tree_flatten(layer(x))
    assert len(leaves) == len(list(_find_tensors(layer(x)))) == 10
    rebuilt = _pytree.tree_unflatten(leaves, spec)
    assert type(rebuilt.stats) is RouterStats
    _assert_same(rebuilt.stats, layer(x).stats)


@pytest.mark.parametrize("place", ["gates", "expert_ids", "logits", "probs"])
def test_a_routing_that_is_modified_before_is_an_error(place: str) -> None:
    layer, x = _layer(), _x(requires_grad=False)
    held = []
    layer.router.register_forward_hook(lambda module, inputs, routing: held.append(routing))
    with torch.no_grad():
        stats, early = layer(x).stats, layer(x).stats
        assert early.num_tokens == TOKENS
        for routing in held:
            getattr(routing, place).zero_()
    with pytest.raises(RuntimeError, match="were modified in place since: read them before, or modify a copy"):
        print(stats)
    assert early.num_tokens == TOKENS


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's own: of scatter
def test_a_replayed_routing_is_counted_at_once_and_so_is_a_masked_or_unfinished_call() -> None:
    layer, x = _layer(), _x(requires_grad=False)
    assert type(layer(x, routing=layer.route(x)).stats) is RouterStats
    assert type(layer(x, mask=torch.ones(TOKENS, dtype=torch.bool)).stats) is RouterStats
    x[3] = torch.nan
    stats = layer(x).stats
    assert type(stats) is RouterStats
    assert stats.nonfinite_tokens == 1
    with FlopCounterMode(display=False):
        assert type(layer(_x()).stats) is RouterStats
    assert torch.func.vmap(lambda x: layer(x).stats.prob_sum)(_x().unsqueeze(0)).shape == (1, EXPERTS)


def test_what_is_kept_is_small_and_let_go_when_it_was_read() -> None:
    layer, x = _layer(), _x(requires_grad=False)
    held: list[weakref.ref] = []
    layer.router.register_forward_hook(lambda module, inputs, routing: held.append(weakref.ref(routing.logits)))
    with torch.no_grad():
        stats = layer(x).stats
    call = stats._call
    tensors = [*call.routing, *call.counted, call.tokens_per_expert, call.dropped_per_expert]
    assert all(t.numel() <= TOKENS * EXPERTS for t in tensors if isinstance(t, Tensor))
    del call, tensors
    assert held[0]() is not None
    assert stats.num_tokens == TOKENS
    gc.collect()
    assert held[0]() is None


def test_checkpointed_calls_have_the_gradients_of_their_statistics() -> None:
    layer, x = _layer(), _x()
    _loss(layer(x).stats).backward()
    expected, x.grad = x.grad, None
    out = checkpoint(layer, x, use_reentrant=False)
    (_loss(out.stats) + 0 * out.output.sum()).backward()
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own, of its inputs
def test_compiled_functions_take_them() -> None:
    layer, x = _layer(), _x()
    compiled = torch.compile(lambda stats: _loss(stats) + sum(t.sum() for t in stats), backend="eager", fullgraph=True)
    for _ in range(2):
        stats = layer(x).stats
        expected = _at_once(layer, x)
        torch.testing.assert_close(compiled(stats), _loss(expected) + sum(t.sum() for t in expected))
        _assert_same(stats, expected)


def test_reading_inside_a_transform_leaves_nothing_of_it_behind() -> None:
    layer, x = _layer(), _x(requires_grad=False)
    with torch.no_grad():
        stats = layer(x).stats
    scaled = torch.func.vmap(lambda factor: factor * stats.prob_sum)(torch.arange(3.0))
    torch.testing.assert_close(scaled[2], 2 * stats.prob_sum)
    _assert_same(stats, _at_once(layer, x))


def test_experts_of_another_plan_are_refused_at_once() -> None:
    layer = SparseMoE(TopKRouter(DIM, EXPERTS, 2, impl="reference"), FFNExperts(DIM, 6, EXPERTS))
    routing = layer.route(_x())
    with pytest.raises(ValueError, match="plan must be made from the routing"):
        router_stats(routing, layer.plan(layer.route(_x()[:5])))
