"""Global embeddings of images and texts, of norm 1."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recipes.data.studies import StudySplit
from recipes.medmoe.inference.session import ModelSession


def image_embeddings(session: ModelSession, split: StudySplit, *, title: str) -> NDArray[np.float32]:
    """Embeds the images of a split, ``(N, D)``.

    Args:
        session: The run.
        split: ``N`` studies.
        title: Of the progress bar.

    Raises:
        ValueError: If an image cannot be read; the message names it.
    """
    parts = [image.embedding.float().cpu().numpy() for _, image in session.image_batches(split, title=title)]
    return np.concatenate(parts)


def text_embeddings(session: ModelSession, texts: Sequence[str]) -> NDArray[np.float32]:
    """Embeds texts, ``(T, D)``."""
    return session.texts(texts).embedding.float().cpu().numpy()


def made_by(session: ModelSession, checkpoint: str) -> dict[str, str]:
    """Returns what tells whether two embeddings are of one model: the run's name, which weights, and their checksum."""
    name = session.run.resolve().name
    return {"run": name, "checkpoint": checkpoint, "weights": session.weights_checksum(checkpoint)}
