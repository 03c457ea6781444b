"""Means over studies, such as an accuracy, and their differences between two models on the same studies.

Several sets may be averaged, each with patients of its own. Intervals are over patients, for the models as they are
trained.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from recipes.shared.scores.bootstrap import bootstrap_mean, percentile_interval


class Mean(NamedTuple):
    """A mean, or a difference of two.

    Attributes:
        value: The mean; of several sets the mean of their means.
        interval: 95 %, percentiles over resampled patients; ``None`` where there are fewer than two.
        p: Two-sided p-value of its being 0, of a normal distribution with the spread of the resamples.
    """

    value: float
    interval: list[float] | None
    p: float | None


def mean_over_groups(
    parts: Sequence[tuple[NDArray[np.float64], Sequence[str]]], *, bootstrap: int, seed: int = 0
) -> Mean | None:
    """Computes the mean of some sets' means, with an interval over the patients of each.

    Args:
        parts: Of each set ``(N,)`` values (of a difference: first less second, study by study; NaN leaves a study out)
            and the patient of each study.
        bootstrap: Resamples; 0 for no interval.
        seed: Of the first set's resamples; the others follow.

    Returns:
        ``None`` if a set has no value.
    """
    if not parts or any(np.isnan(values).all() for values, _ in parts):
        return None
    value = float(np.mean([np.nanmean(values) for values, _ in parts]))
    codes = [np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1] for _, groups in parts]
    fewest = min(int(one.max()) + 1 for one in codes)
    if not bootstrap or fewest < 2:
        return Mean(value, None, None)
    drawn = [
        bootstrap_mean(values, own, samples=bootstrap, seed=seed + place)
        for place, ((values, _), own) in enumerate(zip(parts, codes, strict=True))
    ]
    replicates = np.mean(drawn, axis=0)
    # A mean of m values drawn with replacement varies less than the mean itself, by (m - 1) / m.
    spread = float(np.nanstd(replicates, ddof=1)) * (fewest / (fewest - 1)) ** 0.5
    p = float(abs(value) < 1e-12) if spread < 1e-12 else float(2 * ndtr(-abs(value) / spread))
    return Mean(value, percentile_interval(replicates, 0.95), p)
