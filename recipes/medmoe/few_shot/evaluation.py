"""Few-shot classification of one set: shots drawn several times, each classifier scored on the test split."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from recipes.data.evaluation.types import EvaluationSet
from recipes.medmoe.few_shot.methods import METHODS, Labelled, Method, Texts
from recipes.medmoe.few_shot.shots import draw_shots
from recipes.medmoe.inference.session import ModelSession
from recipes.medmoe.use.embeddings import image_embeddings, text_embeddings
from recipes.medmoe.zero_shot.prompt_files import Prompts, choose_prompts
from recipes.medmoe.zero_shot.scoring import class_embeddings
from recipes.shared.scores.metrics import evaluate_predictions
from recipes.shared.scores.seeds import summary_over_seeds
from recipes.shared.scores.single_label import single_label_scores

SCORES = ("accuracy", "balanced_accuracy", "macro_auroc")
"""What is reported of each classifier."""


def few_shot_set(
    session: ModelSession,
    one: EvaluationSet,
    prompts: Prompts,
    *,
    shots: Sequence[int],
    methods: Sequence[Method],
    seeds: Sequence[int],
    alpha: float,
    beta: float,
) -> dict[str, Any]:
    """Scores classifiers of a few labelled images.

    Args:
        session: The run.
        one: The set; it needs a training split.
        prompts: The prompts of its classes, for Tip-Adapter and for the zero-shot row.
        shots: Labelled images of each class.
        methods: Which classifiers.
        seeds: Of the draws.
        alpha: Of Tip-Adapter.
        beta: Of Tip-Adapter.

    Returns:
        ``zero_shot`` (`SCORES` of the prompts alone), ``results`` (one for each method and number of shots, with
        `SCORES` as mean, interval over seeds and values, and the studies used), ``chance``, ``majority_share`` and what
        it was made with.

    Raises:
        ValueError: If the set has several labels per image, no training split, or a class that it does not show.
    """
    if one.task == "multi-label":
        raise ValueError(f"the set {one.name} has several labels per image; few-shot classifiers take one: use probe.")
    if "train" not in one.splits:
        raise ValueError(
            f"the set {one.name} has no train split, from which shots are drawn: it has {', '.join(one.splits)}. Give "
            "a table with a split column (--options split_column=NAME)."
        )
    train, test = one.splits["train"], one.splits["test"]
    classes = _classes(np.asarray(train.labels, np.float64))
    absent = [name for c, name in enumerate(one.classes) if not (classes == c).any()]
    if absent:
        raise ValueError(f"the train split of {one.name} shows no study of {absent}, so it has no shots of them.")
    known, groups = image_embeddings(session, train, title=f"{one.name} train").astype(np.float64), list(train.groups)
    images = image_embeddings(session, test, title=f"{one.name} test").astype(np.float64)
    own = choose_prompts(prompts, one.classes)
    means = class_embeddings([text_embeddings(session, own.classes[name]).astype(np.float64) for name in one.classes])
    texts = Texts(means, session.scale, alpha, beta)
    results = []
    for number in shots:
        draws = [draw_shots(classes, groups, number, seed) for seed in seeds]
        for method in methods:
            scored = []
            for rows, seed in zip(draws, seeds, strict=True):
                labelled = Labelled(known[rows], classes[rows], [groups[row] for row in rows], seed)
                scored.append(_scores(METHODS[method](images, labelled, texts), one))
            spread = {name: summary_over_seeds([each[name] for each in scored]) for name in SCORES}
            results.append({"method": method, "shots": number, "studies": [len(rows) for rows in draws], **spread})
    labels = _classes(np.asarray(test.labels, np.float64))
    counts = np.bincount(labels[labels >= 0], minlength=len(one.classes))
    return {
        "set": one.name,
        "model": session.name,
        "task": one.task,
        "classes": list(one.classes),
        "seeds": list(seeds),
        "alpha": alpha,
        "beta": beta,
        "studies": {"train": len(train), "test": len(test)},
        "chance": 1 / len(one.classes),
        "majority_share": float(counts.max() / counts.sum()) if counts.sum() else None,
        "zero_shot": _scores(softmax(texts.scale * images @ means.T, axis=1), one),
        "results": results,
        "prompts": {"file": prompts.name} | own.to_json(),
        "notes": list(one.notes),
    }


def _classes(labels: NDArray[np.float64]) -> NDArray[np.int64]:
    """Returns the number of each study's class, -1 where it is not labelled."""
    known = ~np.isnan(labels).any(axis=1)
    return np.where(known, np.nan_to_num(labels).argmax(axis=1), -1)


def _scores(probs: NDArray[np.float64], one: EvaluationSet) -> dict[str, Any]:
    test = one.splits["test"]
    common = {"task": one.task, "bootstrap": 0}
    scores = evaluate_predictions(probs, test.labels, test.groups, one.classes, **common)
    single = single_label_scores(probs, test.labels, test.groups, one.classes, **common) or {}
    return {name: (scores | single).get(name) for name in SCORES}
