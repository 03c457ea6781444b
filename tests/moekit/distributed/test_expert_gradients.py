"""Norms and means of gradients over meshes of every kind."""

import math
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

from moekit import FFN, FFNExperts, ModuleExperts, SparseMoE, TopKRouter
from moekit.distributed import average_gradients_, clip_grad_norm_, expert_parallel_
from tests.moekit.distributed.ranks import Ranks, division

pytestmark = pytest.mark.slow

OPTIONS = {"dtype": torch.float64}


class Model(nn.Module):
    """Two layers with experts of two kinds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = SparseMoE(
            TopKRouter(6, 7, 2, **OPTIONS), FFNExperts(6, 5, 7, bias=True, **OPTIONS), shared=FFN(6, 5, **OPTIONS)
        )
        self.second = SparseMoE(
            TopKRouter(6, 4, 2, **OPTIONS), ModuleExperts(nn.Linear(6, 6, **OPTIONS) for _ in range(4))
        )
        self.unused = nn.Parameter(torch.ones(3, **OPTIONS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(x + self.first(x).output).output


def batches() -> list[torch.Tensor]:
    return list(torch.randn(4, 20, 6, generator=torch.Generator().manual_seed(1), **OPTIONS))


def expected(norm_type: float) -> tuple[float, dict[str, torch.Tensor | None]]:
    model = Model()
    torch.stack([model(x).sin().mean() for x in batches()]).mean().backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 0.02, norm_type)
    return norm.item(), {name: each.grad for name, each in model.named_parameters()}


def clipped(norm_type: float, data: int, experts: int, sharded: bool) -> tuple[float, dict[str, torch.Tensor | None]]:
    divided = division(data, experts)
    model = expert_parallel_(Model(), divided.mesh["ep"])
    if sharded:
        warnings.simplefilter("ignore")  # torch's, of views that hooks return
        fully_shard(model.first.experts, mesh=divided.mesh["dp"])
    model(batches()[dist.get_rank()]).sin().mean().backward()
    if sharded:
        averaged = [each for name, each in model.named_parameters() if not name.startswith("first.experts.")]
        held = nn.ParameterList(averaged)
        second = {id(each) for each in model.second.experts.parameters()}
        for each in held:
            if each.grad is not None:
                group = divided.mesh["dp"].get_group() if id(each) in second else divided.group
                dist.all_reduce(each.grad, group=group)
                each.grad /= group.size()
    else:
        average_gradients_(model, data_group=divided.mesh["dp"].get_group())
    norm = clip_grad_norm_(model, 0.02, norm_type)
    gradients = {
        name: each.grad.full_tensor() if hasattr(each.grad, "full_tensor") else each.grad
        for name, each in model.named_parameters()
    }
    return norm.item(), gradients


@pytest.mark.parametrize("norm_type", [2.0, 1.0, math.inf])
@pytest.mark.parametrize(("data", "experts", "sharded"), [(1, 4, False), (2, 2, False), (2, 2, True)])
def test_the_norm_is_that_of_one_process(ranks: Ranks, norm_type, data, experts, sharded) -> None:
    norm, gradients = expected(norm_type)
    assert norm > 0.02
    for result, own in ranks.run(clipped, norm_type, data, experts, sharded):
        assert result == pytest.approx(norm, rel=1e-9)
        for name, gradient in own.items():
            if gradients[name] is None:
                assert gradient is None, name
            else:
                torch.testing.assert_close(gradient, gradients[name], rtol=1e-5, atol=1e-12)


def nonfinite() -> str:
    model = expert_parallel_(Model(), division(1, 4).mesh["ep"])
    model(batches()[dist.get_rank()]).sum().backward()
    if dist.get_rank() == 1:
        model.first.experts.up_proj.grad.to_local().fill_(torch.nan)
    with pytest.raises(RuntimeError) as raised:
        clip_grad_norm_(model, 1.0, error_if_nonfinite=True)
    return str(raised.value)


def test_a_norm_that_is_not_finite_on_one_rank_is_an_error_on_all(ranks: Ranks) -> None:
    assert all("not finite" in message for message in ranks.run(nonfinite))
