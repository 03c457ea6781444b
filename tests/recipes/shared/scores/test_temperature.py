"""Temperature scaling: known temperatures come back, the likelihood never falls, unknown labels do not count."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.shared.scores.temperature import LIMITS, fit_temperatures, mean_nll, scaled_probs
from recipes.shared.tasks import TaskHead

TASKS = ("multi-label", "multi-class", "binary-class", "ordinal-regression")


def simulated(task, studies, seed=0):
    """Logits of three classes, and labels drawn from their probabilities."""
    rng = np.random.default_rng(seed)
    if task == "multi-label":
        logits = rng.normal(0, 2, (studies, 3))
        return logits, (rng.random((studies, 3)) < scaled_probs(logits, np.ones(3), task=task)).astype(float)
    columns = {"binary-class": 2, "multi-class": 3, "ordinal-regression": 2}[task]
    logits = rng.normal(0, 2, (studies, columns))
    if task == "ordinal-regression":
        logits = logits[:, :1] + np.array([1.0, -1.0])
    probs = scaled_probs(logits, np.ones(3), task=task)
    classes = probs.shape[1]
    return logits, np.eye(classes)[(rng.random((studies, 1)) > probs.cumsum(axis=1)).sum(axis=1).clip(max=classes - 1)]


@pytest.mark.parametrize("true", [0.5, 1.7, 4.0])
@pytest.mark.parametrize("task", TASKS)
def test_a_known_temperature_is_recovered(task, true):
    logits, labels = simulated(task, 20_000)
    fit = fit_temperatures(true * logits, labels, task=task)
    assert fit.values == pytest.approx(np.full(labels.shape[1], true), rel=0.05)
    assert fit.nll_after < fit.nll_before
    assert fit.nll_after == pytest.approx(mean_nll(logits, labels, np.ones(labels.shape[1]), task=task), abs=1e-3)


def test_each_class_gets_its_own_temperature_from_its_known_labels():
    logits, labels = simulated("multi-label", 20_000, seed=1)
    rng = np.random.default_rng(2)
    hidden = rng.random(labels.shape) < 0.3
    true = np.array([0.5, 1.0, 3.0])
    fit = fit_temperatures(
        np.where(hidden, 1e6, true * logits), np.where(hidden, np.nan, labels), task="multi-label", scope="per-class"
    )
    assert fit.values == pytest.approx(true, rel=0.05)


@pytest.mark.parametrize("scope", ["shared", "per-class"])
def test_a_class_without_both_labels_keeps_its_scores_and_bends_no_other(scope):
    logits, labels = simulated("multi-label", 2000)
    labels[:, 1] = 0
    labels[:, 2] = np.nan
    fit = fit_temperatures(2 * logits, labels, task="multi-label", scope=scope)
    alone = fit_temperatures(2 * logits[:, :1], labels[:, :1], task="multi-label")
    assert fit.values.tolist() == [alone.values[0], 1.0, 1.0]
    assert fit.to_json(["a", "b", "c"])["not_fitted"] == ["b", "c"]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from(TASKS), st.floats(0.01, 100))
def test_the_likelihood_of_the_validation_split_never_falls(seed, task, factor):
    logits, labels = simulated(task, 12, seed)
    labels = np.random.default_rng(seed).permutation(labels)
    fit = fit_temperatures(factor * logits, labels, task=task)
    assert fit.nll_after <= fit.nll_before
    assert (fit.values >= LIMITS[0]).all()
    assert (fit.values <= LIMITS[1]).all()


@pytest.mark.parametrize("task", TASKS)
def test_probabilities_at_temperature_one_are_those_of_the_head(task):
    logits, labels = simulated(task, 50)
    head = TaskHead(4, labels.shape[1], task)
    expected = head.probs(torch.tensor(logits)).numpy()
    probs = scaled_probs(logits, np.ones(labels.shape[1]), task=task)
    assert probs == pytest.approx(expected, abs=1e-6)
    if task != "multi-label":
        truth = (probs * labels).sum(axis=1)
        assert mean_nll(logits, labels, np.ones(labels.shape[1]), task=task) == pytest.approx(-np.log(truth).mean())


def test_the_order_of_scores_stays_at_any_temperature():
    logits, _ = simulated("multi-label", 50)
    assert (scaled_probs(logits, np.full(3, 7.0), task="multi-label").argsort(axis=0) == logits.argsort(axis=0)).all()


@pytest.mark.parametrize("task", TASKS)
def test_without_any_known_label_nothing_changes(task):
    logits, labels = simulated(task, 5)
    fit = fit_temperatures(logits, np.full_like(labels, np.nan), task=task)
    assert fit.values.tolist() == [1.0] * labels.shape[1]
    assert (fit.nll_before, fit.nll_after) == (None, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "regression"}, "task must be one of multi-label, .*got 'regression'"),
        ({"scope": "each"}, "scope must be one of shared, per-class, got 'each'"),
        ({"task": "multi-class", "scope": "per-class"}, r"Use scope=\"shared\" \(--temperature shared\)"),
        ({"logits": np.zeros((4, 2))}, r"must have shape \(4, 3\) to match labels of shape \(4, 3\), got \(4, 2\)"),
        ({"task": "ordinal-regression"}, r"must have shape \(4, 2\)"),
        ({"logits": np.full((4, 3), np.inf)}, "logits must be finite, got inf"),
    ],
)
def test_fitting_refuses(change, message):
    arguments = {"logits": np.zeros((4, 3)), "labels": np.eye(3)[[0, 1, 2, 0]], "task": "multi-label"}
    with pytest.raises(ValueError, match=message):
        fit_temperatures(**arguments | change)
