"""Confidence intervals of AUROC, average precision and means (an accuracy) by resampling patients.

A test set of several studies per patient is not a set of independent studies: what is drawn again,
with replacement, is the group (the patient). Drawing a group ``m`` times equals giving each of its
studies the weight ``m``, so one sort per class serves all resamples.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CHUNK = 64
"""Resamples handled at once; bounds the memory at ``CHUNK * N`` numbers and changes no result."""


class _RankedClass(NamedTuple):
    """One class' known studies, prepared for any number of weightings.

    ``first`` and ``last`` say, for each positive, how many negatives score strictly below it and how
    many score at most as high: their mean gives ties half a win.
    """

    positives: NDArray[np.int64]
    """Group code of each positive study."""
    negatives: NDArray[np.int64]
    """Group code of each negative study, by ascending score."""
    first: NDArray[np.int64]
    last: NDArray[np.int64]


def resample_counts(num_groups: int, samples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draws ``num_groups`` groups with replacement, ``samples`` times.

    Args:
        num_groups: How many groups there are, ``G``.
        samples: How many resamples, ``B``.
        rng: Source of the draws; one row is drawn after the other.

    Returns:
        How often each group was drawn, shape ``(B, G)``; every row sums to ``G``.
    """
    cells = rng.integers(num_groups, size=(samples, num_groups)) + num_groups * np.arange(samples)[:, None]
    return np.bincount(cells.ravel(), minlength=cells.size).reshape(samples, num_groups).astype(np.float64)


def bootstrap_auroc(
    scores: NDArray[np.float64],
    labels: NDArray[np.float64],
    codes: NDArray[np.int64],
    *,
    samples: int,
    seed: int,
) -> NDArray[np.float64]:
    """Computes the AUROC of every class in every resample of the groups.

    Args:
        scores: Shape ``(N, C)``, higher means more likely.
        labels: Shape ``(N, C)``: 1, 0 or NaN for unknown.
        codes: Group of each study as a number in ``[0, G)``, shape ``(N,)``, every number in use.
        samples: How many resamples, ``B``.
        seed: Seed of the draws.

    Returns:
        Shape ``(B, C)``, NaN where a resample holds no positive or no negative of the class.
    """
    ranked = [_rank(scores[:, c], labels[:, c], codes) for c in range(scores.shape[1])]
    return _bootstrap([partial(_weighted_auroc, one) for one in ranked], codes, samples, seed)


def bootstrap_average_precision(
    scores: NDArray[np.float64],
    labels: NDArray[np.float64],
    codes: NDArray[np.int64],
    *,
    samples: int,
    seed: int,
) -> NDArray[np.float64]:
    """Computes the average precision of every class in every resample of the groups.

    Average precision is the area under the precision-recall curve as a step function; studies of one score
    enter together. The resamples are those of :func:`bootstrap_auroc` for the same groups and seed.

    Args:
        scores: As for :func:`bootstrap_auroc`.
        labels: As for :func:`bootstrap_auroc`.
        codes: As for :func:`bootstrap_auroc`.
        samples: How many resamples, ``B``.
        seed: Seed of the draws.

    Returns:
        Shape ``(B, C)``, NaN where a resample holds no positive of the class.
    """
    classes = [_by_descending_score(scores[:, c], labels[:, c], codes) for c in range(scores.shape[1])]
    return _bootstrap([partial(_weighted_average_precision, *one) for one in classes], codes, samples, seed)


def bootstrap_mean(
    values: NDArray[np.float64], codes: NDArray[np.int64], *, samples: int, seed: int
) -> NDArray[np.float64]:
    """Computes the mean over studies in every resample of the groups, such as an accuracy from hits of 0 and 1.

    The resamples are those of :func:`bootstrap_auroc` for the same groups and seed.

    Args:
        values: One per study, shape ``(N,)`` or ``(N, M)`` for ``M`` means; NaN leaves the study out.
        codes: As for :func:`bootstrap_auroc`, shape ``(N,)``.
        samples: How many resamples, ``B``.
        seed: Seed of the draws.

    Returns:
        Shape ``(B,)`` or ``(B, M)``, NaN where a resample holds no study with a value.
    """
    known = ~np.isnan(values)
    columns = np.concatenate([np.atleast_2d(part.T).T for part in (np.nan_to_num(values), known)], axis=1)
    totals, studies = np.split(bootstrap_sums(columns, codes, samples=samples, seed=seed), 2, axis=1)
    means = np.divide(totals, studies, out=np.full(totals.shape, np.nan), where=studies > 0)
    return means if values.ndim > 1 else means[:, 0]


def bootstrap_sums(
    values: NDArray[np.float64], codes: NDArray[np.int64], *, samples: int, seed: int
) -> NDArray[np.float64]:
    """Sums over studies in every resample of the groups.

    The resamples are those of :func:`bootstrap_auroc` for the same groups and seed.

    Args:
        values: One row per study, shape ``(N, M)``, without NaN.
        codes: As for :func:`bootstrap_auroc`, shape ``(N,)``.
        samples: How many resamples, ``B``.
        seed: Seed of the draws.

    Returns:
        Shape ``(B, M)``.
    """
    by_group = np.zeros((int(codes.max()) + 1, values.shape[1]))
    np.add.at(by_group, codes, values)
    return bootstrap_statistic(lambda counts: counts @ by_group, codes, samples=samples, seed=seed)


