"""``pytest benchmarks --benchmark-only``: the layers on a small workload, through pytest-benchmark.

For figures to keep use ``python -m benchmarks moe``, which also measures memory and ceilings.
"""

import pytest
import torch

from benchmarks.check import agreement, disagreement, expected_of
from benchmarks.peers import PEERS
from benchmarks.shapes import Shape
from benchmarks.workload import draw

SHAPE = Shape(1024, 256, 512, 8, 2)
ON_GPU = torch.cuda.is_available()


@pytest.fixture(scope="module")
def workload():
    """Tokens, weights and a routing."""
    device, dtype = (torch.device("cuda"), torch.bfloat16) if ON_GPU else (torch.device("cpu"), torch.float32)
    return draw(SHAPE, "uniform", device, dtype)


@pytest.fixture(scope="module")
def expected(workload):
    """Output and gradients by the formulas."""
    return expected_of(workload)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
def test_layer(benchmark, workload, expected, peer, direction):
    """Times one layer after comparing it with the formulas."""
    reason = peer.absent(workload)
    if reason is not None:
        pytest.skip(reason)
    layer = peer.build(workload)
    if peer.role == "experts":
        errors = agreement(layer, workload, expected)
        assert disagreement(errors, workload.x.dtype) is None, errors
    x = workload.x.detach().requires_grad_()
    leaves = [x, *layer.leaves.values()]

    def forward():
        with torch.no_grad():
            layer.forward(x)
        if ON_GPU:
            torch.cuda.synchronize()

    def step():
        torch.autograd.grad(layer.forward(x), leaves, workload.grad)
        if ON_GPU:
            torch.cuda.synchronize()

    benchmark.group = direction
    benchmark.extra_info |= {"shape": str(SHAPE), "flops": SHAPE.flops(direction), "remark": peer.remark}
    benchmark.pedantic(forward if direction == "forward" else step, rounds=9, warmup_rounds=3, iterations=1)
