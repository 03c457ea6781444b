"""The calibration of a run: temperatures of the validation split, and what they do to the test split."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipes.data.studies import Task
from recipes.shared.scores.calibration import calibration_scores
from recipes.shared.scores.temperature import Scope, Temperatures, fit_temperatures, scaled_probs


def calibrate(
    val: tuple[NDArray[np.float32], NDArray[np.float32]],
    test: tuple[NDArray[np.float32], NDArray[np.float32]],
    groups: Sequence[str],
    classes: Sequence[str],
    *,
    task: Task,
    scope: Scope = "shared",
    bootstrap: int = 1000,
) -> tuple[dict[str, Any], Temperatures]:
    """Fits temperatures on the validation split and scores the test split with and without them.

    Args:
        val: Logits and labels of the validation split.
        test: Logits and labels of the test split.
        groups: The patient of each test study.
        classes: Names of the classes.
        task: Kind of the target.
        scope: One temperature for all classes, or one each.
        bootstrap: Number of resamples; 0 for no intervals.

    Returns:
        ``scope``, ``temperature`` by class, ``not_fitted``, ``val_nll_before`` and ``val_nll_after``, and the
        :func:`~recipes.shared.scores.calibration.calibration_scores` of the test split, ``uncalibrated`` and
        ``calibrated``; and the temperatures.
    """
    fit = fit_temperatures(*val, task=task, scope=scope)
    logits, labels = test
    scores = {
        name: calibration_scores(
            scaled_probs(logits, temperatures, task=task), labels, groups, classes, task=task, bootstrap=bootstrap
        )
        for name, temperatures in (("uncalibrated", np.ones_like(fit.values)), ("calibrated", fit.values))
    }
    return {"scope": scope} | fit.to_json(classes) | scores, fit
