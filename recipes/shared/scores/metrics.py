"""AUROC, average precision and accuracy of a classifier on a test set, with patient-level intervals.

Every number leaves as a plain Python value that ``json`` can write; what is undefined is ``None``.
The two intervals answer different questions and are never mixed: the bootstrap here says how far the
test set determines one model's AUROC; the t-interval of `recipes.shared.scores.seeds` says how far training
with another seed moves it.
"""

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score

from recipes.data.studies import Task
from recipes.shared.scores.bootstrap import (
    bootstrap_auroc,
    bootstrap_average_precision,
    bootstrap_mean,
    percentile_interval,
    row_means,
)

SLACK = 1e-4
"""How far a probability computed in low precision may lie outside [0, 1]."""


def auroc(scores: ArrayLike, labels: ArrayLike) -> float | None:
    """Computes the area under the ROC curve: the chance that a positive outscores a negative, ties counting half.

    Computed from mid-ranks (Mann-Whitney U), in O(N log N).

    Args:
        scores: Shape ``(N,)``, higher means more likely.
        labels: Shape ``(N,)``: 1, 0 or NaN; studies with NaN are left out.

    Returns:
        The area, or ``None`` when no positive or no negative is left.

    Raises:
        ValueError: If the shapes differ or are not 1-D, a label is not 0, 1 or NaN, or the score of a
            labelled study is NaN.
    """
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise ValueError(
            f"scores and labels must be 1-D and of the same length, got shapes {scores.shape} and "
            f"{labels.shape}. Call auroc once per class."
        )
    _check_labels(labels)
    known = ~np.isnan(labels)
    scores, positive = scores[known], labels[known] == 1
    if np.isnan(scores).any():
        raise ValueError(
            f"scores must be numbers, got NaN for {int(np.isnan(scores).sum())} labelled studies. "
            "Check the model for overflow."
        )
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if positives == 0 or negatives == 0:
        return None
    wins = rankdata(scores)[positive].sum() - positives * (positives + 1) / 2
    return float(wins / (positives * negatives))


