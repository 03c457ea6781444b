"""Placements that do not fit are refused before anything changes, with a message that says what to do."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from moekit import ModuleExperts, SparseMoE, TopKRouter
from moekit.distributed import ExpertPlacement, expert_parallel_, prepare_optimizer_, rebalance_
from moekit.distributed.placed import placed_banks
from tests.moekit.distributed.messages import message_of, other_messages
from tests.moekit.distributed.ranks import Ranks, division
from tests.moekit.distributed.test_placed_experts import FOUR, FOUR_LATER, TWO

pytestmark = pytest.mark.slow

CONTIGUOUS = ExpertPlacement.contiguous(8, 4)


def layer(num_experts: int = 7) -> SparseMoE:
    return SparseMoE.ffn(6, 5, num_experts, 2)


class RowsOfOtherShape(torch.optim.SGD):
    """Keeps a sum over all experts."""

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["sum"] = torch.zeros(5)


def errors() -> dict[str, str]:
    mesh = division(1, 4).mesh["ep"]
    modules = SparseMoE(TopKRouter(6, 8, 2), ModuleExperts(nn.Linear(6, 6) for _ in range(8)))
    both = nn.ModuleDict({"one": layer(), "other": layer()})
    mine = FOUR if dist.get_rank() else FOUR_LATER
    refused = {
        "modules": message_of(expert_parallel_, modules, mesh, placement=CONTIGUOUS),
        "experts": message_of(expert_parallel_, layer(), mesh, placement=CONTIGUOUS),
        "ranks": message_of(expert_parallel_, layer(), mesh, placement=TWO),
        "name": message_of(expert_parallel_, both, mesh, placement={"one": FOUR, "tow": FOUR}),
        "agree": message_of(expert_parallel_, both, mesh, placement=mine),
    }
    assert type(both["one"].experts).__name__ == "FFNExperts"
    expert_parallel_(both, mesh, placement={"one": FOUR})
    optimizer = RowsOfOtherShape(both.parameters(), lr=0.1)
    plain = expert_parallel_(layer(), mesh)
    twice = nn.ModuleList(expert_parallel_(layer(), mesh, placement=FOUR) for _ in range(2))
    refused |= {
        "no placement": message_of(rebalance_, plain, None, FOUR),
        "slots": message_of(rebalance_, both, None, ExpertPlacement(((0, 1), (2, 3), (4, 5), (6, 0)))),
        "no such layer": message_of(rebalance_, both, None, {"other": FOUR_LATER}),
        "agree later": message_of(rebalance_, both, None, mine),
        "in parts": message_of(rebalance_, twice, None, FOUR_LATER),
        "repr": repr(both["one"].experts),
    }
    optimizer.step()
    refused["states"] = message_of(rebalance_, both, optimizer, FOUR_LATER)
    assert [bank.placement for bank in placed_banks(both)] == [FOUR]
    rebalance_(both, None, FOUR_LATER)  # without an optimizer there is nothing against it
    assert placed_banks(both)[0].placement == FOUR_LATER
    prepare_optimizer_(plain, optimizer)
    assert not optimizer._optimizer_state_dict_post_hooks
    for _ in range(2):
        prepare_optimizer_(both, optimizer)
    assert len(optimizer._optimizer_state_dict_post_hooks) == 1
    return refused


EXPECTED = {
    "modules": "placement needs FFNExperts, got ModuleExperts in '': leave that layer out.",
    "experts": "placement of '' must be of 7 experts on 4 ranks, got one of 8 on 4.",
    "ranks": "must be of 7 experts on 4 ranks, got one of 7 on 2.",
    "name": "placement must be of layers of the model, ['one', 'other'], got ['tow'].",
    "agree": "placement must be the same on all ranks, but ranks [1, 2, 3] of the group have another than the first",
    "no placement": "model must have been given a placement by expert_parallel_.",
    "slots": "must be of 7 experts in 3 slots on each of 4 ranks, as before, got 7 in 2 on 4.",
    "no such layer": "placement must be of layers of the model, ['one'], got ['other'].",
    "agree later": "placement must be the same on all ranks",
    "in parts": "give rebalance_ its parts",
    "repr": "of 7 on this rank",
    "states": "states with the rows of their parameter, got 'sum' of shape (5,) in 'one'",
}


def test_errors(ranks: Ranks) -> None:
    assert other_messages(ranks.run(errors), EXPECTED) == []
