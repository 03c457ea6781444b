"""Scores within subgroups."""

import json

import numpy as np
import pytest

from recipes.shared.scores.metrics import evaluate_predictions
from recipes.shared.scores.subgroups import age_band, subgroup_scores


@pytest.mark.parametrize(
    ("cell", "band"),
    [
        ("58", "40-59"), ("58.0", "40-59"), ("058Y", "40-59"), ("017y", "0-17"), ("18", "18-39"), ("006M", "0-17"),
        ("300D", "0-17"), ("90", "80 and older"), ("414Y", "unknown"), ("", "unknown"), ("-1", "unknown"),
        ("adult", "unknown"),
    ],
)  # fmt: skip
def test_ages_are_put_into_bands(cell, band):
    assert age_band(cell) == band


def predictions(studies=90):
    rng = np.random.default_rng(0)
    labels = (rng.random((studies, 3)) < [0.4, 0.3, 0.5]).astype(float)
    return 0.3 * labels + 0.7 * rng.random((studies, 3)), labels, [f"p{i // 2}" for i in range(studies)]


def test_each_subgroup_is_scored_on_its_own_studies_over_classes_that_all_have():
    probs, labels, groups = predictions()
    sex = ["F"] * 40 + ["M"] * 45 + [" "] * 5
    labels[40:, 1] = 0  # undefined among the men
    scores = subgroup_scores(probs, labels, groups, list("abc"), {"sex": sex}, bootstrap=30)["sex"]
    assert scores["classes"] == ["a", "c"]
    assert scores["too_small"] == {"unknown": 5}
    women = evaluate_predictions(probs[:40], labels[:40], groups[:40], list("abc"), task="multi-label", bootstrap=30)
    one = scores["values"]["F"]
    assert (one["studies"], one["groups"]) == (40, 20)
    for name in "abc":
        assert one["per_class"][name]["auroc"] == women["per_class"][name]["auroc"]
        assert one["per_class"][name]["auroc_ci95"] == women["per_class"][name]["auroc_ci95"]
    assert one["macro_auroc"] == pytest.approx(np.mean([women["per_class"][name]["auroc"] for name in "ac"]))
    low, high = one["macro_auroc_ci95"]
    assert low < one["macro_auroc"] < high
    assert scores["values"]["M"]["per_class"]["b"]["auroc"] is None
    json.dumps(scores)


def test_ages_become_bands_only_in_a_column_of_ages():
    probs, labels, groups = predictions()
    cells = [str(20 + i % 2 * 30) for i in range(90)]
    attributes = {"Patient Age": cells, "stage": cells}
    scores = subgroup_scores(probs, labels, groups, list("abc"), attributes, bootstrap=0)
    assert list(scores["Patient Age"]["values"]) == ["18-39", "40-59"]
    assert list(scores["stage"]["values"]) == ["20", "50"]


def test_single_label_tasks_have_subgroups_too():
    probs, _, groups = predictions()
    probs = probs / probs.sum(axis=1, keepdims=True)
    labels = np.eye(3)[np.arange(90) % 3]
    labels[:45, 0], labels[:45, 1] = 0, labels[:45, 0] + labels[:45, 1]  # no study of the first class
    view = ["AP"] * 45 + ["PA"] * 45
    scores = subgroup_scores(probs, labels, groups, list("abc"), {"view": view}, bootstrap=0)
    assert scores["view"]["classes"] == ["b", "c"]
    assert scores["view"]["values"]["AP"]["macro_auroc"] is not None


def test_without_a_subgroup_or_a_class_that_all_have_there_is_no_mean():
    probs, labels, groups = predictions()
    labels[:45] = 0
    few = {"site": [str(i) for i in range(90)], "half": ["a"] * 45 + ["b"] * 45}
    scores = subgroup_scores(probs, labels, groups, list("abc"), few, bootstrap=0)
    assert scores["site"]["values"] == {}
    assert len(scores["site"]["too_small"]) == 90
    assert scores["half"]["classes"] == []
    assert scores["half"]["values"]["b"]["macro_auroc"] is None
    with pytest.raises(ValueError, match="'sex' must have 90 values, one per study, got 1"):
        subgroup_scores(probs, labels, groups, list("abc"), {"sex": ["F"]})
