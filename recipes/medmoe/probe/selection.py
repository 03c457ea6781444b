"""Chooses the weight decay of a linear probe: on a validation set, or by cross-validation inside the subset."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recipes.data.studies import Task
from recipes.medmoe.probe.linear import fit_probe, predict_probe, validation_score

WEIGHT_DECAYS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""The grid: ``mean loss + weight_decay / 2 * |w|^2`` on standardised features."""

FIXED = 1e-1
"""Weight decay where the subset is too small to choose one."""

MOST_FOLDS = 5

Array = NDArray[np.float64]


class Chosen(NamedTuple):
    """A weight decay and what chose it.

    Attributes:
        weight_decay: The one that was chosen.
        val_score: Its score on the studies that chose it; ``None`` if it is fixed.
        chosen_by: ``"validation"``, ``"N folds"`` or ``"fixed"``.
        chosen_on: How many studies chose it.
    """

    weight_decay: float
    val_score: float | None
    chosen_by: str
    chosen_on: int


def choose_on_validation(features: Array, labels: Array, val_features: Array, val_labels: Array, task: Task) -> Chosen:
    """Chooses the weight decay whose classifier, fitted on the subset, scores best on the validation set.

    Args:
        features: Of the subset, ``(N, F)``.
        labels: Of the subset, ``(N, C)``.
        val_features: Of the validation set, ``(M, F)``.
        val_labels: Of the validation set, ``(M, C)``.
        task: What the labels are.
    """
    probs = {
        weight_decay: predict_probe(fit_probe(features, labels, task, weight_decay), val_features, task)
        for weight_decay in WEIGHT_DECAYS
    }
    return _best(probs, val_labels, task, "validation")


def choose_inside(
    features: Array, labels: Array, groups: list[str], task: Task, *, seed: int, standardise: bool = True
) -> Chosen:
    """Chooses the weight decay by cross-validation inside the subset, groups (patients) kept together.

    There are as many folds as the rarest class has groups, at most `MOST_FOLDS`, and each class's groups are dealt out
    evenly, as far as groups of several classes allow. The predictions of all folds are scored together. A subset in
    which a class has one group only cannot be divided: the weight decay is then `FIXED`.

    Args:
        features: Of the subset, ``(N, F)``.
        labels: Of the subset, ``(N, C)``.
        groups: The group of each study.
        task: What the labels are.
        seed: Of the folds.
        standardise: As for `fit_probe`.
    """
    folds = _folds(labels, groups, seed)
    number = int(folds.max()) + 1
    if number < 2:
        return Chosen(FIXED, None, "fixed", 0)
    probs: dict[float, Array] = {}
    for weight_decay in WEIGHT_DECAYS:
        probs[weight_decay] = np.zeros(labels.shape)
        for fold in range(number):
            out = folds == fold
            probe = fit_probe(features[~out], labels[~out], task, weight_decay, standardise=standardise)
            probs[weight_decay][out] = predict_probe(probe, features[out], task)
    return _best(probs, labels, task, f"{number} folds")


def _best(probs: dict[float, Array], labels: Array, task: Task, chosen_by: str) -> Chosen:
    """Returns the best one; of equals the strongest."""
    scores = {value: validation_score(probs[value], labels, task) for value in sorted(probs, reverse=True)}
    best = max(scores, key=lambda value: scores[value])  # the first of equals
    return Chosen(best, scores[best][0], chosen_by, len(labels))


def _folds(labels: Array, groups: list[str], seed: int) -> NDArray[np.int64]:
    """Returns the fold of each study; all 0 where some class has one group only."""
    codes = np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    positive = labels == 1
    of_group = np.zeros((codes.max() + 1, labels.shape[1]))
    np.maximum.at(of_group, codes, positive.astype(float))
    having = of_group.sum(axis=0)
    number = min(MOST_FOLDS, int(having[having > 0].min(initial=MOST_FOLDS)), len(of_group))
    if number < 2:
        return np.zeros(len(labels), dtype=np.int64)
    fold_of_group = np.full(len(of_group), -1)
    order = np.random.default_rng(seed).permutation(len(of_group))
    counts = np.zeros((number, labels.shape[1]))
    # The rarest class first; a group goes where its class has been seen least.
    for c in [*np.argsort(having, kind="stable"), None]:
        for group in order:
            if fold_of_group[group] >= 0 or (c is not None and not of_group[group, c]):
                continue
            seen = counts[:, c] if c is not None else np.bincount(fold_of_group[fold_of_group >= 0], minlength=number)
            fold = int(np.argmin(seen))
            fold_of_group[group] = fold
            counts[fold] += of_group[group]
    return fold_of_group[codes]
