import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix as sklearn_matrix

from recipes.shared.scores.confusion import confusion_matrix

CLASSES = ("a", "b", "c")


def test_counts_by_hand():
    scores = [[2, 1, 0], [0, 1, 2], [0, 3, 1], [5, 5, 0], [0, 0, 1]]
    labels = np.eye(3)[[0, 0, 1, 1, 1]]
    labels[4] = np.nan
    result = confusion_matrix(scores, labels, CLASSES)
    assert result["matrix"] == [[1, 0, 1], [1, 1, 0], [0, 0, 0]]
    assert result["recall"] == {"a": 0.5, "b": 0.5, "c": None}
    assert result["majority_share"] == 0.5
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_without_labels_there_is_no_majority():
    result = confusion_matrix([[0.0, 1.0, 2.0]], [[np.nan] * 3], CLASSES)
    assert result["majority_share"] is None
    assert result["matrix"] == [[0] * 3] * 3


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30), st.permutations(range(3)))
def test_agrees_with_sklearn_and_follows_a_permutation_of_the_classes(pairs, order):
    truth, predicted = np.array(pairs).T
    result = confusion_matrix(np.eye(3)[predicted], np.eye(3)[truth], CLASSES)
    assert result["matrix"] == sklearn_matrix(truth, predicted, labels=range(3)).tolist()
    moved = confusion_matrix(
        np.eye(3)[predicted][:, order], np.eye(3)[truth][:, order], [CLASSES[place] for place in order]
    )
    assert moved["matrix"] == np.array(result["matrix"])[order][:, order].tolist()
    assert moved["recall"] == result["recall"]


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([[1.0, 0.0]], [[1.0, 0.0]], r"shape \(studies, 3\), one column per class, got \(1, 2\)"),
        ([[1.0, 0.0, 0.0]], [[1.0, 1.0, 0.0]], "labels must be one-hot"),
    ],
)
def test_refuses(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(scores, labels, CLASSES)
