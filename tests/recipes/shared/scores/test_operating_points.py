"""Thresholds from the validation split, rates on the test split."""

import json

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from recipes.shared.scores.operating_points import choose_thresholds, operating_points


def naive_thresholds(probs, labels, specificity):
    """Tries every threshold."""
    candidates = [*sorted(set(probs), reverse=True)]
    rates = {t: ((probs[labels == 1] >= t).mean(), (probs[labels == 0] < t).mean()) for t in candidates}
    youden = max(candidates, key=lambda t: (round(sum(rates[t]), 9), t))
    allowed = [t for t in candidates if rates[t][1] >= specificity - 1e-12]
    return youden, max(allowed, key=lambda t: (rates[t][0], t)) if allowed else None


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("specificity", [0.5, 0.9, 1.0])
def test_thresholds_agree_with_trying_them_all(seed, specificity):
    rng = np.random.default_rng(seed)
    labels = (rng.random(40) < 0.4).astype(float)
    probs = np.round(0.4 * labels + 0.6 * rng.random(40), 2)
    chosen = choose_thresholds(probs, labels, specificities=(specificity,))
    youden, specific = naive_thresholds(probs, labels, specificity)
    assert chosen["youden"] == youden
    if specific is not None:
        assert chosen[f"specificity_{specificity:g}"] == specific


def test_where_no_threshold_is_specific_enough_it_lies_above_every_score():
    chosen = choose_thresholds([0.9, 0.5, 0.4], [0, 1, 1], specificities=(0.9,))
    assert 0.9 < chosen["specificity_0.9"] < 0.9 + 1e-9


def test_unknown_labels_do_not_count_and_a_class_needs_both():
    assert choose_thresholds([0.2, 0.7, 0.9], [0, 1, np.nan]) == {"youden": 0.7, "specificity_0.9": 0.7}
    assert choose_thresholds([0.2, 0.7], [1, np.nan]) is None
    with pytest.raises(ValueError, match=r"specificities \(--specificities\) must lie in \(0, 1\], got 90"):
        choose_thresholds([0.2, 0.7], [0, 1], specificities=(90,))


def test_rates_on_the_test_split_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    val_labels, labels = ((rng.random((60, 2)) < 0.4).astype(float) for _ in range(2))
    val_probs, probs = (0.3 * truth + 0.7 * rng.random((60, 2)) for truth in (val_labels, labels))
    labels[5, 0] = np.nan
    groups = [str(i // 2) for i in range(60)]
    points = operating_points(val_probs, val_labels, probs, labels, groups, ["a", "b"], bootstrap=50)
    one = points["a"]["specificity_0.9"]
    known = ~np.isnan(labels[:, 0])
    tn, fp, fn, tp = confusion_matrix(labels[known, 0], probs[known, 0] >= one["threshold"]).ravel()
    assert (one["true_negatives"], one["false_positives"]) == (tn, fp)
    assert (one["false_negatives"], one["true_positives"]) == (fn, tp)
    assert one["sensitivity"] == pytest.approx(tp / (tp + fn))
    assert one["specificity"] == pytest.approx(tn / (tn + fp))
    assert one["ppv"] == pytest.approx(tp / (tp + fp))
    assert one["npv"] == pytest.approx(tn / (tn + fn))
    low, high = one["sensitivity_ci95"]
    assert low < one["sensitivity"] < high
    json.dumps(points)


def test_rates_without_studies_and_classes_without_thresholds_are_left_out():
    probs = np.array([[0.2, 0.5], [0.8, 0.5], [0.3, 0.1]])
    val_labels = np.array([[0.0, 1], [1, 1], [0, 1]])
    labels = np.array([[0.0, 1], [0, 0], [0, 1]])
    points = operating_points(probs, val_labels, probs, labels, ["p", "q", "r"], ["a", "b"], bootstrap=10)
    assert points["b"] == {}
    assert points["a"]["youden"]["sensitivity"] is None
    assert points["a"]["youden"]["sensitivity_ci95"] is None
    assert points["a"]["youden"]["specificity"] == pytest.approx(2 / 3)
    alone = operating_points(probs[:, 1:], val_labels[:, 1:], probs[:, 1:], labels[:, 1:], list("pqr"), ["b"])
    assert alone == {"b": {}}
