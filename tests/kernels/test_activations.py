"""Activations and their hand-written derivatives, held to the formulas and to autograd."""

import pytest
import torch

from moekit_kernels.activations import ACTIVATIONS
from tests.oracles import GATED, NAIVE_ACTIVATIONS, assert_close, poisoned_empty

NAMES = sorted(NAIVE_ACTIVATIONS)


def test_the_named_activations_are_those_with_a_formula():
    assert sorted(ACTIVATIONS) == NAMES
    assert {name for name, activation in ACTIVATIONS.items() if activation.gated} == set(GATED)


def test_each_names_its_scalar_function_and_layout():
    for name, activation in ACTIVATIONS.items():
        assert activation.name == name
        assert activation.interleaved == name.endswith("_interleaved")
        x = torch.randn(9, 1, dtype=torch.float64)
        pre = torch.cat([x, torch.ones_like(x)], 1) if activation.gated else x
        assert_close(activation.forward(pre), NAIVE_ACTIVATIONS[activation.scalar](x))


@pytest.mark.parametrize("name", NAMES)
def test_forward_is_the_formula(name):
    pre = torch.randn(9, 6, dtype=torch.float64) * 3
    assert_close(ACTIVATIONS[name].forward(pre), NAIVE_ACTIVATIONS[name](pre))
    assert_close(ACTIVATIONS[name].compute(pre), NAIVE_ACTIVATIONS[name](pre))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_backward_is_the_derivative_of_the_formula(name, dtype):
    pre = (torch.randn(9, 6, dtype=torch.float64) * 3).to(dtype).requires_grad_()
    out = NAIVE_ACTIVATIONS[name](pre)
    grad = torch.randn_like(out)
    (expected,) = torch.autograd.grad(out, pre, grad)
    with poisoned_empty():
        actual = ACTIVATIONS[name].backward(grad, pre.detach())
    assert_close(actual, expected)


@pytest.mark.parametrize("name", NAMES)
def test_backward_takes_expanded_gradients_and_strided_pre_activations(name):
    pre = torch.randn(6, 9, dtype=torch.float64).T
    width = ACTIVATIONS[name].forward(pre).shape[1]
    ones = torch.ones((), dtype=torch.float64).expand(9, width)
    expected = ACTIVATIONS[name].backward(ones.contiguous(), pre.contiguous())
    assert_close(ACTIVATIONS[name].backward(ones, pre), expected)


@pytest.mark.parametrize("name", NAMES)
def test_no_rows_give_no_rows(name):
    activation = ACTIVATIONS[name]
    pre = torch.zeros(0, 6)
    assert activation.forward(pre).shape == (0, 3 if activation.gated else 6)
    assert activation.backward(activation.forward(pre), pre).shape == pre.shape
