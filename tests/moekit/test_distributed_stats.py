"""Statistics over ranks: two processes on CPU against one with the whole batch."""

import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.distributed.tensor.debug import CommDebugMode

from moekit import (
    MoEOutput,
    RouterStats,
    TopKRouter,
    all_reduce_stats,
    load_balancing_loss,
    plan_dispatch,
    router_stats,
    router_z_loss,
)
from moekit.inspect import StatsCollector

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


def compiled_gradient(x: Tensor) -> tuple[RouterStats, Tensor]:
    """Sums and gradient of a graph that holds the router, the collective and the loss."""
    router = make_router()

    def step(x: Tensor) -> tuple[Tensor, RouterStats]:
        summed = all_reduce_stats(stats_of(router, x))
        return loss_of(summed), summed

    loss, summed = torch.compile(step, fullgraph=True, backend="aot_eager")(x[x.isfinite().all(-1)])
    loss.backward()
    return summed.detach(), router.gate.layers[0].weight.grad


def count_collectives(stats: RouterStats | list[RouterStats]) -> int:
    with CommDebugMode() as counter:
        all_reduce_stats(stats)
    return counter.get_total_counts()


def collected(layers: list[RouterStats]) -> list[tuple[Tensor, ...]]:
    """Sums over ranks of what a collector added up."""
    collector = StatsCollector()
    collector.add(layers)
    return [tuple(total) for total in collector.totals().values()]


def large_counts(stats: RouterStats) -> RouterStats:
    """Counts that float32 cannot hold, and sums that are float32."""
    stats = stats._replace(tokens_per_expert=torch.arange(EXPERTS) + 2**51 + 1, prob_sum=stats.prob_sum.float())
    return all_reduce_stats(stats)


def second_gradient() -> Tensor:
    """Of ``x^3``, summed over ranks, with respect to ``x``, twice: 6 x, times ranks at each reduction."""
    x = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    stats = stats_of(make_router(), torch.zeros(1, DIM, dtype=torch.float64)).detach()
    summed = all_reduce_stats(stats._replace(logsumexp_sq_sum=x.pow(3).sum())).logsumexp_sq_sum
    (first,) = torch.autograd.grad(summed, x, create_graph=True)
    return torch.autograd.grad(first, x)[0]


def run_rank(rank: int, folder: str) -> None:
    warnings.simplefilter("error", FutureWarning)  # as torch gives for deprecated collectives
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    router, x = make_router(), make_batches()[rank]
    counted = all_reduce_stats(stats_of(router, x).detach())
    finite_stats, weight = probability_gradients(router, x)
    summed = all_reduce_stats(finite_stats)
    loss_of(summed).backward()
    by_group = all_reduce_stats(finite_stats.detach(), group=dist.group.WORLD)
    compiled_sums, compiled_weight_grad = compiled_gradient(x)
    both = [counted, finite_stats.detach()]
    result = {
        "collectives": count_collectives(finite_stats),
        "collectives_of_layers": count_collectives(both),
        "layers": [tuple(stats) for stats in all_reduce_stats(both)],
        "layers_alone": [tuple(all_reduce_stats(stats)) for stats in both],
        "collected": collected(both),
        "large": tuple(large_counts(finite_stats.detach())),
        "second_gradient": second_gradient(),
        "compiled": tuple(compiled_sums),
        "compiled_gradient": compiled_weight_grad,
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


@pytest.mark.slow
def test_every_rank_gets_the_sums_of_the_global_batch(ranks: list[dict]) -> None:
    expected = stats_of(make_router(), torch.cat(make_batches())).detach()
    assert expected.nonfinite_tokens.item() == 1
    for result in ranks:
        for name, mine, theirs in zip(RouterStats._fields, result["counted"], expected, strict=True):
            torch.testing.assert_close(mine, theirs, msg=lambda text, name=name: f"{name}: {text}")
        torch.testing.assert_close(result["summed"], result["by_group"])


@pytest.mark.slow
def test_the_own_statistics_of_a_rank_stay_its_own(ranks: list[dict]) -> None:
    for result, x in zip(ranks, make_batches(), strict=True):
        expected, _ = probability_gradients(make_router(), x)
        torch.testing.assert_close(result["own"], tuple(expected.detach()))


@pytest.mark.slow
def test_gradients_averaged_over_ranks_are_those_of_the_global_batch(ranks: list[dict]) -> None:
    router = make_router()
    stats, weight = probability_gradients(router, torch.cat(make_batches()))
    loss_of(stats).backward()
    averaged = torch.stack([result["gradient"] for result in ranks]).mean(0)
    torch.testing.assert_close(averaged, weight.grad)


def test_without_a_process_group_statistics_pass_through() -> None:
    stats = stats_of(make_router(), make_batches()[1])
    assert all_reduce_stats(stats) is stats
    assert all_reduce_stats([stats, stats]) == [stats, stats]
    assert all_reduce_stats([]) == []


def test_one_collective_adds_up_all_fields(ranks: list[dict]) -> None:
    assert [result["collectives"] for result in ranks] == [1, 1]


def test_one_collective_adds_up_all_layers(ranks: list[dict]) -> None:
    for result in ranks:
        assert result["collectives_of_layers"] == 1
        torch.testing.assert_close(result["layers"], result["layers_alone"])
        torch.testing.assert_close(result["collected"], result["layers_alone"])


def test_a_compiled_step_gives_the_same_sums_and_gradients(ranks: list[dict]) -> None:
    for result in ranks:
        torch.testing.assert_close(result["compiled"], result["summed"])
        torch.testing.assert_close(result["compiled_gradient"], result["gradient"])


def test_counts_are_exact_and_dtypes_stay(ranks: list[dict]) -> None:
    for result in ranks:
        large = RouterStats(*result["large"])
        assert large.tokens_per_expert.tolist() == [2 * (2**51 + 1 + e) for e in range(EXPERTS)]
        assert large.prob_sum.dtype == torch.float32
        assert large.gate_sum.dtype == torch.float64


def test_gradients_of_gradients_are_summed_over_ranks_too(ranks: list[dict]) -> None:
    for result in ranks:
        assert result["second_gradient"].item() == pytest.approx(6 * 2 * RANKS)


def test_what_is_no_statistics_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"stats must be RouterStats or a sequence.*got None: the layer was called with"
    ):
        all_reduce_stats(None)
    stats = stats_of(make_router(), make_batches()[1])
    with pytest.raises(ValueError, match=r"stats\[1\] must be RouterStats, got None"):
        all_reduce_stats([stats, None])
    with pytest.raises(ValueError, match=r"stats must be RouterStats or a sequence.*got a MoEOutput: pass its .stats"):
        all_reduce_stats(MoEOutput(torch.zeros(1), stats))
