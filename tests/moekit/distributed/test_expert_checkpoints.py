"""Checkpoints of divided experts by ``torch.distributed.checkpoint``: any division loads any other's, exactly."""

import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

from moekit.distributed import Checkpoints, average_gradients_, expert_parallel_
from tests.moekit.distributed.ranks import Ranks, division
from tests.moekit.distributed.test_expert_gradients import Model, batches

pytestmark = pytest.mark.slow

STEPS = 2


class Trained:
    """A model in some division, its optimizer, and steps on batches that any number of ranks shares alike."""

    def __init__(self, data: int, experts: int, *, sharded: bool = False) -> None:
        self.divided = division(data, experts)
        self.model: nn.Module = Model()
        if self.divided is not None:
            expert_parallel_(self.model, self.divided.mesh["ep"])
            if sharded:
                fully_shard(self.model.first.experts, mesh=self.divided.mesh["dp"])
        self.model.unused.requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01, foreach=False)

    def step(self) -> float:
        """One step on all batches; the loss of all."""
        group, mesh = self.divided.group, self.divided.mesh
        own = batches()[group.rank() :: group.size()]
        self.optimizer.zero_grad()
        loss = torch.stack([self.model(x).sin().mean() for x in own]).mean()
        loss.backward()
        if not hasattr(self.model.first.experts, "set_reshard_after_forward"):
            average_gradients_(self.model, group, data_group=mesh["dp"].get_group())
        self.optimizer.step()
        total = loss.detach().clone()
        dist.all_reduce(total, group=group)
        return (total / group.size()).item()

    def state(self) -> dict:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer}

    def load(self, folder: str) -> None:
        state = self.state()
        dcp.load(state, checkpoint_id=folder, process_group=self.divided.group)
        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])


def save_and_go_on(data: int, experts: int, folder: str) -> list[float] | None:
    warnings.simplefilter("ignore")  # torch's own
    trained = Trained(data, experts)
    if trained.divided is None:
        return None
    for _ in range(STEPS):
        trained.step()
    dcp.save(trained.state(), checkpoint_id=folder, process_group=trained.divided.group)
    return [trained.step() for _ in range(STEPS)]


def load_and_go_on(data: int, experts: int, folder: str) -> tuple[dict[str, Tensor], list[float]] | None:
    warnings.simplefilter("ignore")
    trained = Trained(data, experts)
    if trained.divided is None:
        return None
    trained.load(folder)
    weights = {
        name: each.full_tensor().clone() if hasattr(each, "full_tensor") else each.detach().clone()
        for name, each in trained.model.named_parameters()
    }
    return weights, [trained.step() for _ in range(STEPS)]


@pytest.mark.parametrize(
    ("saved", "loaded"), [((1, 2), (1, 4)), ((1, 4), (1, 1)), ((1, 1), (1, 2)), ((1, 4), (2, 2)), ((2, 2), (1, 4))]
)
def test_another_division_goes_on_as_the_one_that_saved(ranks: Ranks, tmp_path: Path, saved, loaded) -> None:
    folder = str(tmp_path / "checkpoint")
    losses = ranks.run(save_and_go_on, *saved, folder)[0]
    results = [result for result in ranks.run(load_and_go_on, *loaded, folder) if result is not None]
    stored = {}
    for weights, later in results:
        assert later == pytest.approx(losses, rel=1e-12)
        for name, weight in weights.items():
            assert torch.equal(stored.setdefault(name, weight), weight), name
    assert set(stored) == {name for name, _ in Model().named_parameters()}


def load_without_ranks(folder: str) -> list[Tensor]:
    """A plain model in one process, from a checkpoint of any division."""
    model = Model()
    state = {"model": model.state_dict()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no process group
        dcp.load(state, checkpoint_id=folder, no_dist=True)
    model.load_state_dict(state["model"])
    return [each.detach() for each in model.parameters()]


def gathered_weights(data: int, experts: int, folder: str) -> list[Tensor]:
    weights, _ = load_and_go_on(data, experts, folder)
    return [weights.get(name) for name, _ in Model().named_parameters()]


def test_a_plain_model_loads_it_too(ranks: Ranks, tmp_path: Path) -> None:
    folder = str(tmp_path / "checkpoint")
    ranks.run(save_and_go_on, 2, 2, folder)
    plain = load_without_ranks(folder)
    for weights in ranks.run(gathered_weights, 1, 4, folder):
        for mine, theirs in zip(plain, weights, strict=True):
            assert theirs is None or torch.equal(mine, theirs)


def go_back(folder: str, asynchronous: bool) -> list[list[int]]:
    """Steps of the checkpoints after each action of a training that goes on from an earlier one."""
    warnings.simplefilter("ignore")
    trained, seen = Trained(1, 4), []
    checkpoints = Checkpoints(folder, keep=2)
    model, optimizer = trained.model, trained.optimizer

    def save(step: int) -> None:
        trained.step()
        checkpoints.save(step, model, optimizer, asynchronous=asynchronous)
        checkpoints.wait()
        dist.barrier()
        seen.append(checkpoints.steps())

    for step in (10, 20, 30):
        save(step)
    assert checkpoints.load(model, optimizer, 20) == 20
    save(25)
    assert checkpoints.load(model, optimizer) == 25
    with pytest.raises(ValueError, match=r"one of the checkpoints in .*, \[20, 25\], got 30"):
        checkpoints.load(model, optimizer, 30)
    return seen


@pytest.mark.parametrize("asynchronous", [False, True])
def test_later_checkpoints_go_when_a_training_went_on_from_an_earlier_one(ranks, tmp_path, asynchronous) -> None:
    for seen in ranks.run(go_back, str(tmp_path / "checkpoints"), asynchronous):
        assert seen == [[10], [10, 20], [20, 30], [20, 25]]


def only_one(folder: str) -> str:
    warnings.simplefilter("ignore")
    trained, checkpoints = Trained(1, 4), Checkpoints(folder, keep=1)
    checkpoints.save(5, trained.model, trained.optimizer)
    dist.barrier()
    with pytest.raises(ValueError, match="only checkpoint") as raised:
        checkpoints.save(5, trained.model, trained.optimizer)
    assert checkpoints.steps() == [5]
    return str(raised.value)


def test_the_only_checkpoint_is_not_written_over(ranks: Ranks, tmp_path: Path) -> None:
    assert all("got 5" in message for message in ranks.run(only_one, str(tmp_path / "checkpoints")))
