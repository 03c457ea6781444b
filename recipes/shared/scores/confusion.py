"""Confusion matrix and recall by class, and the accuracy of always naming the most frequent class."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from recipes.shared.scores.metrics import correct


def confusion_matrix(scores: ArrayLike, labels: ArrayLike, classes: Sequence[str]) -> dict[str, Any]:
    """Counts true against predicted classes of a single-label task.

    Args:
        scores: Shape ``(N, C)``; the highest is the prediction, the first of equal ones.
        labels: Shape ``(N, C)``, one-hot; a row with a NaN is unlabelled and left out.
        classes: Names of the ``C`` classes.

    Returns:
        ``classes``, ``matrix`` (``C`` rows of ``C`` counts: row the truth, column the prediction),
        ``recall`` (name to the share of the class's studies that are predicted right, ``None`` without any) and
        ``majority_share``, the accuracy of always naming the most frequent class (``None`` where no study
        is labelled).

    Raises:
        ValueError: If the shapes disagree, or a row of labels is not one-hot.
    """
    values, truth = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    if values.ndim != 2 or values.shape != truth.shape or values.shape[1] != len(classes):
        raise ValueError(
            f"scores and labels must both have shape (studies, {len(classes)}), one column per class, got "
            f"{values.shape} and {truth.shape}."
        )
    known = ~np.isnan(correct(values, truth))
    num_classes = len(classes)
    cells = truth[known].argmax(axis=1) * num_classes + values[known].argmax(axis=1)
    matrix = np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)
    totals = matrix.sum(axis=1)
    return {
        "classes": list(classes),
        "matrix": matrix.tolist(),
        "recall": {name: float(matrix[c, c] / totals[c]) if totals[c] else None for c, name in enumerate(classes)},
        "majority_share": float(totals.max() / totals.sum()) if totals.sum() else None,
    }
