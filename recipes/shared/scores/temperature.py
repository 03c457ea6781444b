"""Temperature scaling: logits are divided by a number fitted on the validation split.

A temperature above 1 makes a model less sure, one below 1 surer (Guo et al. 2017, https://arxiv.org/abs/1706.04599,
section 4.2). It never changes which class of a study is the most probable. Of multi-label and two-class tasks it keeps
the order of studies within a class too, so their AUROCs stay as they were; those of three or more exclusive classes may
move a little.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit, log_softmax, softmax

from recipes.data.studies import Task

Scope = Literal["shared", "per-class"]
LIMITS = (0.02, 50.0)
"""Smallest and largest temperature: labels that a score separates without error would drive it to 0."""


class Temperatures(NamedTuple):
    """Fitted temperatures.

    Attributes:
        values: One per class, shape ``(C,)``; 1 for a class that was not fitted.
        fitted: Whether the class took part in a fit, shape ``(C,)``.
        nll_before: Mean negative log-likelihood of the validation labels at ``T = 1``, ``None`` without any label.
        nll_after: The same at the fitted temperatures; never above ``nll_before``.
    """

    values: NDArray[np.float64]
    fitted: NDArray[np.bool_]
    nll_before: float | None
    nll_after: float | None

    def to_json(self, classes: Sequence[str]) -> dict[str, Any]:
        """Returns plain types, with classes by name."""
        return {
            "temperature": dict(zip(classes, self.values.tolist(), strict=True)),
            "not_fitted": [name for name, fitted in zip(classes, self.fitted, strict=True) if not fitted],
            "val_nll_before": self.nll_before,
            "val_nll_after": self.nll_after,
        }


def fit_temperatures(logits: ArrayLike, labels: ArrayLike, *, task: Task, scope: Scope = "shared") -> Temperatures:
    """Fits the temperature with the smallest negative log-likelihood.

    The negative log-likelihood is convex in ``1 / T`` for every task, so the search over ``log T`` finds its minimum.
    Unknown labels are left out. A class whose known labels are all positive or all negative keeps ``T = 1``, and
    takes no part in a shared fit: it would only say that the model should be surer. So does a single-label task of
    which the labelled studies have one class alone.

    Args:
        logits: The model's logits: ``(N, C)``, for an ordinal task the ``(N, C - 1)`` of "above grade k".
        labels: Shape ``(N, C)``: 1, 0 or NaN (unknown); one-hot for single-label tasks.
        task: Kind of the target.
        scope: One temperature for all classes, or one each; a softmax and grades allow the first alone.

    Returns:
        The temperatures, and what they did to the validation split.

    Raises:
        ValueError: If shapes disagree, a logit is not finite, or ``scope`` does not fit the task.
    """
    values, truth = _checked(logits, labels, task)
    check_scope(scope, task)
    num_classes = truth.shape[1]
    if task != "multi-label":
        known = ~np.isnan(truth).any(axis=1)
        fitted = np.full(num_classes, len(np.unique(truth[known].argmax(axis=1))) > 1)
        temperature = _fit(values, truth, task) if fitted.all() else 1.0
        temperatures = np.full(num_classes, temperature)
    else:
        fitted = (truth == 1).any(axis=0) & (truth == 0).any(axis=0)
        temperatures = np.ones(num_classes)
        if scope == "shared" and fitted.any():
            temperatures[fitted] = _fit(values[:, fitted], truth[:, fitted], task)
        elif scope == "per-class":
            for c in np.flatnonzero(fitted):
                temperatures[c] = _fit(values[:, [c]], truth[:, [c]], task)
    before = mean_nll(values, truth, np.ones(num_classes), task=task)
    after = mean_nll(values, truth, temperatures, task=task)
    return Temperatures(temperatures, fitted, before, after)


def check_scope(scope: Scope, task: Task) -> None:
    """Refuses a scope that a task does not allow.

    Args:
        scope: One temperature for all classes, or one each.
        task: Kind of the target.

    Raises:
        ValueError: If there is no such scope, or it is per class for a task that is not multi-label.
    """
    if scope not in get_args(Scope):
        raise ValueError(f"scope must be one of {', '.join(get_args(Scope))}, got {scope!r}.")
    if scope == "per-class" and task != "multi-label":
        raise ValueError(
            f'scope="per-class" is for multi-label tasks: a {task} task has one temperature, since its classes share '
            'one distribution. Use scope="shared" (--temperature shared).'
        )


def scaled_probs(logits: ArrayLike, temperatures: ArrayLike, *, task: Task) -> NDArray[np.float64]:
    """Computes the probabilities ``(N, C)`` of logits divided by the temperatures.

    Args:
        logits: As for :func:`fit_temperatures`.
        temperatures: Shape ``(C,)``; all equal for a single-label task.
        task: Kind of the target.
    """
    scaled = _scaled(np.asarray(logits, np.float64), np.asarray(temperatures, np.float64), task)
    if task == "multi-label":
        return expit(scaled)
    if task == "ordinal-regression":
        above = np.pad(expit(scaled), ((0, 0), (1, 1)), constant_values=((0, 0), (1, 0)))
        return above[:, :-1] - above[:, 1:]
    return softmax(scaled, axis=1)


def mean_nll(logits: ArrayLike, labels: ArrayLike, temperatures: ArrayLike, *, task: Task) -> float | None:
    """Computes the mean negative log-likelihood over known labels, ``None`` without any.

    Args:
        logits: As for :func:`fit_temperatures`.
        labels: As for :func:`fit_temperatures`. Of a multi-label task every known label counts alike, of the
            others every labelled study.
        temperatures: Shape ``(C,)``.
        task: Kind of the target.
    """
    truth = np.asarray(labels, np.float64)
    scaled = _scaled(np.asarray(logits, np.float64), np.asarray(temperatures, np.float64), task)
    likelihoods = _log_likelihoods(scaled, truth, task)
    return -float(likelihoods.mean()) if likelihoods.size else None


def _fit(logits: NDArray[np.float64], labels: NDArray[np.float64], task: Task) -> float:
    """Returns the best temperature, 1 if no other is better."""

    def nll(log_temperature: float) -> float:
        return -float(_log_likelihoods(logits * np.exp(-log_temperature), labels, task).mean())

    best = minimize_scalar(nll, bounds=tuple(np.log(LIMITS)), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(best.x)) if best.fun < nll(0.0) else 1.0


def _scaled(logits: NDArray[np.float64], temperatures: NDArray[np.float64], task: Task) -> NDArray[np.float64]:
    return logits / (temperatures if task == "multi-label" else temperatures[0])


def _log_likelihoods(logits: NDArray[np.float64], labels: NDArray[np.float64], task: Task) -> NDArray[np.float64]:
    """Returns the log-likelihood of each known label, or of each labelled study, in one dimension."""
    if task == "multi-label":
        known = ~np.isnan(labels)
        return log_expit(np.where(labels[known] == 1, logits[known], -logits[known]))
    known = ~np.isnan(labels).any(axis=1)
    logits, grades = logits[known], labels[known].argmax(axis=1)
    rows = np.arange(len(grades))
    if task != "ordinal-regression":
        return log_softmax(logits, axis=1)[rows, grades]
    # P(grade) = sigmoid(a) - sigmoid(b) for the logits a > b of "above the grade before" and "above the grade".
    padded = np.pad(logits, ((0, 0), (1, 1)), constant_values=((0, 0), (np.inf, -np.inf)))
    a, b = padded[rows, grades], padded[rows, grades + 1]
    gap = np.maximum(a - b, np.finfo(np.float64).tiny)
    return log_expit(a) + log_expit(-b) + np.log(-np.expm1(-gap))


def _checked(logits: ArrayLike, labels: ArrayLike, task: Task) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    values, truth = np.asarray(logits, np.float64), np.asarray(labels, np.float64)
    if task not in get_args(Task):
        raise ValueError(f"task must be one of {', '.join(get_args(Task))}, got {task!r}.")
    columns = truth.shape[1] - (task == "ordinal-regression") if truth.ndim == 2 else 0
    if truth.ndim != 2 or values.shape != (len(truth), columns):
        raise ValueError(
            f"logits of a {task} task must have shape ({len(truth)}, {columns}) to match labels of shape "
            f"{truth.shape}, got {values.shape}."
        )
    if not np.isfinite(values).all():
        raise ValueError(
            f"logits must be finite, got {float(values[~np.isfinite(values)][0])!r}. Check the model for overflow."
        )
    return values, truth
