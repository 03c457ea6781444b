"""Combine in plain PyTorch, held to loops; which implementation is chosen, and what is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moekit_kernels.combine import combine, combine_reference
from tests.oracles import assert_close
from tests.strategies import few, plan_by_slot, plan_by_token

ROWS, GATES = torch.ones(4, 3), torch.ones(2, 2)
PLAN = plan_by_slot(torch.tensor([[1, 0], [3, 2]]))
CHOICE = plan_by_token(torch.tensor([0, 0, 1, 1]), torch.arange(4), 2)


@few
@given(st.integers(0, 5), st.integers(1, 3), st.sampled_from([(), (3,), (2, 3)]), st.integers(0, 99))
def test_both_forms_are_loops(num_tokens, top_k, trailing, seed):
    generator = torch.Generator().manual_seed(seed)
    num_rows = num_tokens * top_k
    rows = torch.randn(num_rows, *trailing, generator=generator, dtype=torch.float64)
    gates = torch.randn(num_tokens, top_k, generator=generator, dtype=torch.float64)
    row_of_slot = torch.randperm(num_rows, generator=generator).view(num_tokens, top_k)
    expected = torch.zeros(num_tokens, *trailing, dtype=torch.float64)
    for t in range(num_tokens):
        for k in range(top_k):
            expected[t] += gates[t, k] * rows[row_of_slot[t, k]]
    plan = plan_by_slot(row_of_slot)
    for form in (plan, plan._replace(row_of_slot=None)):
        assert_close(combine_reference(rows, form, gates), expected)
        assert_close(combine(rows, form, gates), expected)


def test_gradients_of_first_and_second_order():
    rows, gates = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((4, 3), (2, 2)))
    uneven = plan_by_token(CHOICE.token_of_row, torch.arange(4).flip(0), 3)
    for plan in (PLAN, uneven):
        assert torch.autograd.gradcheck(lambda r, g, plan=plan: combine(r, plan, g), (rows, gates))
        assert torch.autograd.gradgradcheck(lambda r, g, plan=plan: combine(r, plan, g), (rows, gates))


def test_sums_are_taken_in_the_wider_dtype():
    # In bfloat16, 1 + 2**-8 is 1 again.
    rows = torch.tensor([[1.0], [2**-8], [2**-8]], dtype=torch.bfloat16)
    plan, gates = plan_by_slot(torch.tensor([[0, 1, 2]])), torch.ones(1, 3)
    expected = torch.tensor([[1 + 2**-7]], dtype=torch.bfloat16)
    assert expected.item() != 1
    assert combine(rows, plan, gates).equal(expected)
    assert combine(rows, plan._replace(row_of_slot=None), gates).equal(expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: combine(ROWS[1:], PLAN, GATES), r"rows must be the plan's 4 rows, got shape \(3, 3\)"),
        (lambda: combine(ROWS, PLAN, GATES[0]), r"gates must have one value per slot, \(2, 2\), got shape \(2,\)"),
        (lambda: combine(ROWS, CHOICE, GATES[0]), r"gates must have one value per slot, \(4,\), got shape \(2,\)"),
        (lambda: combine(ROWS, PLAN, GATES, impl="cuda"), "impl must be one of 'auto', .*, got 'cuda'"),
        (lambda: combine(ROWS, PLAN, GATES, impl="triton"), "impl=\"triton\" needs tensors on a GPU, got device 'cpu'"),
        (lambda: combine(ROWS.double(), PLAN, GATES, impl="triton"), 'impl="triton" takes rows .* got torch.float64'),
        (lambda: combine(ROWS, PLAN, GATES.double(), impl="triton"), 'impl="triton" takes gates .* got torch.float64'),
    ],
)
def test_arguments_that_do_not_fit_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
