"""Balanced accuracy, F1 and kappa against scikit-learn, and their intervals against resampling by hand."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, f1_score, precision_score

from recipes.shared.scores.bootstrap import percentile_interval, resample_counts
from recipes.shared.scores.single_label import single_label_scores

CLASSES = ["a", "b", "c", "d"]


def study(n=60, num_classes=4, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.integers(num_classes, size=n)
    labels = np.eye(num_classes)[truth]
    probs = rng.dirichlet(np.ones(num_classes), size=n) * 0.6 + 0.4 * labels * rng.random((n, 1))
    return probs / probs.sum(1, keepdims=True), labels, [f"p{i // 2}" for i in range(n)]


@pytest.mark.parametrize(("task", "weights"), [("multi-class", None), ("ordinal-regression", "quadratic")])
def test_scores_are_those_of_scikit_learn(task, weights):
    probs, labels, groups = study()
    scores = single_label_scores(probs, labels, groups, CLASSES, task=task, bootstrap=0)
    truth, predicted = labels.argmax(1), probs.argmax(1)
    assert scores["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, predicted))
    assert scores["macro_f1"] == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert scores["kappa"] == pytest.approx(cohen_kappa_score(truth, predicted, weights=weights))
    assert scores["kappa_weights"] == weights
    precision = precision_score(truth, predicted, average=None)
    assert [scores["per_class"][name]["precision"] for name in CLASSES] == pytest.approx(precision.tolist())
    assert sum(map(sum, scores["confusion"]["matrix"])) == 60
    assert scores["kappa_ci95"] is None


def test_intervals_are_over_resamples_of_patients():
    probs, labels, groups = study()
    scores = single_label_scores(probs, labels, groups, CLASSES, task="multi-class", bootstrap=40, seed=3)
    truth, predicted = labels.argmax(1), probs.argmax(1)
    codes = np.unique(groups, return_inverse=True)[1]
    by_hand = []
    for counts in resample_counts(30, 40, np.random.default_rng(3)):
        rows = np.repeat(np.arange(60), counts[codes].astype(int))
        by_hand.append(cohen_kappa_score(truth[rows], predicted[rows]))
    assert scores["kappa_ci95"] == pytest.approx(percentile_interval(np.array(by_hand), 0.95))


def test_what_is_undefined_is_none_and_unlabelled_studies_count_nowhere():
    probs, labels, groups = study()
    labels[:, :] = np.eye(4)[0]
    labels[5] = np.nan
    probs[:, 0] = 2.0
    scores = single_label_scores(probs, labels, groups, CLASSES, task="multi-class", bootstrap=5)
    assert scores["kappa"] is None  # one class alone leaves no disagreement to be expected
    assert scores["kappa_ci95"] is None
    assert (scores["balanced_accuracy"], scores["macro_f1"]) == (1.0, 1.0)
    assert scores["per_class"]["b"] == {"precision": None, "recall": None, "f1": None}
    assert scores["confusion"]["matrix"][0][0] == 59


def test_multi_label_tasks_have_none():
    assert single_label_scores(*study(), CLASSES, task="multi-label") is None
