"""Divided experts train as whole ones do, and leave the files that these leave; what cannot be divided is refused."""

import os
from dataclasses import dataclass
from functools import cache

import pytest
import torch
import torch.distributed as dist
from torch import nn

from moekit import FFNExperts, ModuleExperts, SparseMoE, TopKRouter
from recipes.shared.checkpoints import load_weights, read_checkpoint, save_checkpoints
from recipes.shared.expert_parallel import average_over_copies_, check_expert_parallel, divided_experts
from recipes.shared.settings import TrainSettings
from recipes.shared.steps import set_learning_rates, take_step
from recipes.shared.strategy import launch
from recipes.shared.training import starting_state
from recipes.shared.weight_decay import parameter_groups
from tests.moekit.distributed.ranks import Ranks

RANKS, EXPERTS, DIM = 4, 7, 6  # seven experts divide unevenly
CLIP = 0.05  # every step is clipped


class Model(nn.Module):
    """A dense layer and a sparse one: of stacked weights, or of modules."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.dense = nn.Linear(DIM, DIM)
        experts = FFNExperts(DIM, 5, EXPERTS, bias=True, init_scale=1.0)
        if kind != "ffn":
            experts = ModuleExperts([Counting() for _ in range(EXPERTS)])
        self.moe = SparseMoE(TopKRouter(DIM, EXPERTS, 2), experts)

    def forward(self, x):
        return x + self.moe(self.dense(x)).output


class Counting(nn.Linear):
    """An expert that counts in how many calls it had tokens, as batch norms count theirs."""

    def __init__(self):
        super().__init__(DIM, DIM)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.calls += 1
        return super().forward(x).tanh()


@dataclass(frozen=True)
class Run:
    """A training that may begin where another has stopped: its kind of experts, and how they are divided."""

    kind: str
    size: int
    strategy: str = "ddp"


def train(run, folder, ranks, steps, resume):
    """Takes some steps of two micro-batches each, as a training of the recipes does; returns losses and counts."""
    settings = TrainSettings(devices=ranks, accelerator="cpu", precision="32-true", expert_parallel=run.size)
    fabric = launch(settings, run.strategy, units=lambda model: [model.moe.experts], find_unused=True)
    model = Model(run.kind)
    wrapped = fabric.setup_module(model)
    groups = parameter_groups(model, weight_decay=0.1, rates={"model": 0.03}, part_of=lambda name: "model")
    optimizer = torch.optim.AdamW(groups, foreach=False)
    state = starting_state(folder / "checkpoints" / "last.ckpt" if resume else None, model, optimizer, fabric)
    fabric_optimizer = fabric.setup_optimizers(optimizer)
    set_learning_rates(fabric_optimizer, 1.0)
    losses = []

    def loss_of(x, shares):
        loss = shares[0] * wrapped(x).square().mean()  # not a sum that cancels
        losses.append(loss.detach() / ranks)
        return loss

    for step in range(state["epoch"], state["epoch"] + steps):
        x = torch.randn(2 * RANKS * 3, DIM, generator=torch.Generator().manual_seed(step))
        halves = [half.chunk(ranks)[fabric.global_rank] for half in x.chunk(2)]
        take_step(
            fabric,
            wrapped,
            fabric_optimizer,
            halves,
            counts_of=lambda x: torch.tensor([len(x)]),
            loss_of=loss_of,
            clip_norm=CLIP,
        )
    state |= {"epoch": state["epoch"] + steps, "best_epoch": state["epoch"] + steps}
    save_checkpoints(folder, model, optimizer, fabric, state, better=True)
    totals = torch.stack(losses).view(-1, 2).sum(1)
    if ranks > 1:
        dist.all_reduce(totals)
        dist.barrier()
    return totals.tolist(), {name: int(count) for name, count in model.moe.experts.named_buffers()}


def on_rank(first, then, folder):
    """Runs in a process that torchrun might have started."""
    os.environ.update(TORCHELASTIC_RUN_ID="run", LOCAL_RANK=os.environ["RANK"], GROUP_RANK="0")
    os.environ.update(LOCAL_WORLD_SIZE=str(RANKS), MASTER_ADDR="localhost", MASTER_PORT="29500")
    losses, _ = train(first, folder, RANKS, steps=2, resume=False)
    more, counts = train(then, folder, RANKS, steps=2, resume=True)
    return losses + more, counts


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    started = Ranks(RANKS, str(tmp_path_factory.mktemp("ranks")), preload=["recipes.shared.strategy"])
    yield started
    started.close()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Losses and folder of a training of one process, by kind of experts."""

    @cache
    def trained(kind):
        folder = tmp_path_factory.mktemp("alone")
        losses, _ = train(Run(kind, 1), folder, 1, steps=2, resume=False)
        return losses + train(Run(kind, 1), folder, 1, steps=2, resume=True)[0], folder

    return trained


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "then"),
    [
        (Run("modules", 2), Run("modules", 4)),
        (Run("modules", 1), Run("modules", 2)),
        (Run("modules", 4), Run("modules", 1)),
        (Run("ffn", 2), Run("ffn", 4, "fsdp2")),
        (Run("ffn", 2, "fsdp2"), Run("ffn", 4)),
        (Run("ffn", 1, "fsdp2"), Run("ffn", 2, "fsdp2")),
        (Run("ffn", 4, "fsdp2"), Run("ffn", 1, "fsdp2")),
    ],
    ids=lambda run: f"{run.kind}-{run.strategy}-over-{run.size}",
)
def test_divided_experts_train_as_whole_ones_and_go_on_divided_otherwise(ranks, alone, tmp_path, first, then):
    losses, folder = alone(first.kind)
    for each, _ in ranks.run(on_rank, first, then, tmp_path):
        assert each == pytest.approx(losses, rel=1e-5)
    ours, theirs = (read_checkpoint(path / "checkpoints" / "last.ckpt") for path in (folder, tmp_path))
    assert list(theirs["model"]) == list(ours["model"])
    for name, value in ours["model"].items():
        if not name.endswith("calls"):
            torch.testing.assert_close(theirs["model"][name], value, rtol=1e-4, atol=1e-6)
    names, their_names = ([group["names"] for group in one["optimizer"]["param_groups"]] for one in (ours, theirs))
    assert their_names == names
    torch.testing.assert_close(theirs["optimizer"]["state"], ours["optimizer"]["state"], rtol=1e-3, atol=1e-6)
    model = Model(first.kind)
    load_weights(model, tmp_path, "best")


