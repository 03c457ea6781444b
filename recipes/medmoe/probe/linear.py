"""A linear classifier on frozen features: logistic regression with its weight decay chosen on validation."""

import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from recipes.data.studies import Task
from recipes.shared.scores.metrics import evaluate_predictions

MAX_STEPS = 1000
EPS = 1e-12
"""Smallest probability whose logarithm is taken."""

Array = NDArray[np.float64]
Column = Pipeline | float
"""A fitted classifier, or the probability of a class that the training data show always or never."""


class LinearProbe(NamedTuple):
    """A fitted probe.

    Attributes:
        columns: One for a single-label task, one per class for a multi-label task.
        classes: Number of classes.
        converged: Whether every regression did.
    """

    columns: tuple[Column, ...]
    classes: int
    converged: bool


def fit_probe(
    features: Array, labels: Array, task: Task, weight_decay: float, *, standardise: bool = True
) -> LinearProbe:
    """Fits a multinomial regression, or one per class for multi-label tasks, on standardised features.

    Minimises ``mean loss + weight_decay / 2 * |w|^2``, the bias free; features are brought to mean 0 and standard
    deviation 1 over the studies that it is fitted on. Studies without a label are left out, class by class where
    the task is multi-label. Grades of an ordinal task are taken as classes.

    Args:
        features: Shape ``(N, F)``.
        labels: Shape ``(N, C)``: 1, 0 or NaN.
        task: What the labels are.
        weight_decay: Above 0.
        standardise: Whether features are standardised, which few studies do not allow: it would make their noise as
            large as all else.

    Returns:
        The probe.

    Raises:
        ValueError: If no study is labelled.
    """
    targets = labels.T if task == "multi-label" else _class_numbers(labels)[None]
    fitted = [_fit_column(features, target, weight_decay, standardise) for target in targets]
    return LinearProbe(tuple(column for column, _ in fitted), labels.shape[1], all(good for _, good in fitted))


def predict_probe(probe: LinearProbe, features: Array, task: Task) -> Array:
    """Predicts probabilities, shape ``(N, C)``; 0 for a class that the training data did not have.

    Args:
        probe: What :func:`fit_probe` gave.
        features: Shape ``(N, F)``.
        task: As for the fit.
    """
    probs = np.zeros((len(features), probe.classes))
    if task == "multi-label":
        for c, column in enumerate(probe.columns):
            probs[:, c] = column if isinstance(column, float) else column.predict_proba(features)[:, 1]
        return probs
    (column,) = probe.columns
    if isinstance(column, float):
        probs[:, int(column)] = 1
    else:
        probs[:, column.classes_.astype(int)] = column.predict_proba(features)
    return probs


def validation_score(probs: Array, labels: Array, task: Task) -> tuple[float, float]:
    """Computes what weight decays are compared by: accuracy (multi-label: macro AUROC), then log-likelihood.

    Args:
        probs: Shape ``(N, C)``.
        labels: Shape ``(N, C)``.
        task: What the labels are.
    """
    names = [str(c) for c in range(labels.shape[1])]
    groups = [str(row) for row in range(len(labels))]
    scores = evaluate_predictions(probs, labels, groups, names, task=task, bootstrap=0)
    main = scores["macro_auroc"] if task == "multi-label" else scores["accuracy"]
    hit, miss = np.log(np.maximum(probs, EPS)), np.log(np.maximum(1 - probs, EPS))
    known = ~np.isnan(labels) if task == "multi-label" else labels == 1
    likelihood = np.where(labels == 1, hit, miss)[known]
    return (0.0 if main is None else main), float(likelihood.mean()) if known.any() else 0.0


def _class_numbers(labels: Array) -> Array:
    """Returns the number of each study's class, NaN where it is not labelled."""
    known = ~np.isnan(labels).any(axis=1)
    return np.where(known, np.nan_to_num(labels).argmax(axis=1), np.nan)


def _fit_column(features: Array, target: Array, weight_decay: float, standardise: bool) -> tuple[Column, bool]:
    known = ~np.isnan(target)
    if not known.any():
        raise ValueError("labels must be known for at least one study of the training set, got none.")
    values = np.unique(target[known])
    if len(values) == 1:
        return float(values[0]), True
    model = LogisticRegression(C=1 / (weight_decay * known.sum()), max_iter=MAX_STEPS)
    pipeline = make_pipeline(StandardScaler(), model) if standardise else make_pipeline(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        pipeline.fit(features[known], target[known])
    return pipeline, not any(issubclass(one.category, ConvergenceWarning) for one in caught)
