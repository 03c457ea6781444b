"""``make bench``: every layer, forward and forward with backward, on CPU in float32."""

import pytest
import torch

from benchmarks.layers import (
    Shape,
    check_same_function,
    contenders,
    forward_and_backward,
    forward_only,
    random_input,
)

SHAPE = Shape()
ROUNDS = 21
NAMES = [
    "moekit",
    "moekit, grouped GEMMs",
    "dense FFN, same FLOPs",
    "transformers eager",
    "transformers grouped_mm",
    "st-moe-pytorch",
    "st-moe-pytorch, dropping",
]


@pytest.fixture(scope="module")
def layers():
    """All layers, checked against ours where they compute the same function."""
    built = {contender.name: contender for contender in contenders(SHAPE)}
    x = random_input(SHAPE)
    for contender in built.values():
        if contender.same_function:
            check_same_function(contender, built["moekit"], x)
    return built


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
def test_layer(benchmark, layers, name, direction):
    """Times one layer."""
    x = random_input(SHAPE)
    contender = layers[name]
    if direction == "forward":
        step = forward_only(contender, x)
    else:
        step = forward_and_backward(contender, x, torch.randn_like(x))
    benchmark.group = direction
    benchmark.extra_info |= {
        "layer": name,
        "shape": str(SHAPE),
        "direction": direction,
        "flops": SHAPE.forward_flops * (1 if direction == "forward" else 3),
        "remark": contender.remark,
    }
    benchmark.pedantic(step, rounds=ROUNDS if "st-moe" not in name else 5, warmup_rounds=4, iterations=1)
