"""Activations and their hand-written derivatives, held to the formulas and to autograd."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from moekit_kernels.activations import ACTIVATIONS, Activation, activation_of, clamped_swiglu, glu, situ, situ_glu
from moekit_kernels.activations.activation import BUILT_IN
from tests.oracles import GATED, NAIVE_ACTIVATIONS, assert_close, poisoned_empty
from tests.strategies import few

NAMES = sorted(NAIVE_ACTIVATIONS)


def _softsign(x):
    return x / (1 + x.abs())


def _softsign_derivative(x):
    return (1 + x.abs()) ** -2


def _bilinear(gate, value):
    return (gate + 2) * value.sin()


def _bilinear_derivatives(gate, value):
    return value.sin(), (gate + 2) * value.cos()


SOFTSIGN = Activation("test softsign", _softsign, _softsign_derivative)
BILINEAR = Activation("test bilinear", _bilinear, _bilinear_derivatives, gated=True)
BILINEAR_INTERLEAVED = Activation(
    "test bilinear interleaved", _bilinear, _bilinear_derivatives, gated=True, interleaved=True
)
OTHERS = [
    clamped_swiglu(alpha=1.0, limit=0.7, offset=0.0),
    clamped_swiglu(0.5, 2.5, interleaved=False),
    situ(0.5),
    situ_glu(2.0, 0.75, interleaved=True),
    glu("relu2"),
    glu("situ", interleaved=True),
    SOFTSIGN,
    glu(SOFTSIGN),
    BILINEAR,
    BILINEAR_INTERLEAVED,
]
EVERY = [*(ACTIVATIONS[name] for name in NAMES), *OTHERS]


def test_the_named_activations_are_those_with_a_formula():
    assert sorted(BUILT_IN) == NAMES
    assert {name for name in BUILT_IN if ACTIVATIONS[name].gated} == set(GATED)
    for name in NAMES:
        assert ACTIVATIONS[name].name == name
        assert ACTIVATIONS[name].interleaved == name.endswith("_interleaved")
        assert activation_of(name) is ACTIVATIONS[name]


@pytest.mark.parametrize("name", NAMES)
def test_forward_is_the_formula(name):
    pre = torch.randn(9, 6, dtype=torch.float64) * 5
    assert_close(ACTIVATIONS[name](pre), NAIVE_ACTIVATIONS[name](pre))


@pytest.mark.parametrize("activation", EVERY, ids=lambda a: a.name)
def test_derivatives_are_those_of_autograd(activation):
    @few
    @given(st.integers(0, 5), st.sampled_from([0.1, 1.0, 4.0, 30.0]), st.integers(0, 2**31), st.booleans())
    def law(rows, scale, seed, in_turn):
        generator = torch.Generator().manual_seed(seed)
        pre = (torch.randn(rows, 6, dtype=torch.float64, generator=generator) * scale).requires_grad_()
        out = activation(pre)
        grad = torch.randn(out.shape, dtype=torch.float64, generator=generator)
        (expected,) = torch.autograd.grad(out, pre, grad)
        hidden, parts = activation.recompute(pre.detach())
        with poisoned_empty():
            actual = activation.backward(grad, pre.detach(), parts if in_turn else None)
        assert_close(actual, expected)
        assert_close(hidden, out)
        assert_close(activation.compute(pre.detach()), out)

    law()


class _ByHand(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pre, activation):
        ctx.activation = activation
        ctx.save_for_backward(pre)
        return activation.compute(pre)

    @staticmethod
    def backward(ctx, grad):
        return ctx.activation.backward(grad, *ctx.saved_tensors), None


@pytest.mark.parametrize("activation", EVERY, ids=lambda a: a.name)
def test_gradcheck(activation):
    pre = (torch.randn(4, 6, dtype=torch.float64) * 2).requires_grad_()
    assert gradcheck(activation, (pre,))
    assert gradcheck(lambda pre: _ByHand.apply(pre, activation), (pre,))


def test_gradients_are_zero_at_the_limits_and_beyond():
    activation = clamped_swiglu(limit=2.0)
    edges = torch.tensor([-3.0, -2.0, 0.5, 2.0, 3.0], dtype=torch.float64)
    pre = torch.cartesian_prod(edges, edges)
    actual = activation.backward(torch.ones(25, 1, dtype=torch.float64), pre)
    assert torch.equal(actual[:, 0] == 0, pre[:, 0] >= 2)
    assert torch.equal(actual[:, 1] == 0, pre[:, 1].abs() >= 2)


@pytest.mark.parametrize("activation", EVERY, ids=lambda a: a.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backward_keeps_the_dtype(activation, dtype):
    pre = torch.randn(9, 6, dtype=torch.float64).to(dtype)
    exact = pre.double().requires_grad_()
    out = activation(exact)
    grad = torch.randn_like(out).to(dtype)
    (expected,) = torch.autograd.grad(out, exact, grad.double())
    actual = activation.backward(grad, pre)
    assert actual.dtype == dtype
    assert_close(actual, expected)


@pytest.mark.parametrize("activation", EVERY, ids=lambda a: a.name)
def test_backward_takes_expanded_gradients_and_strided_pre_activations(activation):
    pre = torch.randn(6, 9, dtype=torch.float64).T
    width = activation(pre).shape[1]
    ones = torch.ones((), dtype=torch.float64).expand(9, width)
    expected = activation.backward(ones.contiguous(), pre.contiguous())
    assert_close(activation.backward(ones, pre), expected)


@pytest.mark.parametrize("activation", EVERY, ids=lambda a: a.name)
def test_no_rows_give_no_rows(activation):
    pre = torch.zeros(0, 6)
    assert activation(pre).shape == (0, 3 if activation.gated else 6)
    assert activation.backward(activation(pre), pre).shape == pre.shape


def test_a_function_that_returns_its_argument_is_not_written_to():
    activation = glu(Activation("test identity", lambda x: x, torch.ones_like))
    pre = torch.randn(3, 4)
    before = pre.clone()
    assert_close(activation.compute(pre), before[:, :2] * before[:, 2:])
    assert torch.equal(pre, before)


def test_the_same_parameters_give_the_same_activation():
    assert clamped_swiglu(1, 2) is clamped_swiglu(1.0, 2.0)
    assert clamped_swiglu(1, 2) is not clamped_swiglu(1, 2, interleaved=False)
    assert clamped_swiglu() is ACTIVATIONS["clamped_swiglu_interleaved"]
    assert situ_glu() is ACTIVATIONS["situ_glu"]
    assert glu("relu2") is glu(activation_of("relu2"))
    assert repr(clamped_swiglu(1, 2)) == "Activation('clamped_swiglu_interleaved(alpha=1.0, limit=2.0, offset=1.0)')"


def test_clamped_swiglu_without_offset_is_swiglu_of_clamped_columns():
    pre = torch.randn(5, 8) * 4
    gate, value = pre.chunk(2, -1)
    expected = F.silu(gate.clamp(max=3)) * value.clamp(-3, 3)
    assert_close(clamped_swiglu(1.0, 3.0, interleaved=False, offset=0.0)(pre), expected)


@pytest.mark.parametrize("activation", EVERY, ids=lambda a: a.name)
def test_copies_are_the_same_object(activation):
    assert copy.copy(activation) is activation
    assert copy.deepcopy(activation) is activation
    assert pickle.loads(pickle.dumps(activation)) is activation


def test_another_process_makes_what_was_pickled_once():
    code = """
