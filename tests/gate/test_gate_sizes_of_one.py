"""Every kernel compiles where a size is 1: Triton then puts the number itself into the code, which has no methods."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.host.stub import StubDriver, stubbed
from moekit_kernels.combine import combine
from moekit_kernels.grouped_gemm import grouped_gemm
from moekit_kernels.moe_ffn import ExpertWeights, moe_ffn
from moekit_kernels.plan import DispatchPlan, plan_dispatch, plan_expert_choice
from moekit_kernels.routing import route, route_linear

SIZES = [(1, 1, 1), (9000, 1, 1)]
"""Tokens, choices of each and experts; the second takes the kernels of many slots."""

pytestmark = pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: "T={} K={} E={}".format(*sizes))


@pytest.fixture(autouse=True)
def stub() -> Iterator[StubDriver]:
    with stubbed() as stub:
        yield stub
        assert stub.names


def _leaf(*shape: int, **options: Any) -> Tensor:
    return torch.zeros(*shape, requires_grad=True, **options)


@pytest.mark.parametrize("options", [{}, {"capacity": 1}, {"capacity": 1, "drop_policy": "gate"}], ids=str)
def test_plans(sizes: tuple[int, int, int], options: dict[str, Any]):
    tokens, top_k, experts = sizes
    ids, gates = torch.zeros(tokens, top_k, dtype=torch.int64), torch.zeros(tokens, top_k)
    for kept in (None, torch.ones(tokens, 1, dtype=torch.bool)):
        plan_dispatch(ids, experts, kept=kept, gates=gates, impl="triton", **options)


def test_routing(sizes: tuple[int, int, int]):
    tokens, top_k, experts = sizes
    for mask in (None, torch.ones(tokens, dtype=torch.bool)):
        route(_leaf(tokens, experts), top_k, mask=mask, impl="triton").gates.sum().backward()
        x, weight, bias = _leaf(tokens, 1), _leaf(experts, 1), _leaf(experts)
        route_linear(x, weight, top_k, bias=bias, mask=mask, impl="triton").gates.sum().backward()


def test_products_and_sums(sizes: tuple[int, int, int]):
    tokens, top_k, experts = sizes
    plan = plan_dispatch(torch.zeros(tokens, top_k, dtype=torch.int64), experts, impl="triton")
    rows = grouped_gemm(_leaf(tokens * top_k, 1), _leaf(experts, 1, 1), plan.offsets, impl="triton")
    combine(rows, plan, _leaf(tokens, top_k)).sum().backward()


@pytest.mark.parametrize("choice", ["token", "expert"])
def test_experts(sizes: tuple[int, int, int], choice: str):
    tokens, top_k, experts = sizes
    plan: DispatchPlan = plan_dispatch(torch.zeros(tokens, top_k, dtype=torch.int64), experts, impl="triton")
    gates = _leaf(tokens, top_k)
    if choice == "expert":
        plan = plan_expert_choice(torch.zeros(experts, 1, dtype=torch.int64), tokens)._replace(impl="triton")
        gates = _leaf(experts, 1)
    up, down, up_bias, down_bias = _leaf(experts, 2, 1), _leaf(experts, 1, 1), _leaf(experts, 2), _leaf(experts, 1)
    weights = ExpertWeights(up, down, up_bias, down_bias)
    moe_ffn(_leaf(tokens, 1), gates, plan, weights, "swiglu").sum().backward()
