"""Which predictions are wrong, and how much."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipes.data.studies import Task


def thresholds_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Returns from which probability a class counts as predicted: Youden's point of the validation split, else 0.5.

    Args:
        metrics: The content of ``metrics.json``.
    """
    points = metrics.get("operating_points") or {}
    return {
        name: float((points.get(name) or {}).get("youden", {}).get("threshold", 0.5))
        for name in metrics["run"]["classes"]
    }


def choose_errors(
    probs: NDArray[np.floating],
    labels: NDArray[np.floating],
    classes: Sequence[str],
    thresholds: Mapping[str, float],
    *,
    task: Task,
    count: int,
) -> dict[int, str]:
    """Chooses the studies on which the model gives the truth the least probability, and is wrong.

    Args:
        probs: ``(N, C)``.
        labels: ``(N, C)``, NaN where unknown.
        classes: Names of the classes.
        thresholds: From which probability a class of a multi-label task counts as predicted.
        task: A single-label task predicts the most probable class.
        count: Studies at most.

    Returns:
        Row to what is wrong in words, the largest error first.
    """
    found: list[tuple[float, int, str]] = []
    for row, (own, truth) in enumerate(zip(probs, labels, strict=True)):
        if task == "multi-label":
            wrong = [
                (float(p if known == 0 else 1 - p), c)
                for c, (p, known) in enumerate(zip(own, truth, strict=True))
                if not np.isnan(known) and (p >= thresholds[classes[c]]) != (known == 1)
            ]
            if wrong:
                error, c = max(wrong)
                word = "false positive" if truth[c] == 0 else "missed"
                found.append((error, row, f"{classes[c]}: {word} at {own[c]:.2f}"))
        elif not np.isnan(truth).any() and own.argmax() != truth.argmax():
            right, taken = int(truth.argmax()), int(own.argmax())
            found.append(
                (1 - float(own[right]), row, f"{classes[right]} taken for {classes[taken]} ({own[taken]:.2f})")
            )
    found.sort(key=lambda one: (-one[0], one[1]))
    return {row: words for _, row, words in found[:count]}
