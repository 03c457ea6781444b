"""The two layouts of a gated activation's first matrix, and the way between them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moekit import FFN, FFNExperts, plan_dispatch
from moekit.experts import concatenate_glu, interleave_glu
from tests.oracles import assert_close
from tests.strategies import few


@few
@given(st.integers(0, 5), st.sampled_from([0, 1, 2, 7]), st.integers(0, 3))
def test_each_is_the_inverse_of_the_other(experts, hidden, dim):
    weight, bias = torch.randn(experts, 2 * hidden, dim), torch.randn(experts, 2 * hidden)
    for up, rows in ((weight, -2), (weight, 1), (bias, -1), (bias, 1)):
        there = interleave_glu(up, dim=rows)
        assert there.is_contiguous()
        assert there.shape == up.shape
        assert torch.equal(concatenate_glu(there, dim=rows), up)


def test_rows_are_in_the_order_of_the_definition():
    weight = torch.arange(24.0).view(2, 6, 2)
    interleaved = interleave_glu(weight, dim=-2)
    for f in range(3):
        assert torch.equal(interleaved[:, 2 * f], weight[:, f])
        assert torch.equal(interleaved[:, 2 * f + 1], weight[:, 3 + f])


@pytest.mark.parametrize("function", [interleave_glu, concatenate_glu])
def test_the_result_is_a_copy_with_a_gradient(function):
    up = torch.randn(3, 2, requires_grad=True)
    out = function(up, dim=-1)
    out.detach().zero_()
    assert up.all()
    (grad,) = torch.autograd.grad((out * torch.tensor([1.0, 10.0])).sum(), up)
    assert torch.equal(grad, torch.tensor([1.0, 10.0]).expand(3, 2))


@pytest.mark.parametrize("name", ["swiglu", "geglu"])
def test_converted_experts_compute_the_same(name):
    experts = FFNExperts(4, 3, 5, activation=name, bias=True, dtype=torch.float64)
    other = FFNExperts(4, 3, 5, activation=f"{name}_interleaved", bias=True, dtype=torch.float64)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.normal_()
    state = experts.state_dict()
    state["up_proj"] = interleave_glu(state["up_proj"], dim=-2)
    state["up_bias"] = interleave_glu(state["up_bias"], dim=-1)
    other.load_state_dict(state)
    x, gates = torch.randn(6, 4, dtype=torch.float64), torch.rand(6, 2, dtype=torch.float64)
    plan = plan_dispatch(torch.randint(5, (6, 2)), 5)
    assert_close(other(x, plan, gates), experts(x, plan, gates))


@pytest.mark.parametrize("name", ["swiglu", "geglu"])
def test_a_converted_dense_network_computes_the_same(name):
    dense, other = (FFN(4, 3, activation=f"{name}{layout}", bias=True) for layout in ("", "_interleaved"))
    state = dense.state_dict()
    state["up_proj.weight"] = interleave_glu(state["up_proj.weight"], dim=0)
    state["up_proj.bias"] = interleave_glu(state["up_proj.bias"], dim=0)
    other.load_state_dict(state)
    x = torch.randn(2, 5, 4)
    assert_close(other(x), dense(x))


@pytest.mark.parametrize("function", [interleave_glu, concatenate_glu])
def test_errors(function):
    with pytest.raises(ValueError, match=r"up must have an even size, 2F, in dimension -2, got shape \(2, 5, 4\)"):
        function(torch.zeros(2, 5, 4), dim=-2)
    with pytest.raises(ValueError, match=r"dim must be a dimension of up, which has shape \(4, 2\), got 2"):
        function(torch.zeros(4, 2), dim=2)
