"""Several runs that differ in their seed alone, summed up as a mean with a t-interval."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats


def t_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Computes the mean of a few values with the Student-t interval of that mean.

    ``mean ± t(n - 1) * s / sqrt(n)``, where ``s`` is the sample's standard deviation. For three values
    and 95 % this is ``mean ± 2.484 * s``. It describes the spread over seeds, not over patients.

    Args:
        values: At least two values.
        confidence: Coverage of the interval, in ``(0, 1)``.

    Returns:
        ``(mean, low, high)``; the ends are not clipped to the range of the quantity.

    Raises:
        ValueError: If there are fewer than two values, one is not finite, or ``confidence`` is outside
            ``(0, 1)``.
    """
    numbers = np.asarray(values, np.float64)
    if numbers.ndim != 1 or numbers.size < 2:
        raise ValueError(f"values must hold at least two numbers to have a spread, got {numbers.size}. Run more seeds.")
    if not np.isfinite(numbers).all():
        raise ValueError(f"values must be finite, got {numbers.tolist()}.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie strictly between 0 and 1, got {confidence}.")
    mean = float(numbers.mean())
    t = stats.t.ppf((1 + confidence) / 2, df=numbers.size - 1)
    half = float(t * numbers.std(ddof=1) / np.sqrt(numbers.size))
    return mean, mean - half, mean + half


def aggregate_seeds(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sums up the test AUROC of runs that differ in their seed alone.

    Args:
        runs: The content of each run's ``metrics.json``.

    Returns:
        ``n``, ``seeds``, ``macro_auroc``, ``per_class`` (name to the same summary) and ``class_sets`` (name to
        ``classes`` and their ``macro_auroc``, for sets that every run has). A summary is ``mean``, ``ci95``
        (t-interval, ``None`` below two values), ``values`` (one per run, ``None`` where undefined) and ``n``, the
        number of runs in which it is defined.

    Raises:
        ValueError: If there is no run, two runs share a seed, or the runs differ in data, classes or
            number of test studies.
    """
    if not runs:
        raise ValueError("runs must hold at least one run's metrics, got none.")
    seeds = [run["run"]["seed"] for run in runs]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"runs must differ in their seed, got seeds {seeds}. Pass each run once.")
    _check_same("data", [run["run"].get("data") for run in runs])
    _check_same("classes", [list(run["test"]["per_class"]) for run in runs])
    _check_same("number of test studies", [run["test"]["studies"] for run in runs])
    tests = [run["test"] for run in runs]
    return {
        "n": len(runs),
        "seeds": seeds,
        "macro_auroc": summary_over_seeds([test["macro_auroc"] for test in tests]),
        "per_class": {
            name: summary_over_seeds([test["per_class"][name]["auroc"] for test in tests])
            for name in tests[0]["per_class"]
        },
        "class_sets": _class_sets([test.get("class_sets") or {} for test in tests]),
    }


def _class_sets(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sums up the means over sets of classes that all runs have."""
    return {
        name: {
            "classes": runs[0][name]["classes"],
            "macro_auroc": summary_over_seeds([sets[name]["macro_auroc"] for sets in runs]),
        }
        for name in runs[0]
        if all(name in sets for sets in runs)
    }


def _check_same(what: str, values: list[Any]) -> None:
    for value in values[1:]:
        if value != values[0]:
            raise ValueError(
                f"runs must agree in their {what}, got {values[0]!r} and {value!r}. "
                "Sum up only runs that differ in their seed alone."
            )


def summary_over_seeds(values: Sequence[float | None]) -> dict[str, Any]:
    """Returns ``mean``, ``ci95``, ``values`` and ``n`` of one score of several runs, as :func:`aggregate_seeds`."""
    known = [value for value in values if value is not None]
    interval = None
    if len(known) > 1:
        _, low, high = t_interval(known)
        interval = [low, high]
    mean = float(np.mean(known)) if known else None
    return {"mean": mean, "ci95": interval, "values": list(values), "n": len(known)}
