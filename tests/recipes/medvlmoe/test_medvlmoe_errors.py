"""Which studies are called errors, and in which order."""

import numpy as np

from recipes.medvlmoe.errors import choose_errors, thresholds_of

CLASSES = ["a", "b"]


def test_the_largest_errors_of_a_multi_label_task_come_first():
    probs = np.array([[0.9, 0.1], [0.4, 0.45], [0.95, 0.9], [0.2, 0.6], [0.1, 0.1]])
    labels = np.array([[0, 0], [1, 0], [1, np.nan], [0, 1], [1, 0]], float)
    errors = choose_errors(probs, labels, CLASSES, {"a": 0.5, "b": 0.4}, task="multi-label", count=3)
    assert list(errors.items()) == [
        (0, "a: false positive at 0.90"),
        (4, "a: missed at 0.10"),
        (1, "a: missed at 0.40"),
    ]
    most = choose_errors(probs, labels, CLASSES, {"a": 0.5, "b": 0.4}, task="multi-label", count=1)
    assert list(most) == [0]


def test_a_single_label_task_is_wrong_where_another_class_is_more_probable():
    probs = np.array([[0.6, 0.4], [0.3, 0.7], [0.9, 0.1], [0.5, 0.5]])
    labels = np.array([[0, 1], [1, 0], [1, 0], [np.nan, np.nan]])
    errors = choose_errors(probs, labels, CLASSES, {}, task="multi-class", count=8)
    assert list(errors.items()) == [(1, "a taken for b (0.70)"), (0, "b taken for a (0.60)")]


def test_thresholds_are_those_of_the_validation_split_or_one_half():
    metrics = {"run": {"classes": CLASSES}, "operating_points": {"a": {"youden": {"threshold": 0.2}}, "b": {}}}
    assert thresholds_of(metrics) == {"a": 0.2, "b": 0.5}
    assert thresholds_of({"run": {"classes": CLASSES}}) == {"a": 0.5, "b": 0.5}
