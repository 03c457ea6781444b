"""Experts with a placement, some on several ranks: losses, gradients and training are those of one process."""

import warnings

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import fully_shard

from moekit import SparseMoE
from moekit.distributed import (
    ExpertPlacement,
    average_gradients_,
    clip_grad_norm_,
    expert_parallel_,
    prepare_optimizer_,
    rebalance_,
)
from moekit.distributed.placed import placed_banks
from tests.moekit.distributed.cases import Case, on_rank, one_process, replicas_alike
from tests.moekit.distributed.ranks import Ranks, division
from tests.moekit.distributed.test_expert_gradients import Model, batches
from tests.moekit.distributed.test_expert_parallel import EXCHANGES, assert_same, drawn_cases
from tests.moekit.distributed.test_expert_slots import placements

pytestmark = pytest.mark.slow

FOUR = ExpertPlacement(((0, 1, 6), (0, 2, 3), (4, 0, 5), (6, 5, 1)))
FOUR_LATER = ExpertPlacement(((4, 5, 6), (0, 2, 3), (4, 2, 1), (0, 4, 3)))
TWO = ExpertPlacement(((6, 1, 3, 0, 2), (0, 4, 5, 2, 6)))
TWO_LATER = ExpertPlacement(((5, 1, 4, 0, 3), (6, 4, 5, 2, 1)))
PLACEMENTS = {4: (FOUR, FOUR_LATER), 2: (TWO, TWO_LATER)}


@st.composite
def drawn_with_placement(draw: st.DrawFn) -> tuple[Case, tuple[int, int], str, ExpertPlacement]:
    case, divided, exchange = draw(drawn_cases().filter(lambda each: each[0].experts != "modules"))
    return case, divided, exchange, draw(placements(divided[1], case.num_experts))


@settings(max_examples=60)
@given(drawn_with_placement())
def test_a_step_is_that_of_one_process_with_all_tokens(ranks: Ranks, drawn) -> None:
    case, divided, exchange, placement = drawn
    options = {"placement": placement, **EXCHANGES[exchange]}
    assert_same(one_process(case), ranks.run(on_rank, case, *divided, options), 1e-10)


def test_a_bound_of_the_number_of_ranks_is_exact(ranks: Ranks) -> None:
    case = Case(sizes=(6, 6, 6, 6), top_k=3, num_experts=7, masked=True)
    results = ranks.run(on_rank, case, 1, 4, {"max_slots_factor": 4.0, "placement": FOUR})
    assert_same(one_process(case), results, 1e-10)


def test_the_bits_of_a_second_run(ranks: Ranks) -> None:
    case = Case(sizes=(9, 0, 17, 4), num_experts=7, top_k=3, dtype=torch.float32)
    first, second = (ranks.run(on_rank, case, 1, 4, {"placement": FOUR}) for _ in range(2))
    assert_same(one_process(case), first, 1e-5)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.outputs[0], other.outputs[0])
        for name, gradient in one.gradients.items():
            assert torch.equal(gradient, other.gradients[name]), name


class Trained:
    """A model with a placement in its first layer, its optimizer, and steps on all batches."""

    def __init__(
        self,
        data: int,
        experts: int,
        *,
        sharded: bool = False,
        wrapped: bool = False,
        compiled: bool = False,
        placed: bool = True,
    ) -> None:
        warnings.simplefilter("ignore")  # torch's own, of views that hooks of FSDP return
        self.divided = division(data, experts)
        self.model: nn.Module = Model()
        self.model.unused.requires_grad_(False)
        placement = {"first": PLACEMENTS[experts][0]} if placed else None
        expert_parallel_(self.model, self.divided.mesh["ep"], placement=placement)
        if wrapped:
            self.model.first = checkpoint_wrapper(self.model.first)
        self.bank = self.model.first.experts
        self.sharded = sharded
        if sharded:
            fully_shard(self.bank, mesh=self.divided.mesh["dp"])
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01, foreach=False)
        prepare_optimizer_(self.model, self.optimizer)
        self.run = torch.compile(self.model, backend="aot_eager") if compiled else self.model

    def step(self) -> float:
        group, mesh = self.divided.group, self.divided.mesh
        own = batches()[group.rank() % 4 :: group.size()]
        self.optimizer.zero_grad()
        loss = torch.stack([self.run(x).sin().mean() for x in own]).mean()
        loss.backward()
        if self.sharded:
            held = [each for each in self.model.parameters() if each.grad is not None]
            own_experts = {id(each) for each in self.bank.parameters()}
            modules = {id(each) for each in self.model.second.experts.parameters()}
            for each in held:
                if id(each) not in own_experts:
                    over = mesh["dp"].get_group() if id(each) in modules else group
                    dist.all_reduce(each.grad, group=over)
                    each.grad /= over.size()
        else:
            average_gradients_(self.model, group, data_group=mesh["dp"].get_group())
        clip_grad_norm_(self.model, 0.02)
        self.optimizer.step()
        total = loss.detach().clone()
        dist.all_reduce(total, group=group)
        return (total / group.size()).item()

    def replicas_alike(self) -> bool:
        """Whether weights and states of the optimizer are, to the bit."""
        alike = []
        for bank in placed_banks(self.model):
            for parameter in bank.parameters():
                state = self.optimizer.state[parameter]
                alike += [replicas_alike(bank, each) for each in (parameter, state["exp_avg"], state["exp_avg_sq"])]
        return len(alike) > 0 and all(alike)


