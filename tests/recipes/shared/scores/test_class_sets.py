"""Means over named sets of classes."""

import numpy as np
import pytest

from recipes.shared.scores.class_sets import class_set_scores
from recipes.shared.scores.metrics import evaluate_predictions

LABELS = np.array([[1, 0, 1], [0, 1, 1], [1, np.nan, 1], [0, 0, 1]], np.float32)
PROBS = np.array([[0.9, 0.8, 0.5], [0.2, 0.9, 0.5], [0.1, 0.5, 0.5], [0.1, 0.1, 0.5]], np.float32)


def scores(class_sets, task="multi-label"):
    groups = [str(n) for n in range(4)]
    return class_set_scores(PROBS, LABELS, groups, ("a", "b", "c"), class_sets, task=task, bootstrap=20)


def test_a_mean_over_some_classes_is_that_of_these_classes_alone():
    both = scores({"last": ("b", "c"), "first": ("a",)})
    assert (
        both["first"]["macro_auroc"]
        == evaluate_predictions(
            PROBS[:, :1], LABELS[:, :1], ["0", "1", "2", "3"], ["a"], task="multi-label", bootstrap=0
        )["macro_auroc"]
    )
    assert both["last"]["macro_auroc"] == 1
    assert both["last"]["undefined_classes"] == ["c"]
    assert both["first"]["macro_auroc"] == 0.625
    low, high = both["first"]["macro_auroc_ci95"]
    assert low <= 0.625 <= high
    assert scores({}) == {}


@pytest.mark.parametrize(("members", "task"), [(("a", "d"), "multi-label"), (("a",), "multi-class")])
def test_sets_of_other_classes_or_tasks_are_refused(members, task):
    with pytest.raises(ValueError, match="class_sets: 'mean' must hold classes of a multi-label task"):
        scores({"mean": members}, task)
