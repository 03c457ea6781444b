"""How much a zero-shot result owes to its prompts: the scores of random halves of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from recipes.data.studies import StudySplit, Task
from recipes.medmoe.zero_shot.prompt_scores import PromptScores
from recipes.medmoe.zero_shot.scoring import ClassScores
from recipes.shared.scores.metrics import evaluate_predictions
from recipes.shared.scores.single_label import single_label_scores

SUBSETS = 20
"""Random halves of the prompts that are scored."""


def prompt_spread(
    scored: PromptScores, studies: StudySplit, classes: Sequence[str], *, task: Task, seed: int
) -> dict[str, Any] | None:
    """Scores random halves of each class's prompts; texts against a class are not halved.

    Args:
        scored: Images and prompts.
        studies: The labelled images.
        classes: Names of the classes.
        task: What the labels are.
        seed: Of the draws.

    Returns:
        ``subsets`` and, for ``accuracy``, ``balanced_accuracy`` (single-label tasks) and ``macro_auroc``, the ``mean``,
        ``sd``, ``min`` and ``max`` over the subsets, ``None`` where undefined. ``None`` where every class has one
        prompt.
    """
    if max(len(own) for own in scored.rows) < 2:
        return None
    rng = np.random.default_rng(seed)
    values: dict[str, list[float | None]] = {}
    for _ in range(SUBSETS):
        chosen = [own[rng.choice(len(own), size=-(-len(own) // 2), replace=False)] for own in scored.rows]
        for name, value in _measured(scored.by_rows(chosen), studies, classes, task).items():
            values.setdefault(name, []).append(value)
    return {"subsets": SUBSETS} | {name: _summary(each) for name, each in values.items()}


def _measured(scores: ClassScores, studies: StudySplit, classes: Sequence[str], task: Task) -> dict[str, float | None]:
    whole = evaluate_predictions(scores.probs, studies.labels, studies.groups, classes, task=task, bootstrap=0)
    single = single_label_scores(scores.scores, studies.labels, studies.groups, classes, task=task, bootstrap=0)
    auroc = {"macro_auroc": whole["macro_auroc"]}
    if single is None:
        return auroc
    return {"accuracy": whole["accuracy"], "balanced_accuracy": single["balanced_accuracy"]} | auroc


def _summary(values: Sequence[float | None]) -> dict[str, float] | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {"mean": float(np.mean(known)), "sd": float(np.std(known, ddof=1)), "min": min(known), "max": max(known)}
