"""Tokens copied into the rows of a plan by one kernel, held to ``dispatch``."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekit_kernels.availability import interpreting
from moekit_kernels.plan import dispatch, plan_dispatch, plan_expert_choice
from moekit_kernels.plan.launches_rows import rows_of_tokens
from tests.oracles import poisoned_empty

DEVICE = torch.device("cpu" if interpreting() else "cuda")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def _tokens(num_tokens, width, dtype=torch.float16):
    return torch.randn(num_tokens, width).to(dtype).to(DEVICE)


def _plan(num_tokens, experts, top_k, capacity=None):
    ids = torch.rand(num_tokens, experts).argsort(-1)[:, :top_k]
    return plan_dispatch(ids.to(DEVICE), experts, capacity=capacity)


def _check(x, plan):
    """Rows with an expert are the tokens, bit for bit; the others are not written."""
    with poisoned_empty():
        rows = rows_of_tokens(x, plan.order)
    assigned = int(plan.offsets[-1])
    assert rows.is_contiguous()
    assert torch.equal(rows[:assigned], dispatch(x, plan)[:assigned])
    assert rows[assigned:].isnan().all()


@settings(max_examples=15, deadline=None, derandomize=True, database=None)
@given(
    st.sampled_from([0, 1, 5, 33]),
    st.sampled_from([1, 7, 16, 40, 1100]),
    st.sampled_from([1, 3, 8]),
    st.sampled_from(DTYPES),
    st.sampled_from([None, 2]),
)
def test_rows_are_their_tokens(num_tokens, width, top_k, dtype, capacity):
    _check(_tokens(num_tokens, width, dtype), _plan(num_tokens, 8, top_k, capacity))


def test_more_rows_of_a_token_than_are_loaded_at_once():
    _check(_tokens(3, 20), _plan(3, 40, 33))


@pytest.mark.parametrize("width", [8, 13])
def test_expert_choice(width):
    choice = torch.tensor([[0, 1, 2], [4, 0, 2], [2, 0, 1], [0, 3, 4]], device=DEVICE)
    kept = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 0, 0], [1, 0, 0]], dtype=torch.bool, device=DEVICE)
    _check(_tokens(6, width), plan_expert_choice(choice, 6, kept=kept))


STRIDED = {
    "transposed": lambda x: x.T.contiguous().T,
    "every third element": lambda x: x.repeat_interleave(3, 1)[:, ::3],
    "rows of a wider tensor": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    "one number for all": lambda x: x[:1, :1].expand_as(x),
    "one row for all": lambda x: x[:1].expand_as(x),
}


@pytest.mark.parametrize("layout", STRIDED)
def test_any_strides(layout):
    _check(STRIDED[layout](_tokens(9, 24)), _plan(9, 5, 2))


def test_tokens_more_than_two_to_the_31_elements_apart():
    small = _tokens(3, 16)
    try:
        memory = torch.empty(2 * 2**30 + 2**20, dtype=torch.float16, device=DEVICE)
    except RuntimeError as error:
        pytest.skip(f"cannot map the memory: {error}")
    x = memory.as_strided((3, 16), (2**30, 1)).copy_(small)
    assert 2 * x.stride(0) > 2**31 - 1
    _check(x, _plan(3, 4, 2))
