"""AUROCs within subgroups of the test split: by sex, age, view, or whatever else the table says of a study."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from recipes.data.studies import Task
from recipes.shared.scores.metrics import evaluate_predictions

LEAST_STUDIES = 20
"""Smaller subgroups are counted, not scored."""
UNKNOWN = "unknown"
BANDS = ((18, "0-17"), (40, "18-39"), (60, "40-59"), (80, "60-79"), (120, "80 and older"))
"""Ages below each number are of its band; higher ones are errors of the table."""
_UNITS = {"": 1.0, "Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}
_AGE = re.compile(r"(\d+(?:\.\d+)?)([YMWD]?)")


def age_band(cell: str) -> str:
    """Returns the band of an age in years, or in the form of DICOM: ``058Y``, ``006M``, ``012W``, ``020D``.

    Args:
        cell: The age. What is none, or 120 years and more, is ``"unknown"``.
    """
    match = _AGE.fullmatch(cell.strip().upper())
    if match is None:
        return UNKNOWN
    years = float(match[1]) * _UNITS[match[2]]
    return next((band for limit, band in BANDS if years < limit), UNKNOWN)


def subgroup_scores(
    probs: ArrayLike,
    labels: ArrayLike,
    groups: Sequence[str],
    classes: Sequence[str],
    attributes: Mapping[str, Sequence[str]],
    *,
    task: Task,
    bootstrap: int = 1000,
) -> dict[str, Any]:
    """Scores each subgroup on its own.

    The macro means of one attribute's subgroups are over the same classes, those that are defined in every scored
    subgroup: means over different classes could not be compared. An attribute named "age" (as a word of its name) is
    cut into bands of years.

    Args:
        probs: Predicted probabilities, shape ``(N, C)``.
        labels: Shape ``(N, C)``: 1, 0 or NaN for unknown.
        groups: The patient of each study, length ``N``.
        classes: Names of the classes, length ``C``.
        attributes: Name to the value of each study, length ``N``; a blank one is "unknown".
        task: Kind of the target.
        bootstrap: Number of resamples of patients; 0 for no intervals.

    Returns:
        For each attribute with two values or more ``classes`` (those of the macro mean), ``too_small`` (value to number
        of studies, below 20) and ``values``: value to ``studies``, ``groups``, ``macro_auroc``, ``macro_auroc_ci95``
        and ``per_class`` (``auroc``, ``auroc_ci95``, ``positives``, ``negatives``).

    Raises:
        ValueError: If an attribute has another number of values than there are studies, or predictions are none.
    """
    scores, truth = np.asarray(probs, np.float64), np.asarray(labels, np.float64)
    patients = np.asarray(groups, dtype=str)
    result: dict[str, Any] = {}
    for attribute, cells in attributes.items():
        if len(cells) != len(scores):
            raise ValueError(
                f"attributes: {attribute!r} must have {len(scores)} values, one per study, got {len(cells)}."
            )
        values = _values(attribute, cells)
        if len(set(values.tolist())) < 2:
            continue
        rows = {value: np.flatnonzero(values == value) for value in sorted(set(values.tolist()))}
        scored = {value: index for value, index in rows.items() if len(index) >= LEAST_STUDIES}

        def score(index: Any, columns: Sequence[int]) -> dict[str, Any]:
            return evaluate_predictions(
                scores[np.ix_(index, columns)], truth[np.ix_(index, columns)], patients[index].tolist(),
                [classes[c] for c in columns], task=task if len(columns) == len(classes) else "multi-label",
                bootstrap=bootstrap,
            )  # fmt: skip

        every = range(len(classes))
        each = {value: score(index, every) for value, index in scored.items()}
        common = [c for c in every if all(classes[c] not in one["undefined_classes"] for one in each.values())]
        result[attribute] = {
            "classes": [classes[c] for c in common] if each else [],
            "too_small": {value: len(index) for value, index in rows.items() if value not in scored},
            "values": {
                value: _summary(each[value], score(index, common) if common else None)
                for value, index in scored.items()
            },
        }
    return result


def _values(attribute: str, cells: Sequence[str]) -> Any:
    if "age" in re.split(r"[^a-z]+", attribute.lower()):
        return np.array([age_band(cell) for cell in cells])
    return np.array([cell.strip() or UNKNOWN for cell in cells])


def _summary(scores: Mapping[str, Any], common: Mapping[str, Any] | None) -> dict[str, Any]:
    kept = ("auroc", "auroc_ci95", "positives", "negatives")
    return {
        "studies": scores["studies"],
        "groups": scores["groups"],
        "macro_auroc": None if common is None else common["macro_auroc"],
        "macro_auroc_ci95": None if common is None else common["macro_auroc_ci95"],
        "per_class": {name: {key: values[key] for key in kept} for name, values in scores["per_class"].items()},
    }
