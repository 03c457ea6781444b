"""Scores of single-label tasks beside accuracy: confusion, balanced accuracy, F1 and Cohen's kappa, with intervals."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recipes.data.studies import Task
from recipes.shared.scores.bootstrap import bootstrap_sums, percentile_interval
from recipes.shared.scores.confusion import confusion_matrix
from recipes.shared.scores.metrics import correct


def single_label_scores(
    probs: ArrayLike,
    labels: ArrayLike,
    groups: Sequence[str],
    classes: Sequence[str],
    *,
    task: Task,
    bootstrap: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, Any] | None:
    """Scores the most probable class of each study.

    From the counts ``n[i, j]`` of studies of class ``i`` taken for ``j``: recall ``n[i, i] / n[i, :]``, precision
    ``n[i, i] / n[:, i]``, F1 their harmonic mean; balanced accuracy is the mean recall, macro F1 the mean F1, each over
    the classes for which it is defined. Kappa is ``1 - sum(w n) / sum(w e)`` with the counts ``e`` expected of the same
    margins (Cohen 1960); ``w`` is 1 off the diagonal, and ``(i - j)^2`` for ordinal regression (Cohen 1968).

    Args:
        probs: Shape ``(N, C)``; the highest is the prediction, the first of equal ones.
        labels: Shape ``(N, C)``, one-hot; a row with a NaN is unlabelled and left out.
        groups: The patient of each study, length ``N``.
        classes: Names of the ``C`` classes.
        task: Kind of the target.
        bootstrap: Resamples of groups; 0 for no intervals.
        seed: Seed of the resampling.
        confidence: Coverage of the intervals, whose keys carry it in per cent.

    Returns:
        ``None`` for a multi-label task; else ``balanced_accuracy``, ``macro_f1``, ``kappa``, each with its interval
        (``kappa_ci95``) and ``None`` where undefined, ``kappa_weights`` (``None`` or ``"quadratic"``), ``per_class``
        (name to ``precision``, ``recall``, ``f1``) and ``confusion``, as
        :func:`~recipes.shared.scores.confusion.confusion_matrix` gives it.

    Raises:
        ValueError: If the shapes disagree, or a row of labels is not one-hot.
    """
    if task == "multi-label":
        return None
    values, truth = np.asarray(probs, np.float64), np.asarray(labels, np.float64)
    confusion = confusion_matrix(values, truth, classes)
    num_classes, known = len(classes), ~np.isnan(correct(values, truth))
    cells = np.zeros((len(values), num_classes**2))
    chosen = truth[known].argmax(axis=1) * num_classes + values[known].argmax(axis=1)
    cells[np.flatnonzero(known), chosen] = 1
    codes = np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    drawn = bootstrap_sums(cells, codes, samples=bootstrap, seed=seed)
    weights = _kappa_weights(num_classes, ordinal=task == "ordinal-regression")
    counts = np.asarray(confusion["matrix"], np.float64)
    point = _scores(counts[None], weights)
    spread = _scores(drawn.reshape(-1, num_classes, num_classes), weights)
    result: dict[str, Any] = {}
    for name, value in point.items():
        defined = not np.isnan(value[0])
        result[name] = float(value[0]) if defined else None
        result[f"{name}_ci{100 * confidence:g}"] = percentile_interval(spread[name], confidence) if defined else None
    parts = {"precision": _ratio(_diagonal(counts), counts.sum(0)), "recall": _ratio(_diagonal(counts), counts.sum(1))}
    parts["f1"] = _ratio(2 * _diagonal(counts), counts.sum(0) + counts.sum(1))
    return result | {
        "kappa_weights": "quadratic" if task == "ordinal-regression" else None,
        "per_class": {
            name: {key: None if np.isnan(part[c]) else float(part[c]) for key, part in parts.items()}
            for c, name in enumerate(classes)
        },
        "confusion": confusion,
    }


def _scores(counts: NDArray[np.float64], weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Computes the three scores of ``(B, C, C)`` counts, each ``(B,)``, NaN where undefined."""
    true, predicted, hits = counts.sum(2), counts.sum(1), _diagonal(counts)
    total = true.sum(1)
    expected = _ratio(true[:, :, None] * predicted[:, None, :], total[:, None, None])
    disagreement, by_chance = (counts * weights).sum((1, 2)), np.nan_to_num(expected * weights).sum((1, 2))
    return {
        "balanced_accuracy": _mean_of_defined(_ratio(hits, true)),
        "macro_f1": _mean_of_defined(_ratio(2 * hits, true + predicted)),
        "kappa": 1 - _ratio(disagreement, by_chance),
    }


def _kappa_weights(num_classes: int, *, ordinal: bool) -> NDArray[np.float64]:
    distance = np.abs(np.arange(num_classes)[:, None] - np.arange(num_classes))
    return (distance**2 if ordinal else distance > 0).astype(np.float64)


def _diagonal(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.diagonal(counts, axis1=-2, axis2=-1)


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    shape = np.broadcast_shapes(part.shape, whole.shape)
    return np.divide(part, whole, out=np.full(shape, np.nan), where=np.broadcast_to(whole > 0, shape))


def _mean_of_defined(values: NDArray[np.float64]) -> NDArray[np.float64]:
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0.0).sum(1), known.sum(1).astype(np.float64))
