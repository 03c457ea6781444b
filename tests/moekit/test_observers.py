"""Layers report their routing to observers, once for each forward pass, and compute the same."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

from moekit import ExpertChoiceRouter, FFNExperts, SoftMoE, SparseMoE
from moekit.observers import RoutingEvent, add_observer, notify, observed, remove_observer


@pytest.fixture
def events() -> Iterator[list[RoutingEvent]]:
    kept: list[RoutingEvent] = []
    add_observer(kept.append)
    yield kept
    remove_observer(kept.append)


def test_nothing_is_observed_without_an_observer() -> None:
    assert not observed()
    with pytest.raises(ValueError, match="observer must be one that was added"):
        remove_observer(notify)


def test_a_layer_reports_what_it_chose_under_its_mask(events: list[RoutingEvent]) -> None:
    layer = SparseMoE.ffn(8, 8, num_experts=4, top_k=2, capacity_factor=0.5)
    x, mask = torch.randn(2, 5, 8), torch.rand(2, 5) > 0.3
    stats = layer(x, mask=mask).stats
    (event,) = events
    assert event.layer is layer
    assert event.expert_ids is not None
    assert torch.equal(event.expert_ids, layer.route(x, mask=mask).expert_ids)
    assert event.mask is not None
    assert torch.equal(event.mask, mask.flatten())
    assert torch.equal(event.tokens_per_expert, stats.tokens_per_expert)
    assert torch.equal(event.dropped_per_expert, stats.dropped_per_expert)
    assert event.probs is not None
    assert not event.probs.requires_grad


def test_expert_choice_and_soft_mixtures_report_too(events: list[RoutingEvent]) -> None:
    SparseMoE(ExpertChoiceRouter(8, 4), FFNExperts(8, 8, 4))(torch.randn(6, 8))
    soft = SoftMoE(8, FFNExperts(8, 8, 4), slots_per_expert=2)
    soft(torch.randn(3, 5, 8), mask=torch.ones(3, 5, dtype=torch.bool))
    choice, mixed = events
    assert choice.expert_ids is None
    assert choice.token_ids is not None
    assert choice.token_ids.shape == (4, 3)
    assert mixed.expert_ids is None
    assert mixed.tokens_per_expert is not None
    assert mixed.tokens_per_expert.tolist() == [6] * 4
    assert mixed.probs is not None
    torch.testing.assert_close(mixed.probs.sum(-1), torch.ones(15))


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_call_is_reported_once(events: list[RoutingEvent], reentrant: bool) -> None:
    layer = SparseMoE.ffn(8, 8, num_experts=4, top_k=2)

    def run(x: Tensor) -> Tensor:
        return layer(x).output

    checkpoint(run, torch.randn(6, 8, requires_grad=True), use_reentrant=reentrant).sum().backward()
    assert len(events) == 1


def test_transforms_are_not_reported(events: list[RoutingEvent]) -> None:
    layer = SparseMoE.ffn(8, 8, num_experts=4, top_k=2, impl="reference")
    x = torch.randn(6, 8)

    def run(x: Tensor) -> Tensor:
        return layer(x).output

    torch.func.grad(lambda x: run(x).sum())(x)
    assert events == []


def test_traces_are_not_reported(events: list[RoutingEvent]) -> None:
    layer = SparseMoE.ffn(8, 8, num_experts=4, top_k=2)
    make_fx(lambda x: layer(x).output)(torch.randn(6, 8))
    assert events == []


def test_compiled_code_reports_nothing_and_stays_one_graph(events: list[RoutingEvent]) -> None:
    layer = SparseMoE.ffn(8, 8, num_experts=4, top_k=2)
    x = torch.randn(6, 8)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x).output, layer(x).output)
    assert len(events) == 1
