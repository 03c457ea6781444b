"""Confidence intervals of the AUROC and of means (an accuracy) by resampling patients.

A test set of several studies per patient is not a set of independent studies: what is drawn again,
with replacement, is the group (the patient). Drawing a group ``m`` times equals giving each of its
studies the weight ``m``, so one sort per class serves all resamples.
"""

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
    counts = np.empty((samples, num_groups))
    for row in counts:
        row[:] = np.bincount(rng.integers(num_groups, size=num_groups), minlength=num_groups)
    return counts


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
    rng = np.random.default_rng(seed)
    num_groups = int(codes.max()) + 1
    ranked = [_rank(scores[:, c], labels[:, c], codes) for c in range(scores.shape[1])]
    values = np.empty((samples, len(ranked)))
    for start in range(0, samples, CHUNK):
        stop = min(start + CHUNK, samples)
        counts = resample_counts(num_groups, stop - start, rng)
        for c, one in enumerate(ranked):
            values[start:stop, c] = _weighted_auroc(one, counts)
    return values


def bootstrap_mean(
    values: NDArray[np.float64], codes: NDArray[np.int64], *, samples: int, seed: int
) -> NDArray[np.float64]:
    """Computes the mean over studies in every resample of the groups, such as an accuracy from hits of 0 and 1.

    The resamples are those of :func:`bootstrap_auroc` for the same groups and seed.

    Args:
        values: One per study, shape ``(N,)``; NaN leaves the study out.
        codes: As for :func:`bootstrap_auroc`, shape ``(N,)``.
        samples: How many resamples, ``B``.
        seed: Seed of the draws.

    Returns:
        Shape ``(B,)``, NaN where a resample holds no study with a value.
    """
    rng = np.random.default_rng(seed)
    num_groups = int(codes.max()) + 1
    known = ~np.isnan(values)
    total = np.bincount(codes, np.where(known, values, 0.0), num_groups)
    studies = np.bincount(codes, known, num_groups)
    means = np.full(samples, np.nan)
    for start in range(0, samples, CHUNK):
        counts = resample_counts(num_groups, min(CHUNK, samples - start), rng)
        weight = counts @ studies
        part = means[start : start + len(counts)]
        np.divide(counts @ total, weight, out=part, where=weight > 0)
    return means


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