@pytest.mark.slow
def test_copies_of_experts_have_the_counts_of_the_first(ranks, tmp_path):
    run = Run("modules", 2)
    counts = [counts for _, counts in ranks.run(on_rank, run, run, tmp_path)]
    assert counts[0] == counts[2]
    assert counts[1] == counts[3]
    saved = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["model"]
    prefix = "moe.experts."
    assert {prefix + name: count for name, count in (counts[0] | counts[1]).items()} == {
        name: int(value) for name, value in saved.items() if name.endswith("calls")
    }
    assert len(counts[0] | counts[1]) == EXPERTS


@pytest.mark.parametrize(
    ("settings", "num_experts", "message"),
    [
        ({"devices": 2}, None, r"\(--expert-parallel\) divides experts, of which this model has none, got 2"),
        ({}, 8, r"\(--expert-parallel\) must divide .* devices \(--devices\) x nodes \(--nodes\) = 1, got 2"),
        ({"devices": 2, "nodes": 3, "expert_parallel": 4}, 8, r"\(--nodes\) = 6, got 4"),
        ({"devices": 4, "expert_parallel": 4}, 5, r"5 experts in chunks of 2 fill fewer than 4"),
        ({"devices": 2, "precision": "16-mixed"}, 8, r"needs --precision bf16-mixed or 32-true, got '16-mixed'"),
    ],
)
def test_what_cannot_be_divided_is_refused(settings, num_experts, message):
    with pytest.raises(ValueError, match=message):
        check_expert_parallel(TrainSettings(**{"expert_parallel": 2, "precision": "32-true"} | settings), num_experts)


def test_what_can_be_divided_is_not():
    check_expert_parallel(TrainSettings(), None)
    check_expert_parallel(TrainSettings(devices=2, nodes=2, expert_parallel=4, precision="bf16-mixed"), 7)


def test_one_process_divides_nothing():
    settings = TrainSettings(accelerator="cpu", precision="32-true")
    fabric = launch(settings)
    fabric.setup_module(Model("ffn"))
    assert divided_experts(fabric) is None
    average_over_copies_(fabric)
