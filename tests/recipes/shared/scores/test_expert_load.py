"""Measures of the load: a collapsed router is reported in words, a healthy one is not."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.shared.scores.expert_load import load_measures

COLLAPSED = [0.02, 0.49, 0.24, 0.07, 0.15, 0.0, 0.03, 0.0]
"""The load of a router on breast ultrasound whose probabilities had an entropy of 2.00 of at most 2.08 nats."""


def test_measures_of_a_load_counted_by_hand():
    measures = load_measures([4, 2, 2, 0], top_k=2)
    assert measures["max_violation"] == pytest.approx(1.0)
    assert measures["load_entropy"] == pytest.approx(0.5 * math.log(2) + 2 * 0.25 * math.log(4))
    assert (measures["live_experts"], measures["dead_experts"]) == (3, [3])


def test_a_collapsed_router_is_reported_in_words():
    measures = load_measures(COLLAPSED, top_k=2, decisions=156)
    assert measures["dead_experts"] == [0, 5, 6, 7]
    assert measures["warning"] == (
        "4 of 8 experts are dead (0, 5, 6, 7): less than 3.12 % of the slots, a quarter of an equal share; "
        "98 % of the decisions choose expert 1"
    )
    both = load_measures([0.0, 0.5, 0.0, 0.49, 0.01], top_k=2, decisions=100)
    assert both["warning"].startswith("the router has collapsed: 99 % of the slots go to experts 1, 3; 3 of 5 experts")
    alone = load_measures([0.99, 0.01], top_k=1, decisions=100)
    assert alone["warning"].startswith("the router has collapsed: 99 % of the slots go to expert 0; 1 of 2 experts is")


def test_a_healthy_router_is_not_reported():
    assert load_measures([0.2, 0.1, 0.14, 0.1, 0.12, 0.04, 0.2, 0.1], top_k=2, decisions=156)["warning"] is None
    assert load_measures([1 / 8] * 8, top_k=2)["live_experts"] == 8
    at_the_limit = load_measures([1 / 32, 31 / 32 / 3, 31 / 32 / 3, 31 / 32 / 3, *[0] * 4], top_k=2)
    assert at_the_limit["dead_experts"] == [4, 5, 6, 7]


def test_too_few_decisions_conclude_nothing():
    assert load_measures(COLLAPSED, top_k=2, decisions=39)["warning"] is None
    assert load_measures(COLLAPSED, top_k=2, decisions=40)["warning"] is not None


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12).filter(any), st.integers(1, 3))
def test_measures_lie_between_balance_and_collapse(load: list[int], top_k: int):
    measures = load_measures(load, top_k=top_k)
    assert 0 <= measures["max_violation"] + 1e-9 <= len(load)
    assert -1e-12 <= measures["load_entropy"] <= math.log(len(load)) + 1e-12
    assert measures["live_experts"] + len(measures["dead_experts"]) == len(load)
    assert (measures["warning"] is None) == (not measures["dead_experts"])
    assert measures == load_measures(np.array(load) * 7, top_k=top_k)


@pytest.mark.parametrize("load", [[], [0, 0], [[1, 2]], [1, -1, 2], [1, math.nan]])
def test_a_load_that_is_none_is_refused(load):
    with pytest.raises(ValueError, match="load must be one row of numbers of at least 0 with a positive sum, got"):
        load_measures(load, top_k=1)
