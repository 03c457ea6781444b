"""What images score for the classes of prompts: for all prompts of each class, or for some of them."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from recipes.data.studies import StudySplit, Task
from recipes.medmoe.choices import LOCAL_SCORINGS, Scoring
from recipes.medmoe.inference.embedding import Embedded, as_array, embed
from recipes.medmoe.inference.local_scoring import as_run
from recipes.medmoe.inference.reference import load_reference, reference_scores
from recipes.medmoe.inference.session import ModelSession
from recipes.medmoe.zero_shot.prompt_files import Prompts
from recipes.medmoe.zero_shot.scoring import ClassScores, Parts, combined_scores, score_classes

ByRows = Callable[[Sequence[NDArray[np.int64]]], ClassScores]
"""Scores of images by some prompts: for each class, the rows of its own among the prompts of all."""


class PromptScores(NamedTuple):
    """What ``N`` images score for the prompts of ``C`` classes.

    Attributes:
        scores: By all prompts.
        embedded: The images and the prompts, those of all classes one after the other.
        rows: The rows of each class's prompts.
        by_rows: Scores by some of them, without running the model again.
    """

    scores: ClassScores
    embedded: Embedded
    rows: tuple[NDArray[np.int64], ...]
    by_rows: ByRows


@torch.no_grad()
def score_prompts(
    session: ModelSession,
    studies: StudySplit,
    prompts: Prompts,
    *,
    task: Task,
    scoring: Scoring,
    kind: str | None,
    title: str,
    checkpoint: str = "best",
) -> PromptScores:
    """Scores images for the classes of prompts, in their order.

    Args:
        session: The run.
        studies: The images; labels are not read.
        prompts: The texts of each class.
        task: Whether the classes exclude one another.
        scoring: See :mod:`recipes.medmoe.zero_shot.scoring`.
        kind: Kind of all images, where it is known.
        title: Of the progress bar.
        checkpoint: Which weights the session has.

    Raises:
        ValueError: If the kind of the images is needed and not known, or a scoring needs experts that there are not.
    """
    names = list(prompts.classes)
    texts = [text for name in names for text in prompts.classes[name]]
    embedded = embed(session, studies, texts, local=scoring in LOCAL_SCORINGS, kind=kind, title=title)
    edges = np.cumsum([0, *(len(prompts.classes[name]) for name in names)])
    rows = tuple(np.arange(start, end) for start, end in pairwise(edges))
    if scoring == "combined":
        by_rows = _combined(session, embedded, texts, task, checkpoint)
    else:
        by_rows = _alone(session, embedded, prompts, task, scoring)
    return PromptScores(by_rows(rows), embedded, rows, by_rows)


def _alone(session: ModelSession, embedded: Embedded, prompts: Prompts, task: Task, scoring: Scoring) -> ByRows:
    """Scores by what images and prompts are to each other; all texts against a class take part."""
    absent = None
    if scoring == "pairs":
        absent = [as_array(session.texts(prompts.absent[name]).embedding) for name in prompts.classes]

    def by_rows(rows: Sequence[NDArray[np.int64]]) -> ClassScores:
        return score_classes(
            embedded.images,
            [embedded.prompts[own] for own in rows],
            scoring=scoring,
            task=task,
            scale=session.scale,
            absent=absent,
            local=None if embedded.local is None else [embedded.local[:, own] for own in rows],
        )

    return by_rows


def _combined(session: ModelSession, embedded: Embedded, texts: list[str], task: Task, checkpoint: str) -> ByRows:
    """Scores by cosine and local score, on the scale of the run's reference images."""
    run = as_run(session)
    routed = run.route_on != "none"
    reference = load_reference(run, checkpoint)
    known = reference_scores(run, reference, run.texts(texts))
    known_images = as_array(reference.embeddings)
    local, experts = embedded.local, embedded.experts if routed else [0] * len(embedded.images)
    assert local is not None
    assert experts is not None

    def by_rows(rows: Sequence[NDArray[np.int64]]) -> ClassScores:
        prompts = [embedded.prompts[own] for own in rows]
        return combined_scores(
            Parts.of(embedded.images, prompts, [local[:, own] for own in rows], experts),
            Parts.of(known_images, prompts, [known[:, own] for own in rows], reference.experts),
            num_experts=run.model.config.num_experts if routed else 1,
            task=task,
        )

    return by_rows
