"""How much a zero-shot result owes to its prompts: the scores of random halves of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipes.data.studies import StudySplit, Task
from recipes.medmoe.choices import Scoring
from recipes.medmoe.inference.embedding import Embedded
from recipes.medmoe.zero_shot.scoring import score_classes
from recipes.shared.scores.metrics import evaluate_predictions
from recipes.shared.scores.single_label import single_label_scores

SUBSETS = 20
"""Random halves of the prompts that are scored."""

SCORINGS = ("mean", "max", "gloria")
"""Scorings whose parts of each prompt are at hand."""


def prompt_spread(
    embedded: Embedded,
    sizes: Sequence[int],
    studies: StudySplit,
    classes: Sequence[str],
    *,
    task: Task,
    scoring: Scoring,
    scale: float,
    seed: int,
) -> dict[str, Any] | None:
    """Scores random halves of each class's prompts.

    Args:
        embedded: Images and prompts.
        sizes: Number of prompts of each class, in their order.
        studies: The labelled images.
        classes: Names of the classes.
        task: What the labels are.
        scoring: One of `SCORINGS`; of others there is no spread.
        scale: What the model multiplies cosines by.
        seed: Of the draws.

    Returns:
        ``subsets`` and, for ``accuracy``, ``balanced_accuracy`` (single-label tasks) and ``macro_auroc``, the ``mean``,
        ``sd``, ``min`` and ``max`` over the subsets, ``None`` where undefined. ``None`` for another scoring, and where
        every class has one prompt.
    """
    if scoring not in SCORINGS or max(sizes) < 2:
        return None
    rng, edges = np.random.default_rng(seed), np.cumsum([0, *sizes])
    values: dict[str, list[float | None]] = {}
    for _ in range(SUBSETS):
        chosen = [
            start + rng.choice(size, size=-(-size // 2), replace=False)
            for start, size in zip(edges[:-1], sizes, strict=True)
        ]
        for name, value in _scores(embedded, chosen, studies, classes, task, scoring, scale).items():
            values.setdefault(name, []).append(value)
    return {"subsets": SUBSETS} | {name: _summary(each) for name, each in values.items()}


def _scores(
    embedded: Embedded,
    chosen: Sequence[NDArray[np.int64]],
    studies: StudySplit,
    classes: Sequence[str],
    task: Task,
    scoring: Scoring,
    scale: float,
) -> dict[str, float | None]:
    local = None if embedded.local is None else [embedded.local[:, rows] for rows in chosen]
    prompts = [embedded.prompts[rows] for rows in chosen]
    probs = score_classes(embedded.images, prompts, scoring=scoring, task=task, scale=scale, local=local).probs
    whole = evaluate_predictions(probs, studies.labels, studies.groups, classes, task=task, bootstrap=0)
    single = single_label_scores(probs, studies.labels, studies.groups, classes, task=task, bootstrap=0)
    scores = {"macro_auroc": whole["macro_auroc"]}
    if single is None:
        return scores
    return {"accuracy": whole["accuracy"], "balanced_accuracy": single["balanced_accuracy"]} | scores


def _summary(values: Sequence[float | None]) -> dict[str, float] | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {"mean": float(np.mean(known)), "sd": float(np.std(known, ddof=1)), "min": min(known), "max": max(known)}
