"""Divided experts beside tensor parallelism, in a model of transformers, and in compiled code."""

import copy
import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
import transformers
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.checkpoint import checkpoint

from moekit import FFN, FFNExperts, SparseMoE, TopKRouter
from moekit.distributed import average_gradients_, clip_grad_norm_, expert_parallel_
from tests.moekit.distributed.ranks import Ranks, division
from tests.moekit.test_interop_files import with_layers
from tests.moekit.transformers_families import MARKS, model_of

pytestmark = [*MARKS, pytest.mark.slow]

OPTIONS = {"dtype": torch.float64}
STEPS = 3


class Block(nn.Module):
    """A dense part and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Sequential(nn.Linear(6, 8, **OPTIONS), nn.GELU(), nn.Linear(8, 6, **OPTIONS))
        self.moe = SparseMoE(
            TopKRouter(6, 4, 2, **OPTIONS), FFNExperts(6, 5, 4, init_scale=1.0, **OPTIONS), shared=FFN(6, 5, **OPTIONS)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dense(x)
        return x + self.moe(x).output


class Model(nn.Module):
    def __init__(self, *, checkpointed: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks, self.checkpointed = nn.ModuleList(Block() for _ in range(2)), checkpointed

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x)
        return x


def batch(number: int) -> Tensor:
    return torch.randn(7 + number, 6, generator=torch.Generator().manual_seed(number), **OPTIONS)


def one_process(batches: int) -> list[tuple[float, float]]:
    """Loss and norm of the gradients of each step."""
    model, results = Model(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = torch.stack([model(batch(number)).sin().mean() for number in range(batches)]).mean()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        results.append((loss.item(), norm.item()))
    return results


def beside_tensor_parallelism(checkpointed: bool) -> list[tuple[float, float]]:
    warnings.simplefilter("ignore")
    mesh = DeviceMesh("cpu", torch.arange(4).view(2, 2), mesh_dim_names=("ep", "tp"))
    model, results = expert_parallel_(Model(checkpointed=checkpointed), mesh["ep"]), []
    for block in model.blocks:
        parallelize_module(block.dense, mesh["tp"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, foreach=False)
    group = mesh["ep"].get_group()  # ranks of one group of tp have the same tokens
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = model(batch(mesh["ep"].get_local_rank())).sin().mean()
        loss.backward()
        average_gradients_(model, group)
        norm = clip_grad_norm_(model, 0.1)
        optimizer.step()
        total = loss.detach().clone()
        dist.all_reduce(total, group=group)
        results.append((total.item() / 2, norm.item()))
    return results


@pytest.mark.parametrize("checkpointed", [False, True])
def test_dense_parts_under_tensor_parallelism(ranks: Ranks, checkpointed: bool) -> None:
    expected = one_process(2)
    for results in ranks.run(beside_tensor_parallelism, checkpointed):
        for mine, theirs in zip(results, expected, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-10)


def loss_of(model: Any, number: int) -> Tensor:
    tokens = torch.arange(12).view(2, 6).add(number) % 20
    return model(input_ids=tokens).logits.sin().square().mean()


def steps_of(model: Any, numbers: list[int], ranks: int) -> list[float]:
    losses, optimizer = [], torch.optim.SGD(model.parameters(), lr=0.1, foreach=False)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = torch.stack([loss_of(model, number) for number in numbers]).mean()
        loss.backward()
        total = loss.detach().clone()
        if ranks > 1:
            average_gradients_(model)
            dist.all_reduce(total)
        optimizer.step()
        losses.append(total.item() / ranks)
    return losses


def in_transformers(model: Any) -> list[float]:
    transformers.logging.set_verbosity_error()
    expert_parallel_(with_layers(model), division(1, 4).mesh["ep"])
    return steps_of(model, [dist.get_rank()], 4)


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
@pytest.mark.usefixtures("quiet_transformers")
def test_blocks_of_transformers(ranks: Ranks, family: str) -> None:
    model: Any = model_of(family, torch.float64).train()
    results = ranks.run(in_transformers, copy.deepcopy(model))
    expected = steps_of(with_layers(model), [0, 1, 2, 3], 1)
    for losses in results:
        assert losses == pytest.approx(expected, rel=1e-10)


def compiled(options: dict[str, Any]) -> tuple[list[str], int, list[Tensor]]:
    """Reasons of graph breaks, number of graphs, and what compiled and eager code compute."""
    warnings.simplefilter("ignore")
    torch.compiler.reset()
    counters.clear()
    model = expert_parallel_(Model(), division(1, 4).mesh["ep"], **options)
    graphs = [0]

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs[0] += any(node.op not in ("placeholder", "output") for node in graph.graph.nodes)
        return graph.forward

    fast, x = torch.compile(model, backend=backend), batch(dist.get_rank())
    outputs = [model(x).detach(), fast(x).detach()]
    return list(counters["graph_break"]), graphs[0], outputs


@pytest.mark.parametrize("options", [{}, {"micro_batches": 2}])
def test_graphs_break_at_exchanges_only(ranks: Ranks, options: dict[str, Any]) -> None:
    for reasons, graphs, (eager, fast) in ranks.run(compiled, options):
        assert reasons, "no break"
        for reason in reasons:
            assert "torch.compiler.disable" in reason or "torch._dynamo.disable" in reason, reason
            assert "_run" in reason, reason
        assert graphs >= 3  # before the first layer, between the two, and behind the second
        torch.testing.assert_close(fast, eager, rtol=1e-12, atol=1e-12)
