"""Calibration scores against their definitions, and what their intervals and the sampling floor mean."""

import json

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, log_loss

from recipes.shared.scores.calibration import calibration_scores, reliability, sampling_floor


def drawn(studies, classes=2, *, seed=0, sharper=1.0):
    """Probabilities, labels drawn from those without ``sharper``, and two studies a patient."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (studies, classes))
    labels = (rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(float)
    return 1 / (1 + np.exp(-sharper * logits)), labels, [str(i // 2) for i in range(studies)]


def test_bins_hold_equal_numbers_of_studies():
    probs, labels, _ = drawn(100, 1)
    part = reliability(probs[:, 0], labels[:, 0], bins=10)
    assert part.studies.tolist() == [10] * 10
    assert (np.diff(part.predicted) > 0).all()
    order = np.argsort(probs[:, 0])
    assert part.observed == pytest.approx(labels[order, 0].reshape(10, 10).mean(axis=1))
    assert part.ece == pytest.approx(np.abs(part.observed - part.predicted).mean())


def test_studies_of_one_probability_share_a_bin():
    probs = np.array([0.1] * 7 + [0.8] * 3)
    part = reliability(probs, probs > 0.5, bins=5)
    assert part.studies.tolist() == [7, 3]
    assert part.ece == pytest.approx(0.7 * 0.1 + 0.3 * 0.2)
    assert reliability(np.full(4, 0.5), [0, 1, 0, 1]).ece == 0


def test_a_perfect_predictor_has_an_error_of_its_own_at_seventy_studies():
    probs = np.random.default_rng(1).random(70)
    assert sampling_floor(probs).mean() == pytest.approx(0.15, abs=0.01)
    assert sampling_floor(np.random.default_rng(1).random(20_000), draws=20).mean() < 0.012


def test_the_error_of_a_perfect_predictor_lies_at_the_floor_and_that_of_a_too_sure_one_above():
    perfect, sure = (
        calibration_scores(*drawn(4000, sharper=s), ["a", "b"], task="multi-label", bootstrap=100) for s in (1, 3)
    )
    assert perfect["ece"] == pytest.approx(perfect["ece_floor"], rel=0.4)
    assert perfect["ece_ci95"][0] == 0
    assert sure["ece_ci95"][0] > 5 * sure["ece_floor"]
    assert sure["nll"] > perfect["nll"]
    assert sure["brier"] > perfect["brier"]


@pytest.mark.parametrize("sharper", [1.0, 2.0])
def test_the_interval_of_the_error_covers_the_true_error(sharper):
    covered = 0
    for seed in range(100):
        probs, labels, _ = drawn(300, 1, seed=seed, sharper=sharper)
        groups = [str(i) for i in range(300)]
        scores = calibration_scores(probs, labels, groups, ["a"], task="multi-label", bootstrap=100)
        truth = 1 / (1 + np.exp(-np.log(probs / (1 - probs)) / sharper))
        gaps = np.bincount(reliability(probs[:, 0], labels[:, 0]).bin_of, (truth - probs)[:, 0])
        low, high = scores["ece_ci95"]
        covered += low <= np.abs(gaps).sum() / 300 <= high
    assert covered >= 85  # the percentiles of the resampled errors cover 11 and 73 of 100


def test_scores_of_known_labels_agree_with_scikit_learn():
    probs, labels, groups = drawn(80)
    labels[::7, 0] = np.nan
    scores = calibration_scores(probs, labels, groups, ["a", "b"], task="multi-label", bootstrap=50)
    known = ~np.isnan(labels[:, 0])
    a, b = scores["per_class"]["a"], scores["per_class"]["b"]
    assert a["nll"] == pytest.approx(log_loss(labels[known, 0], probs[known, 0]))
    assert a["brier"] == pytest.approx(brier_score_loss(labels[known, 0], probs[known, 0]))
    assert a["ece"] == pytest.approx(reliability(probs[known, 0], labels[known, 0]).ece)
    assert scores["nll"] == pytest.approx((a["nll"] + b["nll"]) / 2)
    assert scores["ece"] == pytest.approx((a["ece"] + b["ece"]) / 2)
    assert a["studies"] == known.sum()
    assert sum(row[2] for row in a["bins"]) == known.sum()
    for metric in ("nll", "brier"):
        low, high = scores[f"{metric}_ci95"]
        assert low < scores[metric] < high
    json.dumps(scores)


def test_single_label_tasks_are_scored_by_the_whole_distribution():
    rng = np.random.default_rng(4)
    probs = rng.dirichlet(np.ones(3), size=50)
    labels = np.eye(3)[rng.integers(3, size=50)]
    labels[0] = np.nan
    groups = [str(i) for i in range(50)]
    scores = calibration_scores(probs, labels, groups, list("abc"), task="multi-class", bootstrap=20)
    assert scores["nll"] == pytest.approx(log_loss(labels[1:].argmax(1), probs[1:], labels=[0, 1, 2]))
    assert scores["brier"] == pytest.approx(((probs[1:] - labels[1:]) ** 2).sum(1).mean())
    assert scores["per_class"]["a"]["brier"] == pytest.approx(brier_score_loss(labels[1:, 0], probs[1:, 0]))


def test_intervals_follow_patients_not_studies():
    probs, labels, _ = drawn(100)
    alone = calibration_scores(probs, labels, [str(i) for i in range(100)], ["a", "b"], task="multi-label")
    repeated = calibration_scores(
        np.repeat(probs, 4, axis=0), np.repeat(labels, 4, axis=0), [str(i // 4) for i in range(400)], ["a", "b"],
        task="multi-label",
    )  # fmt: skip
    for key in ("nll_ci95", "brier_ci95"):
        assert repeated[key] == pytest.approx(alone[key])


def test_what_is_undefined_is_none():
    probs, labels, groups = drawn(30)
    labels[:, 1] = np.nan
    scores = calibration_scores(probs, labels, groups, ["a", "b"], task="multi-label", bootstrap=0)
    empty = scores["per_class"]["b"]
    assert {empty[key] for key in ("nll", "brier", "ece", "ece_floor", "ece_ci95")} == {None}
    assert (empty["studies"], empty["bins"]) == (0, [])
    assert scores["nll"] == scores["per_class"]["a"]["nll"]
    assert scores["ece_ci95"] is None
    nothing = calibration_scores(probs, np.full_like(labels, np.nan), groups, ["a", "b"], task="multi-label")
    assert {nothing[key] for key in ("nll", "brier", "ece", "nll_ci95")} == {None}


@pytest.mark.parametrize(
    ("probs", "labels", "bins", "message"),
    [
        ([], [], 5, "not empty, got"),
        ([0.5], [0, 1], 5, "of the same length"),
        ([0.5], [1], 0, "bins must be 1 or more, got 0"),
    ],
)
def test_bins_refuse(probs, labels, bins, message):
    with pytest.raises(ValueError, match=message):
        reliability(probs, labels, bins=bins)


def test_calibration_refuses_what_evaluation_refuses():
    with pytest.raises(ValueError, match="probs must lie in"):
        calibration_scores([[1.5]], [[1.0]], ["a"], ["x"], task="multi-label")
    with pytest.raises(ValueError, match="bootstrap must be 0"):
        calibration_scores([[0.5]], [[1.0]], ["a"], ["x"], task="multi-label", bootstrap=-1)
