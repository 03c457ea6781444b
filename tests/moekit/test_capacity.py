"""The capacity of an expert."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekit.capacity import Capacity


@given(
    tokens=st.integers(0, 5000),
    num_experts=st.integers(1, 64),
    top_k=st.integers(1, 8),
    quarters=st.integers(1, 36),
)
@settings(deadline=None, max_examples=200)
def test_capacity_is_rounded_up_and_at_most_all_tokens(tokens, num_experts, top_k, quarters):
    capacity = Capacity(quarters / 4)
    expected = min(math.ceil(Fraction(quarters, 4) * tokens * top_k / num_experts), tokens)
    assert capacity(tokens, num_experts, top_k) == expected
    assert capacity(torch.tensor(tokens), num_experts, top_k).item() == expected


@pytest.mark.parametrize(
    ("factor", "tokens", "num_experts", "top_k", "expected"),
    [
        (1.0, 10, 4, 2, 5),
        (1.1, 10, 4, 2, 6),
        (4.0, 3, 4, 3, 3),
        (1 / 3, 6000, 4, 2, 1000),
        (1e-5, 10**6, 4, 1, 3),
        (1e-9, 4, 4, 1, 1),
    ],
)
def test_capacity_counts_all_slots_and_takes_any_factor(factor, tokens, num_experts, top_k, expected):
    assert Capacity(factor)(tokens, num_experts, top_k) == expected


@pytest.mark.parametrize("factor", [0, -1.0, math.inf, math.nan])
def test_a_factor_that_is_no_positive_number_is_an_error(factor):
    with pytest.raises(ValueError, match="capacity_factor must be positive, or None for no limit, got"):
        Capacity(factor)
