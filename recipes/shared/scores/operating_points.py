"""Sensitivity and specificity at thresholds that are chosen on the validation split and applied to the test split."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import roc_curve

from recipes.shared.scores.bootstrap import bootstrap_sums, percentile_interval
from recipes.shared.scores.metrics import check_predictions

SPECIFICITIES = (0.9,)
RATES = {"sensitivity": (0, 3), "specificity": (2, 1), "ppv": (0, 1), "npv": (2, 3)}
"""Each rate as ``a / (a + b)`` of two of the counts: true positives, false positives, true and false negatives."""


def choose_thresholds(
    probs: ArrayLike, labels: ArrayLike, *, specificities: Sequence[float] = SPECIFICITIES
) -> dict[str, float] | None:
    """Chooses the thresholds of one class: a study is positive whose probability is at least the threshold.

    Args:
        probs: Of the validation split, shape ``(N,)``.
        labels: Shape ``(N,)``: 1, 0 or NaN for unknown.
        specificities: Each asks for the highest sensitivity at which the specificity is at least that.

    Returns:
        ``"youden"`` (largest sensitivity + specificity - 1; of equal ones the highest threshold) and
        ``"specificity_0.9"``, ... to their thresholds; ``None`` without positives or negatives. Where no observed
        threshold is specific enough, it lies just above the highest probability.

    Raises:
        ValueError: If a specificity is not in ``(0, 1]``.
    """
    check_specificities(specificities)
    scores, truth = np.asarray(probs, np.float64), np.asarray(labels, np.float64)
    known = ~np.isnan(truth)
    if len(np.unique(truth[known])) < 2:
        return None
    false_positives, sensitivity, thresholds = roc_curve(truth[known], scores[known], drop_intermediate=False)
    thresholds[0] = np.nextafter(scores[known].max(), np.inf)
    chosen = {"youden": float(thresholds[np.argmax(sensitivity - false_positives)])}
    for value in specificities:
        # Rates are ratios of counts: 1 - 0.1 and 0.9 may differ in the last place.
        allowed = np.flatnonzero(1 - false_positives >= value - 1e-12)
        best = allowed[sensitivity[allowed] == sensitivity[allowed].max()]
        chosen[f"specificity_{value:g}"] = float(thresholds[best[0]])
    return chosen


def check_specificities(specificities: Sequence[float]) -> None:
    """Refuses specificities that are none.

    Args:
        specificities: As for :func:`choose_thresholds`.

    Raises:
        ValueError: If one is not in ``(0, 1]``.
    """
    wrong = [value for value in specificities if not 0 < value <= 1]
    if wrong:
        raise ValueError(f"specificities (--specificities) must lie in (0, 1], got {wrong[0]}. Give 0.9 for 90 %.")


def operating_points(
    val_probs: ArrayLike,
    val_labels: ArrayLike,
    probs: ArrayLike,
    labels: ArrayLike,
    groups: Sequence[str],
    classes: Sequence[str],
    *,
    specificities: Sequence[float] = SPECIFICITIES,
    bootstrap: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Scores each class at thresholds from the validation split.

    Intervals are percentiles over resamples of whole groups of the test split, at the same thresholds: they say nothing
    of how far another validation split would move these.

    Args:
        val_probs: Probabilities of the validation split, shape ``(M, C)``.
        val_labels: Its labels, shape ``(M, C)``: 1, 0 or NaN for unknown.
        probs: Probabilities of the test split, shape ``(N, C)``.
        labels: Its labels, shape ``(N, C)``.
        groups: The patient of each of its studies, length ``N``.
        classes: Names of the classes, length ``C``.
        specificities: As for :func:`choose_thresholds`.
        bootstrap: Number of resamples; 0 for no intervals.
        seed: Seed of the resampling.
        confidence: Coverage of the intervals; their keys carry it in per cent.

    Returns:
        Class to point to ``threshold``, ``sensitivity``, ``specificity``, ``ppv`` and ``npv``, each rate with its
        interval (``sensitivity_ci95``, ...), and the counts ``true_positives``, ``false_positives``,
        ``true_negatives``, ``false_negatives``. A rate without a study is ``None``; a class without positives or
        negatives in the validation split has no points.

    Raises:
        ValueError: If shapes disagree or a value is none of the allowed.
    """
    scores, truth = np.asarray(probs, np.float64), np.asarray(labels, np.float64)
    val_scores, val_truth = np.asarray(val_probs, np.float64), np.asarray(val_labels, np.float64)
    check_predictions(scores, truth, groups, classes)
    check_predictions(val_scores, val_truth, [""] * len(val_scores), classes)
    codes = np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    chosen = {
        name: choose_thresholds(val_scores[:, c], val_truth[:, c], specificities=specificities) or {}
        for c, name in enumerate(classes)
    }
    places = [(c, name, point) for c, name in enumerate(classes) for point in chosen[name]]
    if not places:
        return {name: {} for name in classes}
    outcomes = [_outcomes(scores[:, c] >= chosen[name][point], truth[:, c]) for c, name, point in places]
    drawn = bootstrap_sums(np.concatenate(outcomes, axis=1), codes, samples=bootstrap, seed=seed)
    result: dict[str, Any] = {name: {} for name in classes}
    for i, (_, name, point) in enumerate(places):
        counts = outcomes[i].sum(axis=0, keepdims=True)
        rates = _rates(counts, drawn[:, 4 * i : 4 * i + 4], confidence)
        named = zip(("true_positives", "false_positives", "true_negatives", "false_negatives"), counts[0], strict=True)
        result[name][point] = {"threshold": chosen[name][point]} | rates | {key: int(count) for key, count in named}
    return result


def _outcomes(predicted: NDArray[np.bool_], labels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns which of the four outcomes each study is, shape ``(N, 4)``; none for an unknown label."""
    positive, negative = labels == 1, labels == 0
    return np.stack(
        [predicted & positive, predicted & negative, ~predicted & negative, ~predicted & positive], axis=1
    ).astype(np.float64)


def _rates(counts: NDArray[np.float64], drawn: NDArray[np.float64], confidence: float) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, (hits, misses) in RATES.items():
        values = [
            np.divide(
                each[:, hits],
                each[:, hits] + each[:, misses],
                out=np.full(len(each), np.nan),
                where=each[:, hits] + each[:, misses] > 0,
            )
            for each in (counts, drawn)
        ]
        defined = not np.isnan(values[0][0])
        result[name] = float(values[0][0]) if defined else None
        interval = percentile_interval(values[1], confidence) if defined else None
        result[f"{name}_ci{100 * confidence:g}"] = interval
    return result
