import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.shared.scores.expert_usage import expert_usage


def test_usage_of_four_studies_counted_by_hand():
    usage = expert_usage(
        usage=[[0.5, 0.5, 0, 0], [0.5, 0, 0.5, 0], [0.5, 0.5, 0, 0], [0, 0.5, 0.5, 0]],
        gates=[[0.9, 0.1, 0, 0], [0.5, 0, 0.5, 0], [0.6, 0.4, 0, 0], [0, 0, 1.0, 0]],
        labels=[[1, 0, 0], [1, 0, np.nan], [0, 1, 0], [np.nan, 1, 0]],
        classes=["a", "b", "c"],
        top_k=2,
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
    chosen = np.zeros((studies, num_experts))
    for row in chosen:
        row[rng.permutation(num_experts)[:top_k]] = 1 / top_k
    labels = rng.integers(2, size=(studies, 3)).astype(float)
    usage = expert_usage(chosen, chosen, labels, "abc", top_k=top_k, entropies=rng.random(studies))
    rows = [row for row in usage["activation"]["matrix"] if row is not None]
    for shares in [usage["load"], *rows]:
        assert sum(shares) == pytest.approx(1)
        assert max(shares) <= 1 / top_k + 1e-12
    for row, positives in zip(usage["activation"]["matrix"], usage["activation"]["positives"], strict=True):
        assert (row is None) == (positives == 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"usage": np.zeros((0, 2))}, "at least one study"),
        ({"gates": [[1.0]]}, r"gates must have shape \(1, 2\) to match usage, got \(1, 1\)"),
        ({"labels": [[1.0, 0.0]]}, r"labels must have shape \(1, 1\)"),
        ({"entropies": [0.1, 0.2]}, r"entropies must have shape \(1,\)"),
        ({"usage": [[0.5, 0.4]]}, r"the rows of usage must be shares that sum to 1, got \[0.5, 0.4\] in row 0"),
        ({"gates": [[-0.5, 1.5]]}, "the rows of gates must be shares"),
        ({"entropies": [np.nan]}, "entropies must be finite and not negative, got nan"),
    ],
)
def test_usage_refuses(change, message):
    arguments = {
        "usage": [[0.5, 0.5]],
        "gates": [[0.5, 0.5]],
        "labels": [[1.0]],
        "classes": ["a"],
        "top_k": 2,
        "entropies": [0.5],
    }
    with pytest.raises(ValueError, match=message):
        expert_usage(**(arguments | change))
