"""The note of a study: it tells a circumstance of each side, and nothing of the image."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recipes.data.phantom.chest.reports import LEADS, Person, capital, framed

SIDES: tuple[str, ...] = ("right", "left")
"""The patient's sides, in the order of every ``contexts`` array."""

CONTEXTS: tuple[tuple[str, ...], ...] = (
    (
        "struck by a car door",
        "fell against a railing",
        "tackled hard at rugby",
        "bruised in a bicycle crash",
    ),
    (
        "irradiated for a tumour",
        "completed radiotherapy {n} months ago",
        "treated with thirty fractions of radiation",
        "had proton therapy last year",
    ),
    (
        "operated on {n} weeks ago",
        "thoracotomy last month",
        "had keyhole surgery in spring",
        "recent biopsy under general anesthesia",
    ),
    (
        "inhaled a peanut",
        "choked on porridge {n} days ago",
        "vomited while lying down",
        "swallowing difficulty after a stroke",
    ),
    (
        "drain left in place",
        "chest tube removed {n} days ago",
        "port implanted for chemotherapy",
        "central catheter changed twice",
    ),
    (
        "shingles with a painful rash",
        "burning skin eruption for {n} days",
        "blisters along one dermatome",
        "crusted vesicles below the armpit",
    ),
    (
        "treated with acupuncture needles",
        "nerve block for shoulder pain",
        "injections into trigger points",
        "dry needling {n} days ago",
    ),
    (
        "weak arm since birth",
        "polio in childhood with wasting",
        "paralysed half of the trunk",
        "muscles thinned by neuropathy",
    ),
)
"""Paraphrases of each circumstance. None has a comma, a name of a class or a word for what an image shows."""


def write_note(contexts: Sequence[int] | NDArray[np.int64], person: Person, rng: np.random.Generator) -> str:
    """Writes a note that tells the circumstance of each side, in either order.

    Args:
        contexts: Of the right and the left side.
        person: Whom the note is about.
        rng: Stream of wording, order and asides.

    Returns:
        A text of 15 to 45 words.
    """
    phrases: list[str] = []
    for side, context in zip(SIDES, contexts, strict=True):
        wordings = CONTEXTS[int(context)]
        wording = wordings[rng.integers(len(wordings))].format(n=rng.integers(2, 10))
        phrases.append(f"on the {side} {wording}" if rng.random() < 0.5 else f"{wording} on the {side}")
    if rng.random() < 0.5:
        phrases.reverse()
    return framed(lambda: _compose(phrases, rng), person, rng)


def _compose(phrases: list[str], rng: np.random.Generator) -> str:
    """Sets both phrases in one of three styles."""
    first, second = phrases
    style = rng.integers(3)
    if style == 0:
        return f"{LEADS[rng.integers(len(LEADS))]}: {first}; {second}."
    if style == 1:
        return f"{capital(first)}. {capital(second)}."
    return f"{capital(first)}, and {second}."
