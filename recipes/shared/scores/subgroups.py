"""AUROCs within subgroups of the test split: by sex, age, view, or whatever else the table says of a study."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recipes.shared.scores.bootstrap import bootstrap_auroc, percentile_interval, row_means
from recipes.shared.scores.metrics import auroc, check_predictions

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
        bootstrap: Number of resamples of patients; 0 for no intervals.

    Returns:
        For each attribute with two values or more ``classes`` (those of the macro mean), ``too_small`` (value to number
        of studies, below 20) and ``values``: value to ``studies``, ``groups``, ``macro_auroc``, ``macro_auroc_ci95``
        and ``per_class`` (``auroc``, ``auroc_ci95``, ``positives``, ``negatives``).

    Raises:
        ValueError: If an attribute has another number of values than there are studies, or predictions are none.
    """
    scores, truth = np.asarray(probs, np.float64), np.asarray(labels, np.float64)
    check_predictions(scores, truth, groups, classes)
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

        each = {
            value: _Subgroup(scores[index], truth[index], patients[index], bootstrap) for value, index in scored.items()
        }
        common = [c for c in range(len(classes)) if all(one.aurocs[c] is not None for one in each.values())]
        result[attribute] = {
            "classes": [classes[c] for c in common] if each else [],
            "too_small": {value: len(index) for value, index in rows.items() if value not in scored},
            "values": {value: one.summary(classes, common) for value, one in each.items()},
        }
    return result


class _Subgroup:
    """One subgroup's AUROCs, and those of its resamples."""

    def __init__(
        self, scores: NDArray[np.float64], labels: NDArray[np.float64], patients: NDArray[np.str_], bootstrap: int
    ) -> None:
        self.labels = labels
        self.codes = np.unique(patients, return_inverse=True)[1]
        self.aurocs = [auroc(scores[:, c], labels[:, c]) for c in range(labels.shape[1])]
        self.replicates = bootstrap_auroc(scores, labels, self.codes, samples=bootstrap, seed=0)

    def summary(self, classes: Sequence[str], common: Sequence[int]) -> dict[str, Any]:
        """Returns the scores, with a macro mean over the classes that all subgroups have."""
        macro = [value for c in common if (value := self.aurocs[c]) is not None]
        return {
            "studies": len(self.labels),
            "groups": int(self.codes.max()) + 1,
            "macro_auroc": float(np.mean(macro)) if macro else None,
            "macro_auroc_ci95": percentile_interval(row_means(self.replicates[:, common]), 0.95) if macro else None,
            "per_class": {name: self._class(c) for c, name in enumerate(classes)},
        }

    def _class(self, c: int) -> dict[str, Any]:
        defined = self.aurocs[c] is not None
        return {
            "auroc": self.aurocs[c],
            "auroc_ci95": percentile_interval(self.replicates[:, c], 0.95) if defined else None,
            "positives": int((self.labels[:, c] == 1).sum()),
            "negatives": int((self.labels[:, c] == 0).sum()),
        }


def _values(attribute: str, cells: Sequence[str]) -> Any:
    if "age" in re.split(r"[^a-z]+", attribute.lower()):
        return np.array([age_band(cell) for cell in cells])
    return np.array([cell.strip() or UNKNOWN for cell in cells])
