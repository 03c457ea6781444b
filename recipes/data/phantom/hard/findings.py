"""What a pattern means under a circumstance, and labels from latents.

Letters: N studies, P patterns, C circumstances, two sides: 0 the patient's right (the image's left), 1 the left.
"""

import numpy as np
from numpy.typing import NDArray

from recipes.data.phantom.streams import Purpose, stream

PATTERNS: tuple[str, ...] = ("consolidation", "nodules", "reticulation", "basal fluid", "pleural air", "cavity")
"""What an image can show in each lung, in the order of every ``visible`` array; the names reach no note."""

CLASSES: tuple[str, ...] = tuple(f"Disease {letter}" for letter in "ABCDEFGHIJKL")
"""Classes. They have no names of real diseases, as no disease behaves like this."""

MAX_CONTEXTS = 8
"""Circumstances that there are wordings for."""

VISIBLE_PROBABILITY = 1 / 3
"""Of each pattern in each lung."""


def class_of(pattern: int, context: int) -> int:
    """Returns the class of a pattern under a circumstance: ``(2p + c) mod 12``.

    Every class has ``C / 2`` such pairs, of different patterns and different circumstances: a pattern means ``C``
    classes, and a class has ``C / 2`` looks.
    """
    return (2 * pattern + context) % len(CLASSES)


def labels_of(visible: NDArray[np.bool_], contexts: NDArray[np.int64]) -> NDArray[np.float32]:
    """Turns latents into labels: a class is 1 where some side shows a pattern that means it under that side's context.

    Args:
        visible: Shape ``(N, P, 2)``, whether each pattern is drawn on each side.
        contexts: Shape ``(N, 2)``, the circumstance of each side.

    Returns:
        Shape ``(N, 12)``, 0 or 1.
    """
    labels = np.zeros((len(visible), len(CLASSES)), np.float32)
    for pattern in range(len(PATTERNS)):
        for side in range(2):
            shown = visible[:, pattern, side]
            labels[np.flatnonzero(shown), class_of(pattern, contexts[shown, side])] = 1
    return labels


def draw_visible(seed: int, split: str, count: int) -> NDArray[np.bool_]:
    """Draws which patterns each side shows, each with probability 1/3: shape ``(count, P, 2)``."""
    draws = stream(seed, split, Purpose.HARD_VISIBLE).random((count, len(PATTERNS), 2))
    return draws < VISIBLE_PROBABILITY


def draw_contexts(seed: int, split: str, count: int, num_contexts: int) -> NDArray[np.int64]:
    """Draws the circumstance of each side, all equally likely: shape ``(count, 2)``."""
    draws = stream(seed, split, Purpose.HARD_CONTEXTS).random((count, 2))
    return (draws * num_contexts).astype(np.int64)