def trained(rebalanced: bool, data: int, experts: int, options: dict[str, bool]) -> list[float]:
    own = Trained(data, experts, **options)
    if rebalanced:  # before the first step, with nothing but weights, and back
        for place in (1, 0):
            rebalance_(own.model, own.optimizer, PLACEMENTS[experts][place])
    losses = [own.step() for _ in range(3)]
    if rebalanced:
        before = {name: value.full_tensor().clone() for name, value in own.bank.state_dict().items()}
        rebalance_(own.model, own.optimizer, {"first": PLACEMENTS[experts][1]})
        assert own.bank.placement == PLACEMENTS[experts][1]
        for name, value in own.bank.state_dict().items():
            assert torch.equal(value.full_tensor(), before[name]), name
    losses += [own.step() for _ in range(3)]
    assert own.replicas_alike()
    return losses


@pytest.fixture(scope="module")
def alone() -> list[float]:
    model = Model()
    model.unused.requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = torch.stack([model(x).sin().mean() for x in batches()]).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.02)
        optimizer.step()
        losses.append(loss.item())
    return losses


WAYS: dict[str, tuple[int, int, dict[str, bool]]] = {
    "experts over four": (1, 4, {}),
    "two of data": (2, 2, {}),
    "sharded": (2, 2, {"sharded": True}),
    "checkpointed": (1, 4, {"wrapped": True}),
    "compiled": (1, 4, {"compiled": True}),
}


@pytest.mark.parametrize("rebalanced", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_training_is_that_of_one_process(ranks: Ranks, alone: list[float], way: str, rebalanced: bool) -> None:
    for losses in ranks.run(trained, rebalanced, *WAYS[way]):
        assert losses == pytest.approx(alone, rel=1e-10)


def test_replicas_stay_alike_beside_four_of_data(eight_ranks: Ranks, alone: list[float]) -> None:
    """Where sums over the ranks of data are made in an order that may differ from replica to replica."""
    for losses in eight_ranks.run(trained_on_eight, True):
        assert losses == pytest.approx(alone, rel=1e-10)


def trained_on_eight(rebalanced: bool) -> list[float]:
    return trained(rebalanced, 4, 2, {})


def moved_in_every_step(moves: bool) -> list[float]:
    """Losses of this rank, where experts of both layers change ranks in each step or never."""
    first = ExpertPlacement(((0, 1), (2, 3), (4, 5), (6, 7)))
    second = ExpertPlacement(((7, 2), (0, 6), (5, 1), (4, 3)))
    torch.manual_seed(0)
    model = nn.Sequential(*(SparseMoE.ffn(6, 5, 8, 2, dtype=torch.float64) for _ in range(2)))
    expert_parallel_(model, division(1, 4).mesh["ep"], placement=first)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, foreach=False)
    losses = []
    for step in range(4):
        if moves and step:
            rebalance_(model, optimizer, second if step % 2 else first)
        optimizer.zero_grad()
        x = batches()[dist.get_rank()]
        for layer in model:
            x = x + layer(x).output
        loss = x.sin().mean()
        loss.backward()
        average_gradients_(model)
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_experts_may_move_in_every_step(ranks: Ranks) -> None:
    """Not to the bit: products of matrices round by where these lie in memory."""
    for moved, stayed in zip(*(ranks.run(moved_in_every_step, moves) for moves in (True, False)), strict=True):
        assert moved == pytest.approx(stayed, rel=1e-10)
