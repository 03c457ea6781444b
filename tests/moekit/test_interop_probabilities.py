"""What is recorded of routers of transformers: probabilities where their rule is known, decisions elsewhere."""

import pytest
import torch
from torch import nn

from benchmarks.families.build import build
from benchmarks.families.compare import output_of, tokens
from moekit.inspect import RoutingRecord, record_routing
from moekit.interop import from_transformers, register_experts, swap_moe_blocks_
from moekit.interop.transformers._probabilities import router_probabilities
from moekit.observers import RoutingEvent, add_observer, remove_observer
from tests.moekit.transformers_families import DIM, FAMILIES, MARKS, block_of, blocks_in, model_of

pytestmark = [*MARKS, pytest.mark.usefixtures("quiet_transformers")]


# Of each kind: router, router with a bias elsewhere, block that routes, gates on inputs, identity experts, groups.
@pytest.mark.parametrize("family", ["mixtral", "minimax_m2", "dbrx", "llama4", "longcat_flash", "deepseek_v2"])
def test_a_swapped_block_records_the_figures_of_the_layer_that_it_becomes(family: str) -> None:
    model = model_of(family)
    block = blocks_in(model)[0]
    layer = from_transformers(block).eval()
    with swap_moe_blocks_(model), record_routing(model) as record, record_routing(layer) as expected:
        for _ in range(2):
            x = torch.randn(2, 5, DIM)
            block(x)
            layer(x)
    _assert_same_record(record, expected)


# Those whose experts have no setting, and report only where they are swapped.
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ("dbrx", "llama4", "longcat_flash")])
def test_registered_experts_are_recorded_with_the_probabilities_of_their_routers(family: str) -> None:
    register_experts()
    model = model_of(family)
    block = blocks_in(model)[0]
    layer = from_transformers(block).eval()
    model.set_experts_implementation("moekit")
    hooks = [len(module._forward_hooks) for module in model.modules()]
    with record_routing(block) as record, record_routing(layer) as expected:
        for _ in range(2):
            x = torch.randn(2, 5, DIM)
            block(x)
            layer(x)
    _assert_same_record(record, expected)
    assert [len(module._forward_hooks) for module in model.modules()] == hooks


def _assert_same_record(record: RoutingRecord, expected: RoutingRecord) -> None:
    (mine,), (theirs,) = record.layers.values(), expected.layers.values()
    torch.testing.assert_close(mine.windows, theirs.windows)
    torch.testing.assert_close(mine.prob_sum, theirs.prob_sum)
    assert torch.equal(mine.coactivation, theirs.coactivation)
    (figures,) = record.summaries()
    assert 1 / figures.num_experts < figures.confidence < 1


def test_probabilities_of_another_call_are_left_out() -> None:
    model = model_of("mixtral")
    block = blocks_in(model)[0]
    ids, gates = torch.zeros(3, 2, dtype=torch.int64), torch.ones(3, 2)
    with swap_moe_blocks_(model), record_routing(model) as record:
        block.gate(torch.randn(5, DIM))
        block.experts(torch.randn(3, DIM), ids, gates)
        block.experts(torch.randn(3, DIM), ids, gates)
    (figures,) = record.summaries()
    assert (figures.tokens, figures.confidence) == (6, None)


def test_of_a_family_whose_rule_is_not_known_decisions_alone_are_recorded() -> None:
    register_experts()
    model = build("afmoe")
    model.set_experts_implementation("moekit")
    with torch.no_grad(), record_routing(model) as record:
        output_of(model, tokens())
    for figures in record.summaries():
        assert figures.slots > 0
        assert (figures.confidence, figures.prob_entropy) == (None, None)


def test_recording_changes_no_bit_and_leaves_no_hook() -> None:
    register_experts()
    model = model_of("mixtral")
    model.set_experts_implementation("moekit")
    before = output_of(model, tokens())
    with record_routing(model):
        assert torch.equal(output_of(model, tokens()), before)
    assert not any(module._forward_hooks for module in model.modules())


class Returns(nn.Module):
    """A router that returns what it is told."""

    def __init__(self, output: object) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: torch.Tensor) -> object:
        return self.output


def reported(output: object) -> list[RoutingEvent]:
    block = block_of("mixtral")
    block.gate = Returns(output)
    events: list[RoutingEvent] = []
    add_observer(events.append)
    try:
        with router_probabilities(block):
            block.gate(torch.zeros(3, DIM))
    finally:
        remove_observer(events.append)
    return events


def test_probabilities_that_a_router_returns_are_taken_as_they_are() -> None:
    logits = torch.tensor([[1.0, 2.0, -1.0, 0.0], [0.5, 0.5, 0.5, 0.5]])
    (event,) = reported((logits, None))
    assert event.probs is not None
    torch.testing.assert_close(event.probs, logits.softmax(-1))
    (again,) = reported((logits.softmax(-1), None))
    torch.testing.assert_close(again.probs, event.probs)


def test_tokens_that_are_not_finite_are_marked() -> None:
    (event,) = reported(torch.tensor([[0.0, float("nan"), 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))
    assert event.valid is not None
    assert event.valid.tolist() == [False, True]
    assert event.probs is not None
    assert event.probs.sum(-1).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("output", [(), None, torch.zeros(3, dtype=torch.int64), torch.zeros(3), ("text",)])
def test_a_router_that_returns_no_logits_reports_nothing(output: object) -> None:
    assert reported(output) == []
