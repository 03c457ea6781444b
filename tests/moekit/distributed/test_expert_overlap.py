"""What is computed while rows are on their way: shared experts, and the experts of another micro-batch."""

import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from moekit import FFN, FFNExperts, SparseMoE, TopKRouter
from moekit.distributed import average_gradients_, expert_parallel_
from tests.moekit.distributed.ranks import Ranks, division

pytestmark = pytest.mark.slow

DIM = 6


class Marked(torch.autograd.Function):
    """Tells when it is computed, and when its gradient is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str, events: list[str]) -> Tensor:
        ctx.name, ctx.events = name, events
        events.append(name)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        ctx.events.append(f"gradient of {ctx.name}")
        return grads[0], None, None


class Shared(nn.Module):
    def __init__(self, events: list[str]) -> None:
        super().__init__()
        self.ffn, self.events = FFN(DIM, 5), events

    def forward(self, x: Tensor) -> Tensor:
        return Marked.apply(self.ffn(x), "shared", self.events)


class Observed:
    """A work handle that tells when it is waited for."""

    def __init__(self, work: Any, number: int, events: list[str]) -> None:
        self.work, self.number, self.events = work, number, events

    def wait(self) -> None:
        self.events.append(f"wait {self.number}")
        self.work.wait()


def order_of_a_step(options: dict[str, Any]) -> list[str]:
    """What happens in one step of a layer: exchanges of rows that start and are waited for, and computations."""
    torch.manual_seed(0)
    events: list[str] = []
    if options.pop("two_stage", False):
        options["two_stage"] = division(1, 4).two_stage

    def activation(hidden: Tensor) -> Tensor:
        return Marked.apply(hidden.relu(), "experts", events)

    experts = FFNExperts(DIM, 5, 8, activation=activation)
    layer = SparseMoE(TopKRouter(DIM, 8, 3), experts, shared=Shared(events))
    expert_parallel_(layer, division(1, 4).mesh["ep"], **options)
    plain, started = dist.all_to_all_single, [0]

    def observed(*arguments: Any, async_op: bool = False, **rest: Any) -> Any:
        work = plain(*arguments, async_op=async_op, **rest)
        if not async_op:
            return work
        started[0] += 1
        events.append(f"start {started[0]}")
        return Observed(work, started[0], events)

    dist.all_to_all_single = observed
    try:
        x = torch.randn(16, DIM, requires_grad=True)
        output = layer(x).output
        events.append("backward")
        output.sum().backward()
    finally:
        dist.all_to_all_single = plain
    return events


PLAIN = """start 1, shared, wait 1, experts, start 2, wait 2, backward,
    start 3, wait 3, gradient of experts, start 4, gradient of shared, wait 4"""
# Rows and gates leave one after the other.
PAIRS = """start 1, start 2, shared, wait 1, wait 2, experts, start 3, wait 3, backward,
    start 4, wait 4, gradient of experts, start 5, start 6, gradient of shared, wait 5, wait 6"""
# Rows of the second micro-batch travel while the experts compute the first, whose results travel while they compute it.
TWO = """start 1, shared, start 2, wait 1, experts, start 3, wait 2, experts, start 4, wait 3, wait 4, backward,
    start 5, start 6, wait 5, gradient of experts, start 7, wait 6, gradient of experts, start 8, wait 7,
    gradient of shared, wait 8"""


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, PLAIN),
        ({"two_stage": True}, PLAIN),
        ({"deduplicate": True}, PAIRS),
        ({"max_slots_factor": 2.0}, PLAIN),
        ({"micro_batches": 2}, TWO),
    ],
)
def test_order(ranks: Ranks, options: dict[str, Any], expected: str) -> None:
    for events in ranks.run(order_of_a_step, options):
        assert events == [each.strip() for each in expected.split(",")]


class Plain(nn.Module):
    """A wrapper of experts, which the layer does not ask to compute something else meanwhile."""

    def __init__(self, experts: nn.Module) -> None:
        super().__init__()
        self.experts, self.num_experts = experts, experts.num_experts

    def forward(self, *arguments: Any) -> Tensor:
        return self.experts(*arguments)


def bits_of_a_step(options: dict[str, Any], how: str) -> list[Tensor]:
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    layer = SparseMoE(
        TopKRouter(DIM, 8, 3), FFNExperts(DIM, 5, 8), shared=FFN(DIM, 5, gated=True), gates_on=options.pop("gates_on")
    )
    expert_parallel_(layer, division(1, 4).mesh["ep"], **options)
    if how == "after":
        layer.experts = Plain(layer.experts)
    elif how == "checkpointed":
        layer.experts = checkpoint_wrapper(layer.experts)
    whole = checkpoint_wrapper(layer) if how == "layer checkpointed" else layer
    x = torch.randn(9, DIM, generator=torch.Generator().manual_seed(dist.get_rank()), requires_grad=True)
    mask = torch.arange(9) > 1
    output = whole(x, mask=mask).output
    output.sin().sum().backward()
    average_gradients_(layer)
    grads = [each.grad.to_local() if hasattr(each.grad, "to_local") else each.grad for each in layer.parameters()]
    return [output.detach(), x.grad, *grads]


@pytest.mark.parametrize("gates_on", ["outputs", "inputs"])
@pytest.mark.parametrize("options", [{}, {"deduplicate": True}, {"max_slots_factor": 2.0}, {"micro_batches": 2}])
def test_same_bits_as_one_after_the_other(ranks: Ranks, options: dict[str, Any], gates_on: str) -> None:
    options = {**options, "gates_on": gates_on}
    expected = ranks.run(bits_of_a_step, options, "after")
    for how in ("meanwhile", "checkpointed", "layer checkpointed"):
        for mine, theirs in zip(ranks.run(bits_of_a_step, options, how), expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True)), how


def twice(retain: bool) -> list[Tensor]:
    """Gradients of two backward passes through one graph, or of two steps."""
    torch.manual_seed(0)
    layer = expert_parallel_(SparseMoE.ffn(DIM, 5, 8, 2, shared_hidden_dim=5), division(1, 4).mesh["ep"])
    x = torch.randn(9, DIM, requires_grad=True)
    output = layer(x).output
    output.sum().backward(retain_graph=retain)
    (output if retain else layer(x).output).sum().backward()
    return [x.grad, layer.experts.up_proj.grad.to_local(), layer.shared.up_proj.weight.grad]


def test_a_graph_is_gone_through_again(ranks: Ranks) -> None:
    for again, anew in zip(ranks.run(twice, True), ranks.run(twice, False), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(again, anew, strict=True))
