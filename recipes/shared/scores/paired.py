"""Two models on the same studies: is the difference of their AUROCs more than the choice of patients explains?

The answer is for the patients of one test split and the models as they are trained. How far another seed of the
training moves a difference is a question of its own (`recipes.shared.scores.seeds`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import rankdata

from recipes.shared.scores.bootstrap import bootstrap_auroc, row_means
from recipes.shared.scores.metrics import auroc


class Difference(NamedTuple):
    """A difference of two AUROCs with its test.

    Attributes:
        value: First minus second; ``None`` where one is undefined.
        interval: Of the difference, or ``None``.
        p: Two-sided p-value of no difference, or ``None``.
        method: ``"delong"`` or ``"bootstrap"``.
    """

    value: float | None
    interval: list[float] | None
    p: float | None
    method: str


def delong(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Computes the AUROCs of several models on the same independent studies, and their covariance.

    From mid-ranks, in O(N log N) (DeLong, DeLong and Clarke-Pearson 1988; Sun and Xu 2014,
    https://doi.org/10.1109/LSP.2014.2337313).

    Args:
        scores: Shape ``(M, N)``, one row per model.
        labels: Shape ``(N,)``: 1 or 0.

    Returns:
        Shapes ``(M,)`` and ``(M, M)``.

    Raises:
        ValueError: If shapes disagree, or there are fewer than two positives or two negatives.
    """
    values, truth = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    if values.ndim != 2 or truth.shape != values.shape[1:]:
        raise ValueError(f"scores must have shape (models, {truth.size}) to match labels, got {values.shape}.")
    positive = truth == 1
    m, n = int(positive.sum()), int((truth == 0).sum())
    if m < 2 or n < 2 or m + n != len(truth):
        raise ValueError(f"labels must be 1 and 0, at least two of each, got {m} times 1 and {n} times 0.")
    ranks = rankdata(values, axis=1)
    of_positives = (ranks[:, positive] - rankdata(values[:, positive], axis=1)) / n
    of_negatives = 1 - (ranks[:, ~positive] - rankdata(values[:, ~positive], axis=1)) / m
    covariance = np.atleast_2d(np.cov(of_positives)) / m + np.atleast_2d(np.cov(of_negatives)) / n
    return of_positives.mean(axis=1), covariance


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusts the p-values of one table so that all its rejections together keep the error rate (Holm 1979).

    Args:
        p_values: ``None`` where there was no test; it stays, and does not count.

    Returns:
        Adjusted p-values in the same order.
    """
    tested = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for place, (p, i) in enumerate(tested):
        largest = max(largest, min(1.0, p * (len(tested) - place)))
        adjusted[i] = largest
    return adjusted


def compare_aurocs(
    first: ArrayLike,
    second: ArrayLike,
    labels: ArrayLike,
    groups: Sequence[str],
    classes: Sequence[str],
    *,
    bootstrap: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[Difference, dict[str, Difference]]:
    """Compares two models, of one or several training seeds each, on the same studies.

    A class whose known studies are of different patients is compared by DeLong's test. Several studies of a patient are
    not independent, so other classes, and the macro mean always, are compared by a paired bootstrap over patients: both
    models are scored on each resample, and the difference divided by its standard deviation over the resamples (times
    ``sqrt(m / (m - 1))`` for ``m`` patients of the rarer outcome) is compared to a normal distribution. Of several
    seeds the mean AUROC is compared.

    Args:
        first: Scores of the first model, shape ``(S, N, C)`` for ``S`` seeds.
        second: Scores of the second, shape ``(S', N, C)``.
        labels: Shape ``(N, C)``: 1, 0 or NaN for unknown.
        groups: The patient of each study, length ``N``.
        classes: Names of the classes, length ``C``.
        bootstrap: Number of resamples, at least 100.
        seed: Seed of the resampling.
        confidence: Coverage of the intervals.

    Returns:
        The difference of the macro means, and that of each class.

    Raises:
        ValueError: If shapes disagree or a value is none of the allowed.
    """
    scores = [np.asarray(each, np.float64) for each in (first, second)]
    truth = np.asarray(labels, np.float64)
    _check(scores, truth, groups, classes, bootstrap, confidence)
    codes = np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    aurocs = [np.array([_aurocs(one, truth) for one in each]).mean(axis=0) for each in scores]
    differences = aurocs[0] - aurocs[1]
    defined = np.flatnonzero(~np.isnan(differences))
    drawn = _mean_over_seeds(scores, truth, codes, bootstrap, seed)
    factors = np.array([_spread_factor(truth[:, c], codes) for c in range(len(classes))])
    replicates = differences + factors * (drawn[0] - drawn[1] - differences)
    per_class = {
        name: _class_difference(
            [each[:, :, c] for each in scores], truth[:, c], codes, differences[c], replicates[:, c], confidence
        )
        for c, name in enumerate(classes)
    }
    if not defined.size:
        return Difference(None, None, None, "bootstrap"), per_class
    macro = _test(float(differences[defined].mean()), _deviation(row_means(replicates[:, defined])), confidence)
    return Difference(*macro, "bootstrap"), per_class


def _class_difference(
    scores: Sequence[NDArray[np.float64]],
    labels: NDArray[np.float64],
    codes: NDArray[np.int64],
    difference: float,
    replicates: NDArray[np.float64],
    confidence: float,
) -> Difference:
    known = ~np.isnan(labels)
    one_each = len(np.unique(codes[known])) == known.sum()
    method = "delong" if one_each else "bootstrap"
    if np.isnan(difference):
        return Difference(None, None, None, method)
    if not one_each:
        if patients_of_rarer_outcome(labels, codes) < 2:
            return Difference(difference, None, None, method)
        return Difference(*_test(difference, _deviation(replicates), confidence), method)
    if min((labels == 1).sum(), (labels == 0).sum()) < 2:
        return Difference(difference, None, None, method)
    sizes = [len(each) for each in scores]
    weights = np.repeat([1 / sizes[0], -1 / sizes[1]], sizes)
    _, covariance = delong(np.concatenate(scores)[:, known], labels[known])
    variance = float(weights @ covariance @ weights)
    return Difference(*_test(difference, max(variance, 0.0) ** 0.5, confidence), method)


def _mean_over_seeds(
    scores: Sequence[NDArray[np.float64]],
    labels: NDArray[np.float64],
    codes: NDArray[np.int64],
    samples: int,
    seed: int,
) -> list[NDArray[np.float64]]:
    """Computes the mean AUROC of each model's seeds in every resample: shape ``(B, C)`` per model."""
    columns = np.concatenate([one for each in scores for one in each], axis=1)
    number = sum(map(len, scores))
    aurocs = bootstrap_auroc(columns, np.tile(labels, number), codes, samples=samples, seed=seed)
    aurocs = aurocs.reshape(samples, number, labels.shape[1])
    return [part.mean(axis=1) for part in np.split(aurocs, [len(scores[0])], axis=1)]


def _test(difference: float, deviation: float, confidence: float) -> tuple[float, list[float] | None, float | None]:
    """Returns the difference, its interval and its p-value under a normal distribution."""
    if np.isnan(deviation):
        return difference, None, None
    half = float(ndtri((1 + confidence) / 2)) * deviation
    interval = [difference - half, difference + half]
    if deviation < 1e-12:  # the models rank alike, or differ in every resample by the same
        return difference, interval, 1.0 if abs(difference) < 1e-12 else 0.0
    return difference, interval, float(2 * ndtr(-abs(difference) / deviation))


def patients_of_rarer_outcome(labels: NDArray[np.float64], codes: NDArray[np.int64]) -> int:
    """Counts patients with a positive study, and those with a negative one; the smaller number.

    Args:
        labels: Shape ``(N,)``: 1, 0 or NaN for unknown.
        codes: Number of the patient of each study, shape ``(N,)``.
    """
    return min(len(np.unique(codes[labels == outcome])) for outcome in (0, 1))


def _spread_factor(labels: NDArray[np.float64], codes: NDArray[np.int64]) -> float:
    """Returns by how much to widen the spread over resamples.

    Drawn with replacement from ``m`` values, a mean has the variance of the values divided by ``m``, where an unbiased
    estimate divides by ``m - 1``; the rarer outcome's patients decide.
    """
    m = patients_of_rarer_outcome(labels, codes)
    return (m / (m - 1)) ** 0.5 if m > 1 else 1.0


def _deviation(replicates: NDArray[np.float64]) -> float:
    """Returns the standard deviation of the known replicates; NaN below two."""
    known = replicates[~np.isnan(replicates)]
    return float(known.std(ddof=1)) if known.size > 1 else float("nan")


def _aurocs(scores: NDArray[np.float64], labels: NDArray[np.float64]) -> list[float]:
    values = [auroc(scores[:, c], labels[:, c]) for c in range(labels.shape[1])]
    return [float("nan") if value is None else value for value in values]


def _check(
    scores: Sequence[NDArray[np.float64]],
    labels: NDArray[np.float64],
    groups: Sequence[str],
    classes: Sequence[str],
    bootstrap: int,
    confidence: float,
) -> None:
    for name, values in zip(("first", "second"), scores, strict=True):
        if labels.ndim != 2 or values.shape[1:] != labels.shape or not len(values):
            raise ValueError(
                f"{name} must have shape (seeds, studies, classes) to match labels of shape {labels.shape}, got "
                f"{values.shape}."
            )
    if len(groups) != len(labels) or len(classes) != labels.shape[1]:
        raise ValueError(
            f"groups and classes must name the {labels.shape[0]} studies' patients and {labels.shape[1]} classes, got "
            f"{len(groups)} and {len(classes)}."
        )
    if bootstrap < 100:
        raise ValueError(f"bootstrap (--bootstrap) must be at least 100 resamples, got {bootstrap}.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie strictly between 0 and 1, got {confidence}.")
