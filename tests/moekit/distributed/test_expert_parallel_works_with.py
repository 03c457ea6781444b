"""Divided experts under FSDP2, mixed precision, activation checkpointing and ``torch.compile``."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import fully_shard

from moekit import FFN, FFNExperts, ModuleExperts, SparseMoE, TopKRouter
from moekit.distributed import average_gradients_, expert_parallel_
from tests.moekit.distributed.ranks import Ranks, division

pytestmark = pytest.mark.slow


class Model(nn.Module):
    """Two layers, of a number of experts that two and four ranks divide unevenly."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(
            SparseMoE(
                TopKRouter(6, 7, 2, dtype=dtype),
                FFNExperts(6, 5, 7, bias=True, init_scale=1.0, dtype=dtype),
                shared=FFN(6, 5, dtype=dtype),
            )
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x).output
        return x


def batches(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.randn(5 + rank, 6, generator=torch.Generator().manual_seed(rank), dtype=dtype) for rank in range(4)]


def losses_of(step: Any, optimizer: torch.optim.Optimizer) -> list[float]:
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        losses.append(step())
        optimizer.step()
    return losses


def expected() -> list[float]:
    model = Model()

    def step() -> float:
        loss = torch.stack([model(x).sin().mean() for x in batches()]).mean()
        loss.backward()
        return loss.item()

    return losses_of(step, torch.optim.AdamW(model.parameters(), lr=0.01))


def on_ranks(how: str, data: int, experts: int) -> list[float]:
    warnings.simplefilter("ignore")  # torch's own, of views that hooks of FSDP return
    divided = division(data, experts)
    model = expert_parallel_(Model(), divided.mesh["ep"])
    if "checkpointed" in how:
        model.layers = nn.ModuleList(checkpoint_wrapper(layer) for layer in model.layers)
    sharded = "sharded" in how
    if sharded:
        whole = divided.mesh["dp", "ep"]._flatten("all_ranks")
        for layer in model.layers:
            fully_shard(layer.experts, mesh=divided.mesh["dp"])
            if "shared apart" in how:  # which runs its hooks while the experts wait for rows
                fully_shard(layer.shared, mesh=whole)
            fully_shard(layer, mesh=whole)
        fully_shard(model, mesh=whole)
    run = torch.compile(model, backend="aot_eager") if "compiled" in how else model

    def step() -> float:
        loss = run(batches()[dist.get_rank()]).sin().mean()
        loss.backward()
        if not sharded:
            average_gradients_(model, data_group=divided.mesh["dp"].get_group())
        total = loss.detach().clone()
        dist.all_reduce(total)
        return total.item() / 4

    return losses_of(step, torch.optim.AdamW(model.parameters(), lr=0.01, foreach=False))


@pytest.mark.parametrize(
    "how", ["plain", "checkpointed", "sharded", "sharded, shared apart", "sharded and checkpointed", "compiled"]
)
def test_training_is_that_of_one_process(ranks: Ranks, how: str) -> None:
    for losses in ranks.run(on_ranks, how, 2, 2):
        assert losses == pytest.approx(expected(), rel=1e-10)


def model_and_batch() -> tuple[nn.Module, Tensor]:
    return Model(torch.float32), batches(torch.float32)[dist.get_rank()]


def modules_and_one_token() -> tuple[nn.Module, Tensor]:
    """The same token on every rank, so that all but one of them have no row: their modules are not called."""
    torch.manual_seed(0)
    return SparseMoE(TopKRouter(6, 4, 1), ModuleExperts([nn.Linear(6, 6) for _ in range(4)])), torch.ones(1, 6)


def autocast_step(make: Callable[[], tuple[nn.Module, Tensor]], experts: int) -> tuple[Tensor, Tensor]:
    model, x = make()
    x.requires_grad_()
    if experts:
        expert_parallel_(model, division(1, experts).mesh["ep"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(x)
    y = output if isinstance(output, Tensor) else output.output
    y.float().sin().sum().backward()
    return y.detach(), x.grad


@pytest.mark.parametrize("make", [model_and_batch, modules_and_one_token])
def test_autocast(ranks: Ranks, make: Callable[[], tuple[nn.Module, Tensor]]) -> None:
    divided, alone = ranks.run(autocast_step, make, 4), ranks.run(autocast_step, make, 0)
    for mine, theirs in zip(divided, alone, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0.02, atol=0.02)


def frozen_and_inference() -> bool:
    model = expert_parallel_(Model(), division(1, 4).mesh["ep"])
    x = batches()[dist.get_rank()]
    with torch.no_grad():
        quiet = model(x)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("router" in name)
    output = model(x)
    output.sum().backward()
    trained = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    return torch.equal(quiet, output) and bool(trained) and all("router" in name for name in trained)


def test_frozen_experts_and_inference(ranks: Ranks) -> None:
    assert all(ranks.run(frozen_and_inference))


def from_meta() -> list[tuple[int, ...]]:
    """Weights that are made after the division, on each rank its own."""
    with torch.device("meta"):
        model = Model()
    expert_parallel_(model, division(1, 4).mesh["ep"])
    model.to_empty(device="cpu")
    for layer in model.layers:
        layer.experts.reset_parameters()
    local = [layer.experts.up_proj.to_local() for layer in model.layers]
    assert all(each.std() > 0 for each in local)
    return [tuple(each.shape) for each in local]


def test_a_model_on_the_meta_device(ranks: Ranks) -> None:
    assert ranks.run(from_meta) == [[(2, 10, 6)] * 2] * 3 + [[(1, 10, 6)] * 2]
