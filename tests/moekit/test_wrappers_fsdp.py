"""Layers under FSDP1, whose wrappers replace modules and flatten their parameters: one process on CPU."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from moekit import (
    FFN,
    BidirectionalCrossAttention,
    CrossScaleAttention,
    CrossScaleExpert,
    CrossScaleExperts,
    FFNExperts,
    HardRouter,
    ModalityGate,
    ModuleExperts,
    SoftMoE,
    SparseMoE,
    TopKRouter,
    load_balancing_loss,
)
from moekit.routers.gate import Gate

DIM, EXPERTS = 6, 4

pytestmark = [
    pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*NO_SHARD.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*FullyShardedDataParallel.*deprecated:FutureWarning"),
]


@pytest.fixture(autouse=True)
def _group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def shard(module: nn.Module, *kinds: type[nn.Module], **options) -> FullyShardedDataParallel:
    policy = ModuleWrapPolicy(set(kinds))
    return FullyShardedDataParallel(module, auto_wrap_policy=policy, device_id=torch.device("cpu"), **options)


def make_layer() -> SparseMoE:
    torch.manual_seed(0)
    return SparseMoE(TopKRouter(DIM, EXPERTS, 2, gate_hidden_dim=5), FFNExperts(DIM, 5, EXPERTS), shared=FFN(DIM, 5))


@pytest.mark.parametrize("use_orig_params", [False, True])
@pytest.mark.parametrize("kinds", [(TopKRouter, FFNExperts, FFN), (nn.Linear, FFNExperts), (Gate,)])
def test_output_statistics_and_input_gradients_are_those_of_the_plain_layer(kinds, use_orig_params) -> None:
    plain, sharded = make_layer(), shard(make_layer(), *kinds, use_orig_params=use_orig_params)
    assert sum(isinstance(module, FullyShardedDataParallel) for module in sharded.modules()) > 1
    x, mask = torch.randn(3, 5, DIM), torch.rand(3, 5) > 0.2
    results = []
    for layer in (plain, sharded):
        leaf = x.clone().requires_grad_()
        output, stats = layer(leaf, mask=mask)
        (output.square().sum() + load_balancing_loss(stats)).backward()
        results.append([output, *stats, leaf.grad])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs)
    assert all(p.grad.any() for p in sharded.parameters())


def test_a_step_trains_a_sharded_layer_like_the_plain_one() -> None:
    x, losses = torch.randn(16, DIM), []
    for layer in (make_layer(), shard(make_layer(), TopKRouter, FFNExperts)):
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        steps = []
        for _ in range(3):
            loss = (layer(x).output - x.flip(-1)).square().mean()
            steps.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(steps)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[0][2] < losses[0][0]


def test_half_precision_parameters_keep_routing_in_float32() -> None:
    precision = MixedPrecision(param_dtype=torch.bfloat16)
    sharded = shard(make_layer(), FFNExperts, mixed_precision=precision)
    output, stats = sharded(torch.randn(5, DIM))
    assert output.dtype == torch.bfloat16
    assert stats.prob_sum.dtype == torch.float32


@pytest.mark.parametrize("use_orig_params", [False, True])
def test_half_precision_parameters_of_the_layers_of_fusion_modules(use_orig_params) -> None:
    x, maps = torch.randn(2, 3, 7), [torch.randn(2, 3, 4, 4), torch.randn(2, 4, 2, 2)]
    options = {"mixed_precision": MixedPrecision(param_dtype=torch.bfloat16), "use_orig_params": use_orig_params}
    for make, inputs in (
        (lambda: ModalityGate((3, 4)), (x,)),
        (lambda: BidirectionalCrossAttention(7, num_heads=1), (x, x)),
        (lambda: CrossScaleAttention((3, 4), 6), (maps,)),
    ):
        torch.manual_seed(0)
        plain = make()
        torch.manual_seed(0)
        sharded = shard(make(), nn.Linear, nn.Conv2d, **options)
        output = sharded(*inputs)[0]
        assert output.dtype == torch.bfloat16
        torch.testing.assert_close(output.float(), plain(*inputs)[0], rtol=0.05, atol=0.05)


def test_the_selection_bias_is_updated_through_a_sharded_router() -> None:
    moe = SparseMoE(TopKRouter(DIM, EXPERTS, 2, selection_bias=True), FFNExperts(DIM, 5, EXPERTS))
    sharded = shard(moe, TopKRouter, FFNExperts)
    sharded.router.update_bias_(torch.tensor([0, 9, 9, 9]), rate=1e3)
    assert sharded(torch.randn(7, DIM)).stats.tokens_per_expert[0] == 7


def test_modules_pyramids_and_soft_layers() -> None:
    def modules() -> nn.Module:
        return SparseMoE(TopKRouter(DIM, 2, 1), ModuleExperts([nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)]))

    def pyramids() -> nn.Module:
        return SparseMoE(HardRouter(5, 2), CrossScaleExperts((3, 4), 4, 2, depth=1))

    maps = [torch.randn(4, 3, 4, 4), torch.randn(4, 4, 2, 2)]
    for make, kinds, inputs, options in (
        (modules, (nn.Linear,), torch.randn(9, DIM), {}),
        (pyramids, (CrossScaleExpert, HardRouter), maps, {"router_input": torch.randn(4, 5)}),
        (pyramids, (CrossScaleExperts,), maps, {"router_input": torch.randn(4, 5)}),
        (lambda: SoftMoE(DIM, FFNExperts(DIM, 5, EXPERTS)), (FFNExperts,), torch.randn(2, 5, DIM), {}),
    ):
        torch.manual_seed(0)
        plain = make()
        torch.manual_seed(0)
        sharded = shard(make(), *kinds)
        torch.testing.assert_close(sharded(inputs, **options).output, plain(inputs, **options).output)
