import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, average_precision_score, roc_auc_score

from recipes.shared.scores import bootstrap as bootstrap_module
from recipes.shared.scores.bootstrap import resample_counts
from recipes.shared.scores.metrics import auroc, evaluate_predictions

CLASSES = ("Effusion", "Nodule", "Hernia")


def fake_predictions(studies=60, seed=0):
    """Multi-label predictions with ties, unknown labels and two studies a patient; no Hernia positive."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((studies, 3)) < [0.4, 0.15, 0.0]).astype(np.float32)
    probs = np.round(0.3 * labels + 0.7 * rng.random((studies, 3)), 1)
    labels[rng.random((studies, 3)) < 0.1] = np.nan
    groups = [f"patient {i // 2}" for i in range(studies)]
    return probs, labels, groups


def naive_auroc(scores, labels):
    wins = [
        1.0 if high > low else 0.5 if high == low else 0.0
        for high in scores[labels == 1]
        for low in scores[labels == 0]
    ]
    return np.mean(wins) if wins else None


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=60))
def test_auroc_agrees_with_sklearn(pairs):
    scores = np.array([score / 6 for score, _ in pairs])
    labels = np.array([float(label) for _, label in pairs])
    if labels.min() == labels.max():
        assert auroc(scores, labels) is None
    else:
        assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(-5, 5), min_size=4, max_size=30))
def test_auroc_depends_on_the_order_of_scores_alone(numbers):
    scores = np.array(numbers, float)
    labels = np.arange(len(scores)) % 2
    assert auroc(scores, labels) == pytest.approx(auroc(np.exp(scores), labels))
    assert auroc(-scores, labels) == pytest.approx(1 - auroc(scores, labels))


def test_auroc_leaves_out_unknown_labels_and_may_then_be_undefined():
    scores = np.array([0.1, 0.9, 0.8, 0.2])
    assert auroc(scores, [0, np.nan, 1, 0]) == 1.0
    assert auroc([np.nan, 0.9, 0.8, 0.2], [np.nan, 0, 1, 0]) == 0.5
    assert auroc(scores, [0, np.nan, np.nan, 0]) is None
    assert auroc([], []) is None


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.1, 0.2], [1], "scores and labels must be 1-D and of the same length"),
        ([[0.1]], [[1]], "Call auroc once per class"),
        ([0.1, 0.2], [1, 2], "labels must be 0, 1 or NaN"),
        ([0.1, np.nan], [1, 0], "scores must be numbers, got NaN for 1 labelled studies"),
    ],
)
def test_auroc_refuses(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        auroc(scores, labels)


def test_evaluation_reports_what_the_definitions_say():
    probs, labels, groups = fake_predictions()
    result = evaluate_predictions(probs, labels, groups, CLASSES, task="multi-label", bootstrap=50)
    known = ~np.isnan(labels[:, 0])
    one = result["per_class"]["Effusion"]
    assert one["auroc"] == pytest.approx(roc_auc_score(labels[known, 0], probs[known, 0]))
    assert one["average_precision"] == pytest.approx(average_precision_score(labels[known, 0], probs[known, 0]))
    assert (one["positives"], one["negatives"]) == ((labels[:, 0] == 1).sum(), (labels[:, 0] == 0).sum())
    assert one["prevalence"] == one["positives"] / known.sum()
    assert (result["studies"], result["groups"]) == (60, 30)
    assert "accuracy" not in result
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_undefined_classes_are_named_and_left_out_of_the_macro_mean():
    probs, labels, groups = fake_predictions()
    result = evaluate_predictions(probs, labels, groups, CLASSES, task="multi-label", bootstrap=50)
    per_class = result["per_class"]
    assert result["undefined_classes"] == ["Hernia"]
    assert per_class["Hernia"]["auroc"] is per_class["Hernia"]["auroc_ci95"] is None
    assert per_class["Hernia"]["average_precision"] is None
    assert per_class["Hernia"]["prevalence"] == 0.0
    assert result["macro_auroc"] == pytest.approx((per_class["Effusion"]["auroc"] + per_class["Nodule"]["auroc"]) / 2)


def test_with_no_defined_class_everything_is_none():
    result = evaluate_predictions(
        [[0.2], [0.3]], [[np.nan], [np.nan]], ["a", "b"], ["Edema"], task="multi-label", bootstrap=20
    )
    assert result["macro_auroc"] is result["macro_auroc_ci95"] is None
    assert result["per_class"]["Edema"]["prevalence"] is None
    assert result["undefined_classes"] == ["Edema"]
    assert result["bootstrap"]["skipped"] == 0
    json.dumps(result, allow_nan=False)


def test_bootstrap_agrees_with_a_loop_over_the_same_resamples():
    probs, labels, groups = fake_predictions(studies=24, seed=1)
    result = evaluate_predictions(probs, labels, groups, CLASSES, task="multi-label", bootstrap=150, seed=3)

    names = sorted(set(groups))
    rng = np.random.default_rng(3)
    macros, per_class, skipped = [], {0: [], 1: []}, 0
    for _ in range(150):
        rows = [i for g in rng.integers(len(names), size=len(names)) for i in range(24) if groups[i] == names[g]]
        values = [naive_auroc(probs[rows, c], labels[rows, c]) for c in (0, 1)]
        skipped += values.count(None)
        for c in (0, 1):
            per_class[c] += [values[c]] if values[c] is not None else []
        if values != [None, None]:
            macros.append(np.mean([v for v in values if v is not None]))

    assert result["macro_auroc_ci95"] == pytest.approx(np.quantile(macros, [0.025, 0.975]).tolist())
    for c, name in ((0, "Effusion"), (1, "Nodule")):
        expected = np.quantile(per_class[c], [0.025, 0.975]).tolist()
        assert result["per_class"][name]["auroc_ci95"] == pytest.approx(expected)
    assert result["bootstrap"] == {"samples": 150, "seed": 3, "skipped": skipped}


def test_bootstrap_does_not_depend_on_the_chunk(monkeypatch):
    probs, labels, groups = fake_predictions()
    arguments = {"task": "multi-label", "bootstrap": 20}
    whole = evaluate_predictions(probs, labels, groups, CLASSES, **arguments)
    monkeypatch.setattr(bootstrap_module, "CHUNK", 7)
    assert evaluate_predictions(probs, labels, groups, CLASSES, **arguments) == whole


def test_a_rare_class_is_skipped_in_resamples_without_it_and_counted():
    labels = np.zeros((20, 2))
    labels[0, 0], labels[::2, 1] = 1, 1
    probs = np.linspace(0, 1, 40).reshape(20, 2)
    result = evaluate_predictions(
        probs, labels, [str(i) for i in range(20)], ["rare", "common"], task="multi-label", bootstrap=200
    )
    drawn = resample_counts(20, 200, np.random.default_rng(0))
    order = sorted(str(i) for i in range(20))
    assert result["bootstrap"]["skipped"] == int((drawn[:, order.index("0")] == 0).sum()) > 0
    assert result["macro_auroc_ci95"] is not None


def test_intervals_follow_patients_not_studies():
    rng = np.random.default_rng(0)
    labels = (rng.random((40, 1)) < 0.5).astype(float)
    probs = np.clip(0.4 * labels + 0.6 * rng.random((40, 1)), 0, 1)
    arguments = {"classes": ["a"], "task": "multi-label", "bootstrap": 400}
    apart = evaluate_predictions(probs, labels, [str(i) for i in range(40)], **arguments)
    copies = np.repeat(np.arange(40), 10)
    copied = evaluate_predictions(probs[copies], labels[copies], [str(i) for i in copies], **arguments)
    assert copied["macro_auroc_ci95"] == pytest.approx(apart["macro_auroc_ci95"])


def test_no_bootstrap_gives_no_interval_and_another_confidence_another_key():
    probs, labels, groups = fake_predictions()
    none = evaluate_predictions(probs, labels, groups, CLASSES, task="multi-label", bootstrap=0)
    assert none["macro_auroc"] is not None
    assert none["macro_auroc_ci95"] is None
    wide = evaluate_predictions(probs, labels, groups, CLASSES, task="multi-label", bootstrap=99)
    narrow = evaluate_predictions(probs, labels, groups, CLASSES, task="multi-label", bootstrap=99, confidence=0.5)
    assert "macro_auroc_ci95" not in narrow
    assert np.ptp(narrow["macro_auroc_ci50"]) < np.ptp(wide["macro_auroc_ci95"])


@pytest.mark.parametrize("task", ["multi-class", "binary-class", "ordinal-regression"])
def test_single_label_tasks_get_an_accuracy_over_labelled_studies(task):
    rng = np.random.default_rng(0)
    truth = rng.integers(3, size=50)
    probs = rng.dirichlet(np.ones(3), size=50)
    labels = np.eye(3)[truth]
    labels[:5] = np.nan
    result = evaluate_predictions(probs, labels, [str(i) for i in range(50)], "abc", task=task, bootstrap=10)
    assert result["accuracy"] == pytest.approx(accuracy_score(truth[5:], probs[5:].argmax(axis=1)))
    nothing = evaluate_predictions(probs, labels * np.nan, list("x" * 50), "abc", task=task, bootstrap=10)
    assert nothing["accuracy"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [[0.0]]}, "probs and labels must both have shape"),
        ({"probs": np.zeros((0, 1)), "labels": np.zeros((0, 1))}, "at least one study"),
        ({"classes": ["a", "b"]}, "classes must name the 1 columns of probs, got 2 names"),
        ({"groups": ["p"]}, r"groups must name one group per study \(2\), got 1"),
        ({"probs": [[1.5], [0.1]]}, r"probs must lie in \[0, 1\], got 1.5. Apply the sigmoid"),
        ({"probs": [[np.nan], [0.1]]}, "got nan"),
        ({"labels": [[0.5], [0.0]]}, "labels must be 0, 1 or NaN"),
        ({"task": "regression"}, "task must be one of multi-label, .* got 'regression'"),
        ({"bootstrap": -1}, "bootstrap must be 0"),
        ({"confidence": 1.0}, "confidence must lie strictly between 0 and 1"),
        ({"task": "multi-class"}, "labels must be one-hot for a single-label task, but 1 rows are not"),
        (
            {"classes": ["a", "a"], "probs": np.zeros((2, 2)), "labels": np.zeros((2, 2))},
            "classes must differ",
        ),
    ],
)
def test_evaluation_refuses(change, message):
    arguments = {
        "probs": [[0.2], [0.3]],
        "labels": [[0.0], [1.0]],
        "groups": ["p", "q"],
        "classes": ["a"],
        "task": "multi-label",
    }
    with pytest.raises(ValueError, match=message):
        evaluate_predictions(**(arguments | change))


def test_the_interval_of_the_accuracy_agrees_with_a_loop_over_the_same_resamples():
    rng = np.random.default_rng(5)
    probs = rng.dirichlet(np.ones(3), size=24)
    labels = np.eye(3)[rng.integers(3, size=24)]
    labels[3] = np.nan
    groups = [f"patient {i // 2:02d}" for i in range(24)]
    result = evaluate_predictions(probs, labels, groups, "abc", task="multi-class", bootstrap=100, seed=3)
    draws = np.random.default_rng(3)
    expected = []
    for _ in range(100):
        rows = [row for g in draws.integers(12, size=12) for row in (2 * g, 2 * g + 1) if row != 3]
        expected.append(np.mean(probs[rows].argmax(1) == labels[rows].argmax(1)))
    assert result["accuracy_ci95"] == pytest.approx(np.quantile(expected, [0.025, 0.975]).tolist())


def test_an_accuracy_without_resamples_or_labels_has_no_interval():
    probs, labels = np.eye(2), np.eye(2)
    arguments = {"groups": ["p", "q"], "classes": ["a", "b"], "task": "binary-class"}
    assert evaluate_predictions(probs, labels, bootstrap=0, **arguments)["accuracy_ci95"] is None
    assert evaluate_predictions(probs, labels * np.nan, bootstrap=9, **arguments)["accuracy_ci95"] is None
    assert evaluate_predictions(probs, labels, bootstrap=9, **arguments)["accuracy_ci95"] == [1.0, 1.0]


def test_the_accuracy_resamples_do_not_depend_on_the_chunk(monkeypatch):
    codes, values = np.arange(30) // 3, np.arange(30.0)
    whole = bootstrap_module.bootstrap_mean(values, codes, samples=25, seed=1)
    monkeypatch.setattr(bootstrap_module, "CHUNK", 7)
    assert np.array_equal(bootstrap_module.bootstrap_mean(values, codes, samples=25, seed=1), whole)


def test_the_interval_of_average_precision_agrees_with_a_loop_over_the_same_resamples():
    probs, labels, groups = fake_predictions()
    result = evaluate_predictions(probs, labels, groups, CLASSES, task="multi-label", bootstrap=40, seed=3)
    codes = np.unique(groups, return_inverse=True)[1]
    expected = []
    for counts in resample_counts(codes.max() + 1, 40, np.random.default_rng(3)):
        rows = np.repeat(np.arange(len(probs)), counts[codes].astype(int))
        rows = rows[~np.isnan(labels[rows, 1])]
        if labels[rows, 1].any():
            expected.append(average_precision_score(labels[rows, 1], probs[rows, 1]))
    assert result["per_class"]["Nodule"]["average_precision_ci95"] == pytest.approx(
        np.quantile(expected, [0.025, 0.975])
    )
    assert result["per_class"]["Hernia"]["average_precision_ci95"] is None
    each = [result["per_class"][name]["average_precision"] for name in CLASSES[:2]]
    assert result["macro_average_precision"] == pytest.approx(np.mean(each))
    low, high = result["macro_average_precision_ci95"]
    assert low < result["macro_average_precision"] < high
