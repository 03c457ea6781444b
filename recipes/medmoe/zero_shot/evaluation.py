"""Zero-shot classification of one split of one set."""

from typing import Any

import torch

from recipes.data.evaluation.types import EvaluationSet
from recipes.data.studies import StudySplit
from recipes.medmoe.choices import LOCAL_SCORINGS, Scoring
from recipes.medmoe.inference.local_scoring import describe_routing
from recipes.medmoe.inference.session import ModelSession
from recipes.medmoe.inference.vocabulary import words_unknown_to
from recipes.medmoe.zero_shot.prompt_files import Prompts, choose_prompts
from recipes.medmoe.zero_shot.prompt_scores import score_prompts
from recipes.medmoe.zero_shot.prompt_spread import prompt_spread
from recipes.medmoe.zero_shot.scoring import ClassScores
from recipes.shared.scores.confusion import confusion_matrix
from recipes.shared.scores.metrics import evaluate_predictions
from recipes.shared.scores.single_label import single_label_scores


def evaluate_set(session: ModelSession, one: EvaluationSet, prompts: Prompts, **options: Any) -> dict[str, Any]:
    """Classifies one split of one set; see :func:`evaluate_scores`, of which this is the first part."""
    return evaluate_scores(session, one, prompts, **options)[0]


@torch.no_grad()
def evaluate_scores(
    session: ModelSession,
    one: EvaluationSet,
    prompts: Prompts,
    *,
    scoring: Scoring = "mean",
    split: str = "test",
    modality: str | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    checkpoint: str = "best",
) -> tuple[dict[str, Any], ClassScores]:
    """Classifies one split of one set.

    Args:
        session: The run.
        one: The set.
        prompts: The prompts of each of its classes.
        scoring: See :mod:`recipes.medmoe.zero_shot.scoring`.
        split: Which studies.
        modality: Kind of the images, where the set does not say it.
        bootstrap: Resamples of patients.
        seed: Of the bootstrap.
        checkpoint: Which weights the session has.

    Returns:
        What ``zero_shot/SET.json`` holds, and the scores of every image.

    Raises:
        ValueError: If the set has no such split, the prompts do not serve the scoring, or the kind of the images
            is needed and not known.
    """
    kind = modality or one.modality
    _check_fit(one, prompts, scoring, split)
    studies = one.splits[split]
    own = choose_prompts(prompts, one.classes)  # in the set's order, under its names
    scored = score_prompts(
        session, studies, own, task=one.task, scoring=scoring, kind=kind, title=one.name, checkpoint=checkpoint
    )
    scores, experts = scored.scores, scored.embedded.experts
    measured = evaluate_predictions(
        scores.probs, studies.labels, studies.groups, one.classes, task=one.task, bootstrap=bootstrap, seed=seed
    )
    single = one.task != "multi-label"
    by = session.route_on
    of = "prompts" if by == "text" else "images"
    result: dict[str, Any] = {
        "set": one.name,
        "model": session.name,
        "task": one.task,
        "split": split,
        "modality": kind,
        "scoring": scoring,
        "scale": session.scale,
        "seed": seed,
        "route_on": by,
        "routing_matters": scoring in LOCAL_SCORINGS and by != "none",
        "routing": None if experts is None else describe_routing(session, experts, of, kind),
        "chance": 1 / len(one.classes) if single else None,
        "accuracy": None,
        "accuracy_ci95": None,
        "majority_share": None,
        "confusion": None,
        "prompts": {"file": prompts.name} | prompts.to_json(),
        "unknown_words": _unknown_words(session, one, prompts),
        "prompt_spread": prompt_spread(scored, studies, one.classes, task=one.task, seed=seed),
        "classes": list(one.classes),
        "notes": [*one.notes, *session.notes],
    } | measured
    if single:
        _add_confusion(result, scores, studies)
        whole = single_label_scores(
            scores.scores, studies.labels, studies.groups, one.classes, task=one.task, bootstrap=bootstrap, seed=seed
        )
        result |= {key: value for key, value in (whole or {}).items() if key not in ("per_class", "confusion")}
        for name, values in (whole or {}).get("per_class", {}).items():
            result["per_class"][name] |= values
    return result, scores


def _check_fit(one: EvaluationSet, prompts: Prompts, scoring: str, split: str) -> None:
    if split not in one.splits:
        raise ValueError(f"split: the set {one.name} has no {split} split, it has {', '.join(one.splits)} (--split).")
    lacking = [name for name in one.classes if name not in prompts.absent]
    if scoring == "pairs" and lacking:
        raise ValueError(
            f"scoring='pairs' needs texts against each class, but {prompts.name!r} has none for {lacking}: "
            'add them under "absent", or use another scoring (--scoring).'
        )


def _unknown_words(session: ModelSession, one: EvaluationSet, prompts: Prompts) -> dict[str, Any] | None:
    """Counts the words of the prompts that the tokenizer does not know, and names classes of which it knows none."""
    every = words_unknown_to(session, [text for name in one.classes for text in prompts.classes[name]])
    if every is None:
        return None
    counts = {name: words_unknown_to(session, prompts.classes[name]) for name in one.classes}
    mute = [name for name, own in counts.items() if own is not None and own.share == 1]
    return every.to_json("prompts") | {"classes_without_any": mute}


def _add_confusion(result: dict[str, Any], scores: ClassScores, studies: StudySplit) -> None:
    confusion = confusion_matrix(scores.scores, studies.labels, result["classes"])
    result["majority_share"] = confusion.pop("majority_share")
    for name, recall in confusion.pop("recall").items():
        result["per_class"][name]["recall"] = recall
    result["confusion"] = confusion
