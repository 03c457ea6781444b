"""Models with sparse layers, to be recorded."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from moekit import (
    ExpertChoiceRouter,
    FFNExperts,
    HardRouter,
    ModuleExperts,
    SparseMixerRouter,
    SparseMoE,
    TopKRouter,
    ZeroComputationExperts,
)

DIM, NUM_EXPERTS = 8, 4


class Residual(nn.Module):
    """A sparse layer as a block."""

    def __init__(self, moe: nn.Module) -> None:
        super().__init__()
        self.moe = moe

    def forward(self, x: Tensor) -> Tensor:
        return x + self.moe(x).output


def experts() -> FFNExperts:
    return FFNExperts(DIM, DIM, NUM_EXPERTS)


def stack(num_layers: int = 2, top_k: int = 2, capacity_factor: float | None = None) -> nn.Sequential:
    return nn.Sequential(
        *(
            Residual(SparseMoE.ffn(DIM, DIM, NUM_EXPERTS, top_k, capacity_factor=capacity_factor))
            for _ in range(num_layers)
        )
    )


def one_router_for_two() -> nn.Sequential:
    router = TopKRouter(DIM, NUM_EXPERTS, 2)
    return nn.Sequential(Residual(SparseMoE(router, experts())), Residual(SparseMoE(router, experts())))


def nested() -> nn.Sequential:
    inner = [Inner() for _ in range(2)]
    return nn.Sequential(Residual(SparseMoE(TopKRouter(DIM, 2, 2), ModuleExperts(inner))))


class Inner(nn.Module):
    """An expert that is a sparse layer itself."""

    def __init__(self) -> None:
        super().__init__()
        self.moe = SparseMoE.ffn(DIM, DIM, NUM_EXPERTS, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.moe(x).output


MODELS: dict[str, Callable[[], nn.Module]] = {
    "top-k": stack,
    "capacity": lambda: stack(capacity_factor=0.6),
    "hard": lambda: Residual(SparseMoE(HardRouter(DIM, NUM_EXPERTS), experts())),
    "noisy": lambda: Residual(SparseMoE(TopKRouter(DIM, NUM_EXPERTS, 2, noisy=True), experts())),
    "without logits": lambda: Residual(SparseMoE(TopKRouter(DIM, NUM_EXPERTS, 2, return_logits=False), experts())),
    "sparse mixer": lambda: Residual(SparseMoE(SparseMixerRouter(DIM, NUM_EXPERTS, epsilon=1.0), experts())),
    "zero and identity experts": lambda: Residual(
        SparseMoE(
            TopKRouter(DIM, NUM_EXPERTS, 2, scoring="sqrt_softplus"),
            ZeroComputationExperts(FFNExperts(DIM, DIM, NUM_EXPERTS - 2), num_zero=1, num_identity=1),
        )
    ),
    "expert choice": lambda: Residual(SparseMoE(ExpertChoiceRouter(DIM, NUM_EXPERTS), experts())),
    "one router for two layers": one_router_for_two,
    "nested": nested,
}


def collapsed(expert: int = 1) -> nn.Module:
    """A layer whose router sends every token to one expert."""
    router = HardRouter(DIM, NUM_EXPERTS, gate_bias=True)
    with torch.no_grad():
        for name, parameter in router.named_parameters():
            if name.endswith("bias"):
                parameter[expert] = 100.0
    return SparseMoE(router, experts())
