"""What cannot be divided is refused before anything changes, with a message that says what to do."""

from typing import Any

import pytest
import torch
from torch import nn

from moekit import CrossScaleExperts, HardRouter, ModuleExperts, SparseMoE, TopKRouter
from moekit.distributed import dropped_slots, expert_parallel_
from moekit.lora import add_lora_
from moekit.quantization import quantize_experts_
from tests.moekit.distributed.messages import message_of, other_messages
from tests.moekit.distributed.ranks import Ranks, division

pytestmark = pytest.mark.slow


def layer(num_experts: int = 8) -> SparseMoE:
    return SparseMoE.ffn(6, 5, num_experts, 2)


def error_of(model: nn.Module, mesh: Any, **options: Any) -> str:
    before = dict(model.named_parameters())
    message = message_of(expert_parallel_, model, mesh, **options)
    assert all(before[name] is parameter for name, parameter in model.named_parameters())
    return message


def errors() -> dict[str, str]:
    divided = division(2, 2)
    four = division(1, 4)
    experts = divided.mesh["ep"]
    wrapped = layer()
    wrapped.experts = nn.Sequential(wrapped.experts)
    tied = nn.ModuleList([layer(), layer()])
    tied[1].experts = tied[0].experts
    adapted, quantized = layer(), layer()
    add_lora_(adapted, rank=2)
    quantize_experts_(quantized)
    twice = expert_parallel_(layer(), experts)
    return {
        "no layer": error_of(nn.Linear(2, 2), experts),
        "two dimensions": error_of(layer(), divided.mesh),
        "too few": error_of(layer(5), four.mesh["ep"]),
        "adapters": error_of(adapted, experts),
        "int8": error_of(quantized, experts),
        "wrapped": error_of(wrapped, experts),
        "twice": error_of(twice, experts),
        "tied": error_of(tied, experts),
        "exclude": error_of(layer(), experts, deduplicate=True, max_slots_factor=2.0),
        "factor": error_of(layer(), experts, max_slots_factor=0.0),
        "no micro-batch": error_of(layer(), experts, micro_batches=0),
        "micro-batches": error_of(layer(), experts, micro_batches=2, deduplicate=True),
        "bounded micro-batches": error_of(layer(), experts, micro_batches=2, max_slots_factor=2.0),
        "wire": error_of(layer(), experts, wire_dtype=torch.int8),
        "gradients": error_of(layer(), experts, gradients="mean"),
        "two stages": error_of(layer(), experts, two_stage=four.two_stage),
        "no bound": message_of(dropped_slots, twice),
        "adapters later": message_of(add_lora_, twice, rank=2),
        "repr": repr(twice.experts),
    }


EXPECTED = {
    "no layer": "model must hold a SparseMoE, got a Linear without any.",
    "two dimensions": 'mesh must have one dimension, as mesh["ep"] has, got 2.',
    "too few": "at least one to every rank: 5 in chunks of 2 fill fewer than 4 ranks",
    "adapters": "without adapters, int8 weights or a wrapper, got Adapted",
    "int8": "without adapters, int8 weights or a wrapper, got Int8",
    "wrapped": "got Sequential",
    "twice": "must not be divided yet",
    "tied": "must have experts of their own",
    "exclude": "exclude each other",
    "factor": "max_slots_factor must be positive, got 0.0",
    "no micro-batch": "micro_batches must be",
    "micro-batches": "goes with neither deduplicate nor max_slots_factor, got 2",
    "bounded micro-batches": "goes with neither",
    "wire": "wire_dtype must be a floating dtype, got torch.int8",
    "gradients": "gradients must be one of 'average', 'sum', got 'mean'",
    "two stages": "two_stage must be a mesh of two dimensions",
    "no bound": "max_slots_factor",
    "adapters later": "divided",
    "repr": "of 8 on this rank",
}


def test_errors(ranks: Ranks) -> None:
    assert other_messages(ranks.run(errors), EXPECTED) == []


def all_experts() -> list[str]:
    bank = CrossScaleExperts((3, 4), 5, num_experts=4, depth=1, norm="group", groups=1)
    moe = expert_parallel_(SparseMoE(HardRouter(2, 4), bank), division(1, 4).mesh["ep"])
    maps = [torch.randn(2, 3, 4, 4), torch.randn(2, 4, 2, 2)]
    plan = moe.plan(moe.route(maps, router_input=torch.randn(2, 2)))
    calls = (lambda: moe.experts.run_all(maps), lambda: moe.experts.scale_weights(maps, plan))
    return [message_of(call) for call in calls]


def test_what_needs_all_experts_on_one_rank(ranks: Ranks) -> None:
    for messages in ranks.run(all_experts):
        assert all("needs all experts on one rank" in message for message in messages)


def wrong_input() -> str:
    moe = expert_parallel_(layer(), division(1, 4).mesh["ep"])
    plan = moe.plan(moe.route(torch.randn(3, 6)))
    return message_of(moe.experts, torch.randn(4, 6), plan, torch.ones(3, 2))


def test_tokens_of_another_plan_are_refused_before_the_exchange(ranks: Ranks) -> None:
    assert all("3" in message for message in ranks.run(wrong_input))


def modules_left() -> list[str]:
    bank = ModuleExperts(nn.Linear(6, 6) for _ in range(7))
    moe = expert_parallel_(SparseMoE(TopKRouter(6, 7, 2), bank), division(1, 4).mesh["ep"])
    return sorted(moe.experts.state_dict())


def test_modules_keep_their_names(ranks: Ranks) -> None:
    kept = ranks.run(modules_left)
    assert kept[1] == ["experts.2.bias", "experts.2.weight", "experts.3.bias", "experts.3.weight"]
    assert kept[3] == ["experts.6.bias", "experts.6.weight"]
