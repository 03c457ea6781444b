"""What a study of the harder edition shows and tells, and its labels.

Letters: N studies, Z places, P patterns, C circumstances.
"""

import numpy as np
from numpy.typing import NDArray

from recipes.data.phantom.streams import Purpose, stream

PATTERNS: tuple[str, ...] = ("consolidation", "nodules", "reticulation", "cavity")
"""What an image can show at each place; the names reach no note."""

PLACES: tuple[tuple[int, int], ...] = ((0, 0), (0, 1), (1, 0), (1, 1))
"""Side (0 the patient's right, which is the image's left) and level (0 upper, 1 lower) of each place."""

MAX_CONTEXTS = 4
"""Circumstances that there are wordings for; a fifth would repeat the meanings of the first."""

WIDESPREAD = 2
"""Places at which a pattern lies, at least, where its sign is positive."""

_P = len(PATTERNS)
SIGNS: tuple[str, ...] = tuple(f"Sign {letter}" for letter in "ABCD")
"""Findings that the image decides alone: a pattern at two places or more."""
LOCAL: tuple[str, ...] = tuple(f"Disease {letter}" for letter in "ABCD")
"""Findings that need the image and the place that the note names: a pattern there, whatever the circumstance."""
CONFLICTING: tuple[str, ...] = tuple(f"Disease {letter}" for letter in "EFGH")
"""Findings that need the circumstance too: a pattern there, another one under each circumstance."""
CLASSES: tuple[str, ...] = SIGNS + LOCAL + CONFLICTING
"""All findings, in the order of the labels. They have no names of real diseases, as no disease behaves like this."""


def diseases_of(pattern: int, context: int) -> tuple[int, int]:
    """Returns the classes that a pattern at the named place means under a circumstance.

    These are ``p`` of the local and ``(p + c) mod 4`` of the conflicting ones.
    """
    return _P + pattern, 2 * _P + (pattern + context) % _P


def labels_of(
    patterns: NDArray[np.int64], contexts: NDArray[np.int64], named: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Turns latents into labels.

    Args:
        patterns: Shape ``(N, Z)``, the pattern at each place.
        contexts: Shape ``(N,)``, the circumstance that the note tells.
        named: Shape ``(N,)``, the place that the note names.

    Returns:
        Shape ``(N, 12)``, 0 or 1.
    """
    count = np.arange(len(patterns))
    labels = np.zeros((len(patterns), len(CLASSES)), np.float32)
    labels[:, :_P] = (patterns[:, :, None] == np.arange(_P)).sum(1) >= WIDESPREAD
    shown = patterns[count, named]
    labels[count, _P + shown] = 1
    labels[count, 2 * _P + (shown + contexts) % _P] = 1
    return labels


def draw_patterns(seed: int, split: str, count: int) -> NDArray[np.int64]:
    """Draws the pattern at each place, all equally likely and independent: shape ``(count, Z)``."""
    draws = stream(seed, split, Purpose.HARD_VISIBLE).random((count, len(PLACES)))
    return (draws * _P).astype(np.int64)


def draw_contexts(seed: int, split: str, count: int, num_contexts: int) -> NDArray[np.int64]:
    """Draws the circumstance of each study, all equally likely: shape ``(count,)``."""
    return (stream(seed, split, Purpose.HARD_CONTEXTS).random(count) * num_contexts).astype(np.int64)


def draw_named(seed: int, split: str, count: int) -> NDArray[np.int64]:
    """Draws the place that the note of each study names, all equally likely: shape ``(count,)``."""
    return (stream(seed, split, Purpose.HARD_NAMED).random(count) * len(PLACES)).astype(np.int64)