def evaluate_predictions(
    probs: ArrayLike,
    labels: ArrayLike,
    groups: Sequence[str],
    classes: Sequence[str],
    *,
    task: Task,
    bootstrap: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Scores one model's predictions on one split.

    The AUROC is one class against the rest for every task. A class without positives or without
    negatives is undefined: it is left out of the macro mean and named. Intervals are percentiles over
    resamples of whole groups; a class that is undefined in a resample is left out of that resample's
    macro mean, and every such case is counted.

    Args:
        probs: Predicted probabilities, shape ``(N, C)``, in ``[0, 1]``.
        labels: Shape ``(N, C)``: 1, 0 or NaN for unknown; one-hot rows for single-label tasks.
        groups: The patient of each study, length ``N``.
        classes: Names of the classes, length ``C``.
        task: What kind of target the labels are; single-label tasks also get an accuracy.
        bootstrap: Number of resamples; 0 for no intervals.
        seed: Seed of the resampling.
        confidence: Share of the resamples inside an interval. The keys carry it in per cent
            (``"auroc_ci95"``).

    Returns:
        ``macro_auroc`` and ``macro_average_precision`` with their intervals (``macro_auroc_ci95``, ...), ``accuracy``
        and ``accuracy_ci95`` (single-label tasks only; ``None`` where no study is labelled), ``per_class``
        (name to ``auroc`` and ``average_precision`` with intervals, ``positives``, ``negatives``,
        ``prevalence``), ``undefined_classes``, ``studies``, ``groups`` and ``bootstrap``
        (``samples``, ``seed``, ``skipped``: pairs of a resample and a class defined on the whole split
        but not in that resample).

    Raises:
        ValueError: If lengths or shapes disagree, there is no study, ``probs`` leave ``[0, 1]``, a label
            is not 0, 1 or NaN (or a row is not one-hot), a class is named twice, or ``task``,
            ``bootstrap`` or ``confidence`` is none of the allowed.
    """
    probs, labels = np.asarray(probs, np.float64), np.asarray(labels, np.float64)
    check_predictions(probs, labels, groups, classes)
    check_options(task, bootstrap, confidence)
    values = [auroc(probs[:, c], labels[:, c]) for c in range(len(classes))]
    defined = [c for c, value in enumerate(values) if value is not None]
    codes = np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    replicates = bootstrap_auroc(probs, labels, codes, samples=bootstrap, seed=seed)
    precision_replicates = bootstrap_average_precision(probs, labels, codes, samples=bootstrap, seed=seed)
    precisions = [_average_precision(probs[:, c], labels[:, c]) for c in range(len(classes))]
    suffix = f"ci{100 * confidence:g}"
    interval = f"auroc_{suffix}"

    result: dict[str, Any] = {
        "macro_auroc": float(np.mean([values[c] for c in defined])) if defined else None,
        f"macro_{interval}": percentile_interval(row_means(replicates[:, defined]), confidence),
        "macro_average_precision": float(np.mean([precisions[c] for c in defined])) if defined else None,
        f"macro_average_precision_{suffix}": percentile_interval(
            row_means(precision_replicates[:, defined]), confidence
        ),
    }
    if task != "multi-label":
        hits = correct(probs, labels)
        known = hits[~np.isnan(hits)]
        result["accuracy"] = float(known.mean()) if known.size else None
        means = bootstrap_mean(hits, codes, samples=bootstrap, seed=seed)
        result[f"accuracy_{suffix}"] = percentile_interval(means, confidence)
    result["per_class"] = {
        name: _frequencies(labels[:, c])
        | {
            "auroc": values[c],
            interval: percentile_interval(replicates[:, c], confidence) if c in defined else None,
            "average_precision": precisions[c],
            f"average_precision_{suffix}": (
                percentile_interval(precision_replicates[:, c], confidence) if c in defined else None
            ),
        }
        for c, name in enumerate(classes)
    }
    return result | {
        "undefined_classes": [name for c, name in enumerate(classes) if values[c] is None],
        "studies": len(probs),
        "groups": int(codes.max()) + 1,
        "bootstrap": {
            "samples": bootstrap,
            "seed": seed,
            "skipped": int(np.isnan(replicates[:, defined]).sum()),
        },
    }


def _average_precision(scores: NDArray[np.float64], labels: NDArray[np.float64]) -> float | None:
    known = ~np.isnan(labels)
    both = (labels == 1).any() and (labels == 0).any()
    return float(average_precision_score(labels[known], scores[known])) if both else None


def _frequencies(labels: NDArray[np.float64]) -> dict[str, Any]:
    positives = int((labels == 1).sum())
    negatives = int((labels == 0).sum())
    return {
        "positives": positives,
        "negatives": negatives,
        "prevalence": positives / (positives + negatives) if positives + negatives else None,
    }


def correct(probs: NDArray[np.float64], labels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Tells whether each study's most probable class is the true one: 1, 0, or NaN for an unlabelled study.

    Args:
        probs: Shape ``(N, C)``; of equal probabilities the first class is taken.
        labels: Shape ``(N, C)``, one-hot; a row with a NaN is unlabelled.

    Returns:
        Shape ``(N,)``.

    Raises:
        ValueError: If a row of ``labels`` without NaN is not one-hot.
    """
    known = ~np.isnan(labels).any(axis=1)
    one_hot = (labels[known] == 1).sum(axis=1) == 1
    if not one_hot.all():
        raise ValueError(
            f"labels must be one-hot for a single-label task, but {int((~one_hot).sum())} rows are not. "
            'Use task="multi-label" or mark unknown studies with NaN in every class.'
        )
    hits = np.full(len(labels), np.nan)
    hits[known] = probs[known].argmax(axis=1) == labels[known].argmax(axis=1)
    return hits


def _check_labels(labels: NDArray[np.float64]) -> None:
    wrong = ~(np.isnan(labels) | (labels == 0) | (labels == 1))
    if wrong.any():
        raise ValueError(f"labels must be 0, 1 or NaN (unknown), got {float(labels[wrong][0])!r}.")


def check_predictions(
    probs: NDArray[np.float64], labels: NDArray[np.float64], groups: Sequence[str], classes: Sequence[str]
) -> None:
    """Refuses predictions whose parts do not fit together.

    Args:
        probs: As for :func:`evaluate_predictions`.
        labels: As for :func:`evaluate_predictions`.
        groups: As for :func:`evaluate_predictions`.
        classes: As for :func:`evaluate_predictions`.

    Raises:
        ValueError: As :func:`evaluate_predictions` does.
    """
    if probs.ndim != 2 or probs.shape != labels.shape or 0 in probs.shape:
        raise ValueError(
            f"probs and labels must both have shape (studies, classes) and hold at least one study, got "
            f"{probs.shape} and {labels.shape}."
        )
    if len(classes) != probs.shape[1]:
        raise ValueError(f"classes must name the {probs.shape[1]} columns of probs, got {len(classes)} names.")
    twice = sorted({name for name in classes if list(classes).count(name) > 1})
    if twice:
        raise ValueError(f"classes must differ from one another, got {twice} more than once.")
    if len(groups) != len(probs):
        raise ValueError(f"groups must name one group per study ({len(probs)}), got {len(groups)}.")
    outside = ~((probs >= -SLACK) & (probs <= 1 + SLACK))
    if outside.any():
        raise ValueError(
            f"probs must lie in [0, 1], got {float(probs[outside][0])!r}. "
            "Apply the sigmoid or softmax, and check the model for NaN."
        )
    _check_labels(labels)


def check_options(task: str, bootstrap: int, confidence: float) -> None:
    """Refuses options of :func:`evaluate_predictions` that are none of the allowed.

    Args:
        task: Kind of the target.
        bootstrap: Number of resamples.
        confidence: Coverage of the intervals.

    Raises:
        ValueError: Naming the option.
    """
    if task not in get_args(Task):
        raise ValueError(f"task must be one of {', '.join(get_args(Task))}, got {task!r}.")
    if bootstrap < 0:
        raise ValueError(f"bootstrap must be 0 (no intervals) or a number of resamples, got {bootstrap}.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie strictly between 0 and 1, got {confidence}.")
