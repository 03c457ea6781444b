"""The kernel of int8 weights against the reference: outputs and gradients."""

import pytest
import torch

from moekit.lora import add_lora_
from moekit.quantization import quantize_experts_
from moekit_kernels.grouped_gemm import grouped_gemm_reference
from moekit_kernels.grouped_gemm_int8 import dequantize, grouped_gemm_int8, quantize
from tests.moekit.lora_models import trained
from tests.oracles import poisoned_empty, relative_error
from tests.triton.test_triton_lora import gradients, make, on
from tests.triton.tolerances import assert_near


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("counts", "unassigned", "dim", "features"),
    [
        ([3, 0, 1], 2, 20, 70),
        ([70, 5, 0], 1, 64, 33),
        ([0, 0, 0], 3, 16, 16),
        ([0, 1, 0], 0, 1, 1),
        ([0, 0, 0], 0, 5, 5),
    ],
)
def test_outputs_and_gradients_are_the_references(device, dtype, transposed, counts, unassigned, dim, features):
    weight = torch.randn(3, dim, features).mT if transposed else torch.randn(3, features, dim)
    values, scale = quantize(weight)
    offsets = torch.tensor([0, *counts]).cumsum(0)
    rows = int(offsets[-1]) + unassigned
    x, bias, grad = torch.randn(rows, dim), torch.randn(3, features), torch.randn(rows, features)
    values, scale, offsets = (each.to(device) for each in (values, scale, offsets))
    x, bias = (each.to(device, dtype).requires_grad_() for each in (x, bias))
    grad = grad.to(device, dtype)
    with poisoned_empty():
        output = grouped_gemm_int8(x, values, scale, offsets, bias, impl="triton")
        gradients = torch.autograd.grad(output, [x, bias], grad)
    exact = dequantize(values, scale, torch.float64)
    expected = grouped_gemm_reference(x.double(), exact, offsets, bias.double())
    expected_gradients = torch.autograd.grad(expected, [x, bias], grad.double())
    assert_near(output, expected, dtype, "output")
    for name, one, other in zip(("x", "bias"), gradients, expected_gradients, strict=True):
        assert_near(one, other, dtype, name)


def test_layers_and_adapters_beside_integers_are_those_of_the_reference(device):
    model, x = make("triton", device), torch.randn(30, 20, device=device)
    quantize_experts_(model)
    assert relative_error(model(x), on("reference", model)(x)) < 1e-5
    add_lora_(model, rank=3)
    trained(model)
    reference, expected = gradients(on("reference", model), x)
    output, computed = gradients(model, x)
    assert relative_error(output, reference) < 1e-5
    assert computed.keys() == expected.keys()
    for name, gradient in computed.items():
        assert relative_error(gradient, expected[name]) < 1e-5, name
