"""Models with sparse layers for the tests of pruning, merging and the way back to dense."""

import torch
from torch import nn

from moekit import FFNExperts, SparseMoE, TopKRouter
from tests.moekit.interop.mlps import DIM

FOUR = {"num_experts": 4, "top_k": 2}
LAYERS = ["blocks.0.mlp", "blocks.1.mlp"]


def layer_of(router: nn.Module | None = None, num_experts: int = 6, **options) -> nn.ModuleDict:
    router = TopKRouter(DIM, num_experts, 2, init_scale=1.0) if router is None else router
    experts = FFNExperts(DIM, 5, num_experts, bias=True, init_scale=1.0)
    nn.init.normal_(experts.down_bias)
    return nn.ModuleDict({"moe": SparseMoE(router, experts, **options)})


def differing(model: nn.Module) -> nn.Module:
    """Makes experts and routers differ, as training does."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".moe." in name:
                weight.add_(0.3 * torch.randn_like(weight))
    return model
