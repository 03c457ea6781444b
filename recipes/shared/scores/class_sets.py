"""Means over some of the classes, such as CheXpert's five competition tasks."""

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from recipes.data.studies import Task
from recipes.shared.scores.metrics import evaluate_predictions


def class_set_scores(
    probs: NDArray[Any],
    labels: NDArray[Any],
    groups: Sequence[str],
    classes: Sequence[str],
    class_sets: Mapping[str, Sequence[str]],
    *,
    task: Task,
    bootstrap: int = 1000,
) -> dict[str, dict[str, Any]]:
    """Computes the macro AUROC over each named set of classes.

    Args:
        probs: ``(N, C)``.
        labels: ``(N, C)``: 1, 0 or NaN.
        groups: Patient of each study.
        classes: Names of the ``C`` classes.
        class_sets: Names of the classes of each set.
        task: Kind of the target; sets are for multi-label ones, whose classes are scored one by one.
        bootstrap: Resamples of patients.

    Returns:
        For each set its ``classes``, ``macro_auroc``, ``macro_auroc_ci95`` and ``undefined_classes``, as
        `evaluate_predictions` computes them.

    Raises:
        ValueError: If a set names another class, or there are sets and the task is not multi-label.
    """
    scores: dict[str, dict[str, Any]] = {}
    for name, members in class_sets.items():
        unknown = [member for member in members if member not in classes]
        if unknown or task != "multi-label":
            raise ValueError(
                f"class_sets: {name!r} must hold classes of a multi-label task out of {list(classes)}, got "
                f"{list(members)} ({task})"
            )
        columns = [list(classes).index(member) for member in members]
        part = evaluate_predictions(
            probs[:, columns], labels[:, columns], groups, members, task=task, bootstrap=bootstrap
        )
        kept = ("macro_auroc", "macro_auroc_ci95", "undefined_classes")
        scores[name] = {"classes": list(members)} | {key: part[key] for key in kept}
    return scores
