"""What is recorded of routers of transformers: probabilities where their rule is known, decisions elsewhere."""

import pytest
import torch
from torch import nn

from benchmarks.families.build import build
from benchmarks.families.compare import output_of, tokens
from moekit.inspect import record_routing
from moekit.interop import register_experts
from moekit.interop.transformers._probabilities import router_probabilities
from moekit.observers import RoutingEvent, add_observer, remove_observer
from tests.moekit.transformers_families import DIM, MARKS, block_of, model_of

pytestmark = [*MARKS, pytest.mark.usefixtures("quiet_transformers")]


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
