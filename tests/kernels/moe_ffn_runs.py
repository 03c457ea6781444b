"""Runs of the expert FFN that several tests share: cases, leaves with gradients, and the ways of the loop on CPU."""

from typing import Any

import pytest
import torch

from moekit_kernels.moe_ffn import ExpertWeights, loop
from tests.strategies import FFNCase, Routed, ffn_case

NAMES = ("x", "gates", "up_proj", "down_proj", "up_bias", "down_bias")
IDS = torch.tensor([[0, 2], [2, 3], [2, 0], [3, 2], [0, 3], [2, 3], [3, 0]])  # expert 1 gets none
KEPT = torch.tensor([[1, 1], [0, 1], [1, 1], [0, 0], [1, 1], [1, 0], [1, 1]], dtype=torch.bool)
LOOPS = {"one expert after another": -1, "few rows": 1 << 40}

each_loop = pytest.mark.usefixtures("_each_loop")


def take(patch: pytest.MonkeyPatch, way: str) -> None:
    """Chooses how the loop on CPU goes, which is by the number of rows otherwise."""
    patch.setattr(loop, "_FEW_NUMBERS", LOOPS[way])


def small_case(activation="swiglu", bias=True, dim=5, hidden=3, out_dim=4) -> FFNCase:
    """Seven tokens of two choices among four experts; some slots are left out."""
    return ffn_case(Routed(IDS, KEPT, 4, 0), dim, hidden, out_dim, activation, bias)


def run(function, case, leaves, **options):
    """Calls ``moe_ffn`` or its reference."""
    return function(leaves["x"], leaves["gates"], case.routed.plan, weights_of(leaves), case.activation, **options)


def weights_of(leaves) -> ExpertWeights:
    """Returns the weights among the leaves."""
    return ExpertWeights(*(leaves.get(name) for name in NAMES[2:]))


def run_with_gradients(function, case, dtype, **options) -> dict[str, Any]:
    """Returns the output and the gradient of every leaf."""
    leaves = case.leaves(dtype)
    out = run(function, case, leaves, **options)
    generator = torch.Generator().manual_seed(case.routed.seed + 1)
    out.backward(torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype))
    return {"out": out.detach()} | {name: leaf.grad for name, leaf in leaves.items()}