def bootstrap_statistic(
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    codes: NDArray[np.int64],
    *,
    samples: int,
    seed: int,
) -> NDArray[np.float64]:
    """Computes a statistic in every resample of the groups.

    The resamples are those of :func:`bootstrap_auroc` for the same groups and seed.

    Args:
        statistic: From how often each group was drawn, shape ``(b, G)``, to values of shape ``(b, ...)``.
        codes: As for :func:`bootstrap_auroc`, shape ``(N,)``.
        samples: How many resamples, ``B``.
        seed: Seed of the draws.

    Returns:
        Shape ``(B, ...)``.
    """
    rng = np.random.default_rng(seed)
    num_groups = int(codes.max()) + 1
    sizes = [min(CHUNK, samples - start) for start in range(0, samples, CHUNK)]
    parts = [statistic(resample_counts(num_groups, size, rng)) for size in sizes]
    return np.concatenate(parts) if parts else statistic(np.empty((0, num_groups)))


def row_means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Computes the mean of each row over what is not NaN; NaN for a row without any (``nanmean`` would warn).

    Args:
        values: Shape ``(B, M)``.

    Returns:
        Shape ``(B,)``.
    """
    known = ~np.isnan(values)
    count = known.sum(axis=1)
    total = np.where(known, values, 0.0).sum(axis=1)
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)


def percentile_interval(values: NDArray[np.float64], confidence: float) -> list[float] | None:
    """Returns the central ``confidence`` share of the values that are not NaN, or None when none is left.

    Args:
        values: Bootstrap replicates, shape ``(B,)``.
        confidence: Share between the two ends, in ``(0, 1)``.

    Returns:
        ``[low, high]``.
    """
    known = values[~np.isnan(values)]
    if known.size == 0:
        return None
    tail = (1 - confidence) / 2
    low, high = np.quantile(known, [tail, 1 - tail])
    return [float(low), float(high)]


def _rank(scores: NDArray[np.float64], labels: NDArray[np.float64], codes: NDArray[np.int64]) -> _RankedClass:
    positive, negative = labels == 1, labels == 0
    negative_scores = scores[negative]
    order = np.argsort(negative_scores, kind="stable")
    ascending = negative_scores[order]
    return _RankedClass(
        positives=codes[positive],
        negatives=codes[negative][order],
        first=np.searchsorted(ascending, scores[positive], side="left"),
        last=np.searchsorted(ascending, scores[positive], side="right"),
    )


def _weighted_auroc(one: _RankedClass, counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Computes the AUROC under each row of group weights: shape ``(B,)``, NaN where a side has no weight."""
    below = np.zeros((len(counts), len(one.negatives) + 1))
    np.cumsum(counts[:, one.negatives], axis=1, out=below[:, 1:])
    weights = counts[:, one.positives]
    wins = (weights * (below[:, one.first] + below[:, one.last])).sum(axis=1) / 2
    pairs = weights.sum(axis=1) * below[:, -1]
    return np.divide(wins, pairs, out=np.full(len(counts), np.nan), where=pairs > 0)


def _by_descending_score(
    scores: NDArray[np.float64], labels: NDArray[np.float64], codes: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
    """Returns the known studies' groups, whether each is positive, and the last study of the same score."""
    known = ~np.isnan(labels)
    order = np.argsort(-scores[known], kind="stable")
    descending = -scores[known][order]
    return codes[known][order], labels[known][order] == 1, np.searchsorted(descending, descending, side="right") - 1


def _weighted_average_precision(
    groups: NDArray[np.int64],
    positive: NDArray[np.bool_],
    last: NDArray[np.int64],
    counts: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Computes the average precision under each row of group weights: ``(B,)``, NaN without positives."""
    weights = counts[:, groups]
    drawn = np.cumsum(weights, axis=1)[:, last[positive]]
    true_positives = np.cumsum(weights * positive, axis=1)[:, last[positive]]
    precision = np.divide(true_positives, drawn, out=np.zeros_like(drawn), where=drawn > 0)
    total = weights[:, positive].sum(axis=1)
    gain = (weights[:, positive] * precision).sum(axis=1)
    return np.divide(gain, total, out=np.full(len(counts), np.nan), where=total > 0)


def _bootstrap(
    statistics: Sequence[Callable[[NDArray[np.float64]], NDArray[np.float64]]],
    codes: NDArray[np.int64],
    samples: int,
    seed: int,
) -> NDArray[np.float64]:
    """Computes one statistic per class in every resample: shape ``(B, C)``."""
    return bootstrap_statistic(
        lambda counts: np.stack([statistic(counts) for statistic in statistics], axis=1),
        codes,
        samples=samples,
        seed=seed,
    )
