"""``FlopCounterMode`` counts the operations of the package: as many as the same products of dense layers."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from moekit import FFN, FFNExperts, SparseMoE, TopKRouter, plan_dispatch
from moekit_kernels.grouped_gemm import grouped_gemm

ROOT = Path(__file__).parents[2]
TOKENS, DIM, HIDDEN, EXPERTS, TOP_K = 12, 8, 6, 4, 2
ROWS = TOKENS * TOP_K
PRODUCT = 2 * ROWS * DIM * HIDDEN  # of one matrix, over all rows


def _counted(run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def _experts_call(device: str, activation: str, *, input_grad=True, **options):
    experts = FFNExperts(DIM, HIDDEN, EXPERTS, activation=activation, device=device, **options)
    x = torch.randn(TOKENS, DIM, device=device, requires_grad=input_grad)
    ids = torch.stack([torch.arange(TOKENS) % EXPERTS, (torch.arange(TOKENS) + 1) % EXPERTS], 1).to(device)
    plan = plan_dispatch(ids, EXPERTS)
    gates = torch.rand(TOKENS, TOP_K, device=device)
    return experts, lambda: experts(x, plan, gates)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(("activation", "first"), [("gelu", 1), ("swiglu", 2)])
def test_forward_and_backward_are_those_of_a_dense_network_of_as_many_rows(device, activation, first):
    _, experts = _experts_call(device, activation)
    dense = FFN(DIM, HIDDEN, activation=activation, device=device)
    rows = torch.randn(ROWS, DIM, device=device, requires_grad=True)
    forward = _counted(experts)
    assert forward == (first + 1) * PRODUCT == _counted(lambda: dense(rows))
    both = _counted(lambda: experts().sum().backward())
    assert both == 3 * forward == _counted(lambda: dense(rows).sum().backward())


@pytest.mark.parametrize(
    ("recompute", "input_grad", "frozen", "products"),
    [
        ("activation", True, False, 9),  # 18·N·D·F, as kernels/moekit_kernels/moe_ffn/README.md has it
        ("none", True, False, 9),
        ("all", True, False, 11),
        ("activation", False, False, 7),  # no dZ W_up
        ("activation", True, True, 6),  # no gradients of weights
    ],
)
def test_recomputation_and_frozen_parts_are_counted(recompute, input_grad, frozen, products):
    experts, call = _experts_call("cpu", "swiglu", input_grad=input_grad, recompute=recompute)
    experts.requires_grad_(not frozen)
    assert _counted(lambda: call().sum().backward()) == products * PRODUCT


def test_a_whole_layer_adds_its_router_and_shared_expert():
    router, shared = TopKRouter(DIM, EXPERTS, TOP_K), FFN(DIM, 5)
    moe = SparseMoE(router, FFNExperts(DIM, HIDDEN, EXPERTS), shared=shared)
    x = torch.randn(3, TOKENS // 3, DIM)
    others = 2 * TOKENS * DIM * EXPERTS + 3 * 2 * TOKENS * DIM * 5
    assert _counted(lambda: moe(x)) == 3 * PRODUCT + others
    with FlopCounterMode(display=False) as counter:
        moe(x)
    counts = counter.get_flop_counts()
    assert counts["SparseMoE.experts"] == {torch.ops.moekit.moe_ffn: 3 * PRODUCT}


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_grouped_products(device):
    x = torch.randn(ROWS, DIM, device=device, requires_grad=True)
    weight = torch.randn(EXPERTS, HIDDEN, DIM, device=device, requires_grad=True)
    offsets = torch.arange(EXPERTS + 1, device=device) * (ROWS // EXPERTS)
    assert _counted(lambda: grouped_gemm(x, weight, offsets)) == PRODUCT
    assert _counted(lambda: grouped_gemm(x, weight, offsets).sum().backward()) == 3 * PRODUCT
    frozen = weight.detach()
    assert _counted(lambda: grouped_gemm(x, frozen, offsets).sum().backward()) == 2 * PRODUCT


ORDERS = {
    "the package first": "import moekit; from torch.utils.flop_counter import FlopCounterMode as C",
    "the counter first": "from torch.utils.flop_counter import FlopCounterMode as C; import moekit",
    "one operation before, all after": (
        "import moekit_kernels.grouped_gemm; from torch.utils.flop_counter import FlopCounterMode as C; import moekit"
    ),
}


@pytest.mark.parametrize("imports", list(ORDERS.values()), ids=list(ORDERS))
def test_formulas_are_there_whatever_is_imported_first(imports):
    code = f"""
import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "kernels")!r}]
import torch
finders = len(sys.meta_path)
{imports}
experts = moekit.FFNExperts({DIM}, {HIDDEN}, {EXPERTS})
plan = moekit.plan_dispatch(torch.zeros({TOKENS}, 1, dtype=torch.int64), {EXPERTS})
with C(display=False) as counter:
    experts(torch.randn({TOKENS}, {DIM}), plan, torch.ones({TOKENS}, 1))
print(counter.get_total_flops(), len(sys.meta_path) - finders)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(3 * 2 * TOKENS * DIM * HIDDEN), "0"]