import pickle, sys, torch
from moekit_kernels.activations import ACTIVATIONS
data = sys.stdin.buffer.read()
one, two = pickle.loads(data), pickle.loads(data)
assert one is two
assert ACTIVATIONS[one.name] is one
assert one.has_triton
print(one(torch.tensor([[3.0, 1.0]])).item())
"""
    activation = clamped_swiglu(1.25, 2.0)
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(activation), capture_output=True, check=True)
    assert float(done.stdout) == activation(torch.tensor([[3.0, 1.0]])).item()


def test_a_name_belongs_to_one_activation():
    with pytest.raises(ValueError, match=r"name must be unique, but there is an activation 'swiglu': choose another"):
        Activation("swiglu", _bilinear, gated=True)
    with pytest.raises(ValueError, match=r"name must be unique, but there is an activation 'test softsign'"):
        Activation("test softsign", _softsign)
    with pytest.raises(ValueError, match=r"name must be unique, but there is an activation 'geglu'"):
        glu("relu2", name="geglu")
    with pytest.raises(ValueError, match="name must be a string that is not empty, got ''"):
        Activation("", _softsign)


def test_arguments_that_are_no_activation_are_refused():
    with pytest.raises(ValueError, match=r"function must be a function of plain PyTorch, got 'gelu'"):
        Activation("test refused", "gelu")
    with pytest.raises(ValueError, match=r"derivatives must be a function of plain PyTorch, got 1.0"):
        Activation("test refused", _softsign, 1.0)
    with pytest.raises(ValueError, match=r"interleaved needs gated=True, got gated=False: only"):
        Activation("test refused", _softsign, interleaved=True)
    with pytest.raises(ValueError, match=r"a function of one number, got Activation\('swiglu'\), which is gated"):
        glu("swiglu")
    with pytest.raises(ValueError, match=r"must be one of 'gelu', .*, an Activation or a function, got 'no'"):
        activation_of("no")
    with pytest.raises(ValueError, match=r"derivatives must be passed to Activation for gradients of the fused loops"):
        Activation("test no derivatives", _softsign).backward(torch.ones(1, 1), torch.ones(1, 1))
    with pytest.raises(ValueError, match=r"derivatives must be passed to Activation for gradients of the fused loops"):
        Activation("test no pair", _bilinear, gated=True).backward(torch.ones(1, 1), torch.ones(1, 2))
    assert "test refused" not in ACTIVATIONS


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: clamped_swiglu(limit=0), "limit must be positive and finite, got 0"),
        (lambda: clamped_swiglu(alpha=float("nan")), "alpha must be finite, got nan"),
        (lambda: situ(-1.0), "beta must be positive and finite, got -1.0"),
        (lambda: situ_glu(value_beta=float("inf")), "value_beta must be positive and finite, got inf"),
    ],
)
def test_parameters_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
