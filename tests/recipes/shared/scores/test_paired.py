"""Paired comparison of AUROCs: its parts against definitions, and its error rate by simulation."""

import numpy as np
import pytest

from recipes.shared.scores.metrics import auroc
from recipes.shared.scores.paired import compare_aurocs, delong, holm


def two_models(rng, patients, studies_each, *, advantage=0.0, prevalence=0.3):
    """Scores of two models on the same studies; a patient's studies share outcome and much of each model's error."""
    outcome = (rng.random(patients) < prevalence).astype(float)
    labels = np.repeat(outcome, studies_each)

    def shared_by_patient():
        return np.repeat(rng.normal(size=patients), studies_each)

    image = shared_by_patient()
    first, second = (
        gain * labels + image + 0.7 * shared_by_patient() + 0.7 * rng.normal(size=len(labels))
        for gain in (1.2 + advantage, 1.2)
    )
    groups = [str(i) for i in np.repeat(np.arange(patients), studies_each)]
    return first[None, :, None], second[None, :, None], labels[:, None], groups


def rejections(simulations, patients, studies_each, *, bootstrap=200, **options):
    """Shares of simulations in which two classes' macro mean, and the first class, differ at the 5 % level."""
    rng = np.random.default_rng(0)
    counts = np.zeros(2)
    for _ in range(simulations):
        parts = [two_models(rng, patients, studies_each, prevalence=prevalence, **options) for prevalence in (0.3, 0.5)]
        first, second, labels = (np.concatenate([part[i] for part in parts], axis=-1) for i in range(3))
        macro, per_class = compare_aurocs(first, second, labels, parts[0][3], ["a", "b"], bootstrap=bootstrap)
        counts += [macro.p < 0.05, per_class["a"].p < 0.05]
    return counts / simulations


def test_a_true_null_is_rejected_in_one_of_twenty_by_delong():
    rng = np.random.default_rng(0)
    count = 0
    for _ in range(1000):
        first, second, labels, groups = two_models(rng, 100, 1)
        count += compare_aurocs(first, second, labels, groups, ["a"], bootstrap=100)[1]["a"].p < 0.05
    assert 0.035 <= count / 1000 <= 0.065


def test_a_true_null_is_rejected_in_one_of_twenty_where_patients_have_several_studies():
    shares = rejections(1000, 60, 3)
    assert ((shares >= 0.035) & (shares <= 0.065)).all(), shares


@pytest.mark.parametrize("studies_each", [1, 3])
def test_a_known_difference_is_found(studies_each):
    assert (rejections(40, 300, studies_each, advantage=0.8) > 0.9).all()


def test_delong_agrees_with_the_definition_over_all_pairs():
    rng = np.random.default_rng(3)
    labels = (rng.random(40) < 0.4).astype(float)
    scores = np.round(rng.normal(size=(2, 40)) + labels, 1)
    aurocs, covariance = delong(scores, labels)
    positives, negatives = scores[:, labels == 1], scores[:, labels == 0]
    wins = (positives[:, :, None] > negatives[:, None]) + 0.5 * (positives[:, :, None] == negatives[:, None])
    expected = np.cov(wins.mean(axis=2)) / positives.shape[1] + np.cov(wins.mean(axis=1)) / negatives.shape[1]
    assert covariance == pytest.approx(expected)
    assert aurocs == pytest.approx([auroc(row, labels) for row in scores])


def test_delong_and_the_bootstrap_agree_where_both_apply():
    first, second, labels, groups = two_models(np.random.default_rng(5), 400, 1, advantage=0.3)
    macro, per_class = compare_aurocs(first, second, labels, groups, ["a"])
    assert (macro.method, per_class["a"].method) == ("bootstrap", "delong")
    assert macro.value == pytest.approx(per_class["a"].value)
    assert macro.interval == pytest.approx(per_class["a"].interval, abs=0.004)


def test_each_class_is_tested_by_the_patients_of_its_known_studies():
    first, second, labels, groups = two_models(np.random.default_rng(6), 50, 2)
    once = labels.copy()
    once[1::2] = np.nan
    both = np.concatenate([labels, once], axis=1)
    first, second = (np.repeat(each, 2, axis=2) for each in (first, second))
    _, per_class = compare_aurocs(first, second, both, groups, ["all", "one each"], bootstrap=100)
    assert per_class["all"].method == "bootstrap"
    assert per_class["one each"].method == "delong"


def test_a_model_equals_itself():
    first, _, labels, groups = two_models(np.random.default_rng(7), 30, 2)
    macro, per_class = compare_aurocs(first, first, labels, groups, ["a"], bootstrap=100)
    assert macro == (0.0, [0.0, 0.0], 1.0, "bootstrap")
    assert per_class["a"].p == 1.0


def test_several_seeds_are_compared_by_their_mean():
    rng = np.random.default_rng(8)
    first, second, labels, groups = two_models(rng, 80, 1)
    seeds = np.concatenate([first, first + 0.5 * rng.normal(size=first.shape)])
    _, per_class = compare_aurocs(seeds, second, labels, groups, ["a"], bootstrap=100)
    mean = np.mean([auroc(one[:, 0], labels[:, 0]) for one in seeds])
    assert per_class["a"].value == pytest.approx(mean - auroc(second[0, :, 0], labels[:, 0]))


def test_undefined_classes_have_no_test_and_the_macro_mean_leaves_them_out():
    first, second, labels, groups = two_models(np.random.default_rng(9), 40, 2)
    none, single = np.zeros_like(labels), np.zeros_like(labels)
    single[:2] = 1  # one patient
    stacked = np.concatenate([labels, none, single], axis=1)
    first, second = (np.repeat(each, 3, axis=2) for each in (first, second))
    macro, per_class = compare_aurocs(first, second, stacked, groups, ["a", "none", "single"], bootstrap=100)
    assert per_class["none"] == (None, None, None, "bootstrap")
    assert per_class["single"].value is not None
    assert per_class["single"].p is None
    assert macro.value == pytest.approx((per_class["a"].value + per_class["single"].value) / 2)
    nothing, _ = compare_aurocs(first[..., :1], second[..., :1], none, groups, ["none"], bootstrap=100)
    assert nothing == (None, None, None, "bootstrap")


def test_holm_adjusts_as_its_definition_says():
    assert holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first": np.zeros((1, 3, 1))}, r"first must have shape \(seeds, studies, classes\)"),
        ({"second": np.zeros((4, 1))}, "second must have shape"),
        ({"groups": ["a"]}, "must name the 4 studies' patients and 1 classes, got 1 and 1"),
        ({"bootstrap": 99}, r"bootstrap \(--bootstrap\) must be at least 100 resamples, got 99"),
        ({"confidence": 1.0}, "confidence must lie strictly between 0 and 1, got 1.0"),
    ],
)
def test_comparison_refuses(change, message):
    arguments = {
        "first": np.zeros((1, 4, 1)),
        "second": np.zeros((1, 4, 1)),
        "labels": np.array([[0.0], [1.0], [0.0], [1.0]]),
        "groups": list("abcd"),
        "classes": ["a"],
    }
    with pytest.raises(ValueError, match=message):
        compare_aurocs(**arguments | change)


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (np.zeros(4), np.array([0.0, 1, 0, 1]), r"scores must have shape \(models, 4\)"),
        (np.zeros((2, 4)), np.array([0.0, 1, 0, 0]), "at least two of each, got 1 times 1 and 3 times 0"),
        (np.zeros((2, 5)), np.array([0.0, 1, 0, 1, np.nan]), "got 2 times 1 and 2 times 0"),
    ],
)
def test_delong_refuses(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        delong(scores, labels)
