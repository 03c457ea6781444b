"""Small models whose experts get adapters, for tests."""

import torch
from torch import Tensor, nn

from benchmarks.memory import allocated_peak
from moekit import FFNExperts, SparseMoE, TopKRouter
from moekit.lora import add_lora_, lora_parameters

DIM, HIDDEN, EXPERTS, TOP_K = 6, 5, 4, 2


class Block(nn.Module):
    """A model with a sparse layer and something else to freeze."""

    def __init__(self, moe: SparseMoE) -> None:
        super().__init__()
        self.moe = moe
        self.head = nn.Linear(moe.experts.out_dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.moe(x).output)


def make(dtype: torch.dtype = torch.float32, impl: str = "auto", **options) -> Block:
    torch.manual_seed(0)
    experts = FFNExperts(DIM, HIDDEN, EXPERTS, **{"bias": True, "init_scale": 1.0, "impl": impl} | options)
    return Block(SparseMoE(TopKRouter(DIM, EXPERTS, TOP_K, impl=impl), experts, impl=impl)).to(dtype)


def trained(model: nn.Module, std: float = 0.5) -> nn.Module:
    """Moves the adapters away from zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in lora_parameters(model):
            parameter.copy_(torch.empty(parameter.shape).normal_(std=std, generator=generator))
    return model


def trained_model(dtype: torch.dtype = torch.float32, **options) -> Block:
    model = make(dtype)
    add_lora_(model, **{"rank": 3} | options)
    trained(model)
    return model


def materialised(model: Block) -> Block:
    """Returns a model whose weights are the sums, differentiable in weights and adapters, by its plain experts."""
    experts = model.moe.experts
    lora, plain = experts.lora, make(experts.up_proj.dtype, "reference", activation=experts.activation)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if ".lora." not in k})
    bank = plain.moe.experts
    bank.down_bias, bank.up_bias = experts.down_bias, experts.up_bias
    for name, own, a, b in (
        ("up_proj", experts.up_proj, lora.up_a, lora.up_b),
        ("down_proj", experts.down_proj, lora.down_a, lora.down_b),
    ):
        delattr(bank, name)
        setattr(bank, name, own if a is None else own + lora.scaling * b @ a)
    return plain


def total_allocated(model: nn.Module, x: Tensor) -> int:
    """Returns the bytes that are held at most during forward and backward."""
    return allocated_peak(lambda: model(x).sum().backward())


def largest_allocation(model: nn.Module, x: Tensor) -> int:
    """Returns the largest memory that forward and backward allocate at once, in bytes."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(profile_memory=True, activities=activities, acc_events=True) as profile:
        model(x).sum().backward()
    return max(event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]")


class Subclass(FFNExperts):
    """Experts that may compute otherwise."""
