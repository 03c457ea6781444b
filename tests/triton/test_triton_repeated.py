"""Calls of a kind that was made before compute the same bits as calls that choose their kernels."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from moekit_kernels.availability import interpreting

if interpreting():
    pytest.skip("only launches of compiled kernels are repeated", allow_module_level=True)

from moekit import SparseMoE
from moekit_kernels.prepared import use_prepared_launches


@pytest.fixture(autouse=True)
def _on() -> Iterator[None]:
    yield
    use_prepared_launches(True)


def _bits(layer: SparseMoE, x: Tensor, expanded: bool = False) -> list[Tensor]:
    tokens = x.clone().requires_grad_()
    output = layer(tokens).output
    grad = torch.ones_like(output[:1, :1] if expanded else output).expand_as(output)
    return [output.detach(), *torch.autograd.grad(output, [tokens, *layer.parameters()], grad)]


CASES: dict[str, dict[str, Any]] = {
    "one token": {"tokens": 1},
    "few tokens": {"tokens": 24},
    "many rows": {"tokens": 700},
    "biases": {"tokens": 40, "bias": True, "activation": "gelu"},
    "float32": {"tokens": 40, "dtype": torch.float32},
    "everything again": {"tokens": 700, "recompute": "all"},
    "few tokens, gradient of a sum": {"tokens": 24, "expanded": True},
    "gradient of a sum": {"tokens": 700, "expanded": True},
}


@pytest.mark.parametrize("name", CASES)
def test_repeated_calls_compute_the_same_bits(name: str, device: torch.device):
    options = {"dim": 64, "hidden_dim": 48, "num_experts": 8, "top_k": 2, "dtype": torch.bfloat16, **CASES[name]}
    tokens, expanded = options.pop("tokens"), options.pop("expanded", False)
    layer = SparseMoE.ffn(**options, impl="triton", device=device)
    inputs = [torch.randn(tokens, 64, dtype=options["dtype"], device=device) for _ in range(5)]
    use_prepared_launches(False)
    expected = [_bits(layer, x, expanded) for x in inputs]
    use_prepared_launches(True)
    # All of them after the last call, so that a result that shares memory with another would differ.
    for got, right in zip([_bits(layer, x, expanded) for x in inputs], expected, strict=True):
        for one, other in zip(got, right, strict=True):
            assert torch.equal(one, other)
