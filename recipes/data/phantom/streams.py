"""Independent random streams: every draw of the data set has a stream of its own.

A stream is named by ``(seed, split, purpose, index...)`` through `numpy.random.SeedSequence`'s spawn
key, so a study is the same whatever was read before it, and nothing drawn for the image can be
correlated with anything drawn for the note.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from recipes.data.phantom.chest.findings import PATTERNS
from recipes.data.studies import SPLITS

MAX_STUDIES_PER_PATIENT = 3


class Purpose(IntEnum):
    """What a stream is for. The numbers are part of the data: changing one changes every image or note."""

    GROUPS = 0
    VISIBLE = 1
    CAUSES = 2
    ANATOMY = 3
    ACQUISITION = 4
    LESION = 5
    PERSON = 6
    NOTE = 7
    PAIR_GROUPS = 8
    PAIR_MODALITY = 9
    PAIR_STATE = 10
    PAIR_PLACE = 11
    PAIR_ANATOMY = 12
    PAIR_ACQUISITION = 13
    PAIR_LESION = 14
    PAIR_REPORT = 15
    HARD_VISIBLE = 16
    HARD_CONTEXTS = 17
    PAIR_SEVERAL = 18
    HARD_NAMED = 19


def stream(seed: int, split: str, purpose: Purpose, *index: int) -> np.random.Generator:
    """Returns the generator named by its arguments, in its initial state."""
    key = (SPLITS.index(split), int(purpose), *index)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def draw_visible(seed: int, split: str, count: int) -> NDArray[np.bool_]:
    """Draws which patterns are visible, each with probability 1/2: shape ``(count, P)``."""
    return stream(seed, split, Purpose.VISIBLE).random((count, len(PATTERNS))) < 0.5


def draw_causes(seed: int, split: str, count: int) -> NDArray[np.int64]:
    """Draws the cause (0 or 1, equally likely) the note tells for each pattern: shape ``(count, P)``."""
    return (stream(seed, split, Purpose.CAUSES).random((count, len(PATTERNS))) < 0.5).astype(np.int64)


def draw_patients(seed: int, split: str, count: int, purpose: Purpose = Purpose.GROUPS) -> NDArray[np.int64]:
    """Draws the patient of each study: non-decreasing numbers, 1 to 3 studies each, shape ``(count,)``."""
    # One patient has at least one study, so ``count`` sizes always suffice.
    sizes = stream(seed, split, purpose).integers(1, MAX_STUDIES_PER_PATIENT + 1, size=count)
    return np.repeat(np.arange(count), sizes)[:count]
