"""Whether one method's AUROC is inferior to another's, pooled over seeds, by a paired bootstrap over patients."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from benchmarks.experts_alive.sets import MARGIN


def pooled_difference(
    before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]], *, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Compares the mean over seeds of the macro AUROC of two methods on the same test studies.

    Every resample draws patients, the same for both methods and all seeds; classes that it leaves without positives or
    negatives are left out of it.

    Args:
        before: Test predictions of each seed.
        after: Likewise of the other method, in the same order of seeds.
        resamples: How many.
        seed: Of the resamples.

    Returns:
        ``difference`` (after less before), ``ci95``, ``patients`` and ``verdict``: ``"not inferior"`` if the interval's
        lower end is at least -0.02, ``"inferior"`` if its upper end is below, else ``"undecided"``.
    """
    labels, groups = before[0]["labels"], np.asarray(before[0]["groups"])
    patients, of_study = np.unique(groups, return_inverse=True)
    members = [np.flatnonzero(of_study.ravel() == patient) for patient in range(len(patients))]
    runs = (np.stack([run["probs"] for run in before]), np.stack([run["probs"] for run in after]))

    def difference(rows: NDArray[np.int64]) -> float:
        first, second = (_macro(labels[rows], probs[:, rows]) for probs in runs)
        return second - first

    rng = np.random.default_rng(seed)
    drawn = [
        difference(np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))]))
        for _ in range(resamples)
    ]
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    verdict = "not inferior" if low >= -MARGIN else "inferior" if high < -MARGIN else "undecided"
    whole = difference(np.arange(len(labels)))
    return {"difference": whole, "ci95": [float(low), float(high)], "verdict": verdict, "patients": len(patients)}


def _macro(labels: NDArray[np.float32], probs: NDArray[np.float32]) -> float:
    """Computes the mean AUROC over classes that have both labels, and over seeds; NaN where no class has."""
    values = []
    for column in range(labels.shape[1]):
        known = ~np.isnan(labels[:, column])
        truth = labels[known, column] == 1
        positives, negatives = int(truth.sum()), int((~truth).sum())
        if positives and negatives:
            ranks = rankdata(probs[:, known, column], axis=1)[:, truth].sum(1)
            values.append(((ranks - positives * (positives + 1) / 2) / (positives * negatives)).mean())
    return float(np.mean(values)) if values else float("nan")
