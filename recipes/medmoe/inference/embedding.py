"""A split and texts in the model's space: embeddings, local scores, and the experts chosen."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from recipes.data.studies import StudySplit
from recipes.medmoe.inference.local_scoring import experts_used, modality_labels, prompt_experts, routed_local_scores
from recipes.medmoe.inference.session import ModelSession


class Embedded(NamedTuple):
    """Embeddings, local scores and experts of a split and its prompts.

    Attributes:
        images: ``(N, D)``.
        prompts: ``(P, D)``, the prompts of all classes one after the other.
        local: ``(N, P)``, where the scoring uses it.
        experts: Expert of each image, or of each prompt where texts decide; ``None`` where the kind decides
            and is not known (the scoring does not need it then), and of a model without experts.
    """

    images: NDArray[np.float64]
    prompts: NDArray[np.float64]
    local: NDArray[np.float64] | None
    experts: list[int] | None


@torch.no_grad()
def embed(
    session: ModelSession, studies: StudySplit, texts: Sequence[str], *, local: bool, kind: str | None, title: str
) -> Embedded:
    """Embeds a split and texts, with their local scores on request.

    Args:
        session: The run.
        studies: ``N`` images.
        texts: ``P`` prompts.
        local: Whether to compute local scores.
        kind: Kind of all images, where it is known; the images' own where it is ``None``.
        title: Of the progress bar.

    Raises:
        ValueError: If local scores are asked for, the kind of an image chooses its expert, and it is not known.
    """
    by = session.route_on
    labels = None
    if by == "label":
        try:
            labels = modality_labels(session, studies, kind)
        except ValueError:
            if local:
                raise
    text = session.texts(texts)
    decided = by == "image" or labels is not None
    images, scores, experts = [], [], []
    for rows, image in session.image_batches(studies, title=title):
        images.append(as_array(image.embedding))
        batch_labels = None if labels is None else labels[rows]
        if decided:
            experts += experts_used(session, image, batch_labels)
        if local:
            scores.append(as_array(routed_local_scores(session, image, text, batch_labels)))
    if by == "text":
        experts = prompt_experts(session, text)
    return Embedded(
        np.concatenate(images),
        as_array(text.embedding),
        np.concatenate(scores) if local else None,
        experts if decided or by == "text" else None,
    )


def as_array(values: torch.Tensor) -> NDArray[np.float64]:
    """Returns a tensor as float64 numbers of numpy."""
    return values.double().cpu().numpy()
