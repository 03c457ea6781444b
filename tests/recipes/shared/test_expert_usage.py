import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.shared.metrics import expert_usage


def test_usage_of_four_studies_counted_by_hand():
    usage = expert_usage(
        expert_ids=[[0, 1], [0, 2], [0, 1], [2, 1]],
        gates=[[0.9, 0.1], [0.5, 0.5], [0.6, 0.4], [1.0, 0.0]],
        labels=[[1, 0, 0], [1, 0, np.nan], [0, 1, 0], [np.nan, 1, 0]],
        classes=["a", "b", "c"],
        num_experts=4,
        entropies=[1.0, 1.2, 0.8, 1.0],
    )
    assert usage["load"] == [3 / 8, 3 / 8, 2 / 8, 0.0]
    assert usage["gate_share"] == pytest.approx([2 / 4, 0.5 / 4, 1.5 / 4, 0.0])
    assert usage["entropy"] == pytest.approx(1.0)
    assert (usage["num_experts"], usage["top_k"]) == (4, 2)
    assert usage["activation"] == {
        "classes": ["a", "b", "c"],
        "matrix": [[0.5, 0.25, 0.25, 0.0], [0.25, 0.5, 0.25, 0.0], None],
        "positives": [2, 2, 0],
    }
    assert json.loads(json.dumps(usage, allow_nan=False)) == usage


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 1000))
def test_shares_sum_to_one_and_no_expert_holds_more_than_one_slot_in_k(studies, num_experts, seed):
    rng = np.random.default_rng(seed)
    top_k = min(2, num_experts)
    ids = np.stack([rng.permutation(num_experts)[:top_k] for _ in range(studies)])
    labels = rng.integers(2, size=(studies, 3)).astype(float)
    usage = expert_usage(ids, rng.random(ids.shape), labels, "abc", num_experts, rng.random(studies))
    rows = [row for row in usage["activation"]["matrix"] if row is not None]
    for shares in [usage["load"], *rows]:
        assert sum(shares) == pytest.approx(1)
        assert max(shares) <= 1 / top_k + 1e-12
    for row, positives in zip(usage["activation"]["matrix"], usage["activation"]["positives"], strict=True):
        assert (row is None) == (positives == 0)


def test_gates_that_are_all_zero_have_no_shares():
    usage = expert_usage([[1]], [[0.0]], [[1.0]], ["a"], 2, [0.0])
    assert usage["gate_share"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"expert_ids": [[0.5, 1.0]]}, "expert_ids must be integers of shape"),
        ({"expert_ids": np.zeros((0, 2), int)}, "at least one study"),
        ({"gates": [[1.0]]}, r"gates must have shape \(1, 2\) to match expert_ids, got \(1, 1\)"),
        ({"labels": [[1.0, 0.0]]}, r"labels must have shape \(1, 1\)"),
        ({"entropies": [0.1, 0.2]}, r"entropies must have shape \(1,\)"),
        ({"expert_ids": [[0, 3]]}, r"expert_ids must lie in \[0, num_experts\) = \[0, 3\), got 3"),
        ({"expert_ids": [[-1, 0]]}, "got -1"),
        ({"gates": [[-0.5, 0.5]]}, "gates must be finite and not negative, got -0.5"),
        ({"entropies": [np.nan]}, "entropies must be finite and not negative, got nan"),
    ],
)
def test_usage_refuses(change, message):
    arguments = {
        "expert_ids": [[0, 1]],
        "gates": [[0.5, 0.5]],
        "labels": [[1.0]],
        "classes": ["a"],
        "num_experts": 3,
        "entropies": [0.5],
    }
    with pytest.raises(ValueError, match=message):
        expert_usage(**(arguments | change))
