"""Statistics over ranks: two processes on CPU against one with the whole batch."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from moekit import (
    RouterStats,
    TopKRouter,
    all_reduce_stats,
    load_balancing_loss,
    plan_dispatch,
    router_stats,
    router_z_loss,
)

DIM, EXPERTS, RANKS = 5, 4, 2
SIZES = (7, 12)  # of the ranks' batches, unequal so that a mean of the ranks' losses would be wrong


def make_router() -> TopKRouter:
    torch.manual_seed(0)
    router = TopKRouter(DIM, EXPERTS, 2, dtype=torch.float64)
    torch.nn.init.normal_(router.gate.layers[0].weight)
    return router


def make_batches() -> tuple[Tensor, ...]:
    x = torch.randn(sum(SIZES), DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x[3, 0] = torch.nan
    return x.split(SIZES)


def stats_of(router: TopKRouter, x: Tensor) -> RouterStats:
    routing = router(x)
    return router_stats(routing, plan_dispatch(routing.expert_ids, EXPERTS, kept=routing.valid.unsqueeze(-1)))


def loss_of(stats: RouterStats) -> Tensor:
    return load_balancing_loss(stats) + router_z_loss(stats)


def probability_gradients(router: TopKRouter, x: Tensor) -> tuple[RouterStats, Tensor]:
    """Gradient with respect to the weights through the finite tokens."""
    return stats_of(router, x[x.isfinite().all(-1)]), router.gate.layers[0].weight


def run_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    router, x = make_router(), make_batches()[rank]
    counted = all_reduce_stats(stats_of(router, x).detach())
    finite_stats, weight = probability_gradients(router, x)
    summed = all_reduce_stats(finite_stats)
    loss_of(summed).backward()
    by_group = all_reduce_stats(finite_stats.detach(), group=dist.group.WORLD)
    result = {
        "counted": tuple(counted),
        "summed": tuple(summed.detach()),
        "by_group": tuple(by_group),
        "own": tuple(finite_stats.detach()),
        "gradient": weight.grad,
    }
    torch.save(result, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(run_rank, args=(str(folder),), nprocs=RANKS, join=True)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(RANKS)]


def test_every_rank_gets_the_sums_of_the_global_batch(ranks: list[dict]) -> None:
    expected = stats_of(make_router(), torch.cat(make_batches())).detach()
    assert expected.nonfinite_tokens.item() == 1
    for result in ranks:
        for name, mine, theirs in zip(RouterStats._fields, result["counted"], expected, strict=True):
            torch.testing.assert_close(mine, theirs, msg=lambda text, name=name: f"{name}: {text}")
        torch.testing.assert_close(result["summed"], result["by_group"])


def test_the_own_statistics_of_a_rank_stay_its_own(ranks: list[dict]) -> None:
    for result, x in zip(ranks, make_batches(), strict=True):
        expected, _ = probability_gradients(make_router(), x)
        torch.testing.assert_close(result["own"], tuple(expected.detach()))


def test_gradients_averaged_over_ranks_are_those_of_the_global_batch(ranks: list[dict]) -> None:
    router = make_router()
    stats, weight = probability_gradients(router, torch.cat(make_batches()))
    loss_of(stats).backward()
    averaged = torch.stack([result["gradient"] for result in ranks]).mean(0)
    torch.testing.assert_close(averaged, weight.grad)


def test_without_a_process_group_statistics_pass_through() -> None:
    stats = stats_of(make_router(), make_batches()[1])
    assert all_reduce_stats(stats) is stats
