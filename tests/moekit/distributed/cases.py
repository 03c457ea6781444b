"""Layers, batches and one training step, on ranks and in one process."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from moekit import (
    FFN,
    DynamicTopKRouter,
    ExpertChoiceRouter,
    FFNExperts,
    HardRouter,
    ModuleExperts,
    MoEOutput,
    RouterStats,
    SparseMixerRouter,
    SparseMoE,
    TopKRouter,
    ZeroComputationExperts,
    ZeroExpert,
    all_reduce_stats,
    load_balancing_loss,
    router_z_loss,
)
from moekit.distributed import average_gradients_, expert_parallel_
from moekit.distributed.placed import PlacedExperts, placed_banks
from tests.moekit.distributed.ranks import division

DIM, HIDDEN = 6, 5


@dataclass(frozen=True)
class Case:
    """What is drawn: sizes, parts and options."""

    sizes: tuple[int, ...]
    num_experts: int = 8
    top_k: int = 2
    router: str = "top_k"
    experts: str = "ffn"
    layer: dict[str, Any] = field(default_factory=dict)
    masked: bool = False
    nonfinite: bool = False
    seed: int = 0
    dtype: torch.dtype = torch.float64


def make_layer(case: Case) -> SparseMoE:
    torch.manual_seed(case.seed)
    options = {"dtype": case.dtype}
    experts = case.num_experts
    total = experts + 2 if case.experts == "zero_computation" else experts
    routers = {
        "top_k": lambda: TopKRouter(DIM, total, min(case.top_k, total), **options),
        "dynamic": lambda: DynamicTopKRouter(DIM, total, min(case.top_k, total), mass=0.5, **options),
        "mixer": lambda: SparseMixerRouter(DIM, total, 2, **options),
        "expert_choice": lambda: ExpertChoiceRouter(DIM, total, capacity_factor=1.5, **options),
        "hard": lambda: HardRouter(DIM, total, **options),
    }
    banks = {
        "ffn": lambda: FFNExperts(DIM, HIDDEN, experts, init_scale=1.0, **options),
        "ffn_bias": lambda: FFNExperts(DIM, HIDDEN, experts, activation="gelu", bias=True, init_scale=1.0, **options),
        "modules": lambda: ModuleExperts(
            [ZeroExpert() if i == 1 else nn.Linear(DIM, DIM, bias=i != 2, **options) for i in range(experts)]
        ),
        "zero_computation": lambda: ZeroComputationExperts(
            FFNExperts(DIM, HIDDEN, experts, init_scale=1.0, **options), num_zero=1, num_identity=1
        ),
    }
    layer = SparseMoE(routers[case.router](), banks[case.experts](), shared=FFN(DIM, HIDDEN, **options), **case.layer)
    for parameter in layer.router.parameters():
        nn.init.normal_(parameter)
    for parameter in layer.experts.parameters():
        if parameter.ndim == 2 and "ffn" in case.experts:
            nn.init.normal_(parameter)  # biases start from zero
    return layer.train(case.router != "mixer")  # which draws in training


def make_batches(case: Case) -> list[tuple[Tensor, Tensor | None]]:
    """Tokens and mask of each rank."""
    generator = torch.Generator().manual_seed(case.seed + 1)
    batches = []
    for size in case.sizes:
        x = torch.randn(size, DIM, generator=generator, dtype=torch.float64).to(case.dtype)
        mask = torch.rand(size, generator=generator) > 0.3 if case.masked else None
        if case.nonfinite and size > 2:
            x[1, 0] = torch.inf
        batches.append((x, mask))
    return batches


def output_loss(output: Tensor) -> Tensor:
    return torch.where(output.isfinite(), output, 0).sin().sum()


def statistics_loss(stats: RouterStats) -> Tensor:
    return load_balancing_loss(stats) + router_z_loss(stats)


def has_probabilities(case: Case) -> bool:
    return case.router in ("top_k", "mixer")


@dataclass
class Result:
    """What a step gives."""

    outputs: list[Tensor]
    inputs: list[Tensor]
    gradients: dict[str, Tensor | None]
    stats: tuple[Tensor, ...]


def one_process(case: Case) -> Result:
    """The mean of the ranks' losses, and a loss of the statistics of all."""
    layer = make_layer(case)
    batches = [(x.requires_grad_(), mask) for x, mask in make_batches(case)]
    results: list[MoEOutput] = [layer(x, mask=mask) for x, mask in batches]
    stats = RouterStats(*(torch.stack(fields).sum(0) for fields in zip(*(each.stats for each in results), strict=True)))
    loss = torch.stack([output_loss(each.output) for each in results]).mean()
    if has_probabilities(case):
        loss = loss + statistics_loss(stats)
    loss.backward()
    gradients = {name: each.grad for name, each in layer.named_parameters()}
    return Result(
        [each.output.detach() for each in results], [x.grad for x, _ in batches], gradients, tuple(stats.detach())
    )


def on_rank(case: Case, data: int, experts: int, options: dict[str, Any]) -> Result | None:
    """The same on this rank of ``data * experts``; None on others. Stacked gradients are gathered, one per expert."""
    divided = division(data, experts)
    if divided is None:
        return None
    mesh, group = divided.mesh, divided.group
    if options.get("two_stage"):
        options = {**options, "two_stage": divided.two_stage}
    layer = expert_parallel_(make_layer(case), mesh["ep"], **options)
    x, mask = make_batches(case)[torch.distributed.get_rank()]
    x.requires_grad_()
    output, stats = layer(x, mask=mask)
    summed = all_reduce_stats(stats, group)
    loss = output_loss(output)
    if has_probabilities(case):
        loss = loss + statistics_loss(summed)
    loss.backward()
    average_gradients_(layer, group, data_group=mesh["dp"].get_group())
    gradients = {name: whole_gradient(layer, each) for name, each in layer.named_parameters()}
    # A loss of one rank counts 1 / ranks in their mean.
    return Result([output.detach()], [x.grad / group.size()], gradients, tuple(summed.detach()))


def whole_gradient(model: nn.Module, parameter: nn.Parameter) -> Tensor | None:
    """A gradient of all experts in their order; NaN where replicas differ in a bit."""
    grad: Any = parameter.grad
    for bank in placed_banks(model):
        if grad is not None and any(parameter is each for each in bank.parameters()):
            alike = replicas_alike(bank, grad)
            grad = bank.to_logical(grad)
            grad = grad if alike else grad * torch.nan
    return grad.full_tensor() if isinstance(grad, DTensor) else grad


def replicas_alike(bank: PlacedExperts, tensor: DTensor) -> bool:
    """Whether this rank's replicas have the bits of the first ones; all ranks must call it."""
    unified = tensor.detach().clone()
    bank.unify_(unified)
    return torch.equal(unified.to_local(), tensor.to_local())
