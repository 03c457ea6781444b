"""The note of a study: it names a place and tells a circumstance, and nothing of the image."""

import numpy as np

from recipes.data.phantom.chest.reports import LEADS, Person, capital
from recipes.data.phantom.hard.findings import PLACES

SIDES: tuple[str, ...] = ("right", "left")
"""The patient's sides."""

LEVELS: tuple[tuple[str, ...], ...] = (
    ("below the {side} collar bone", "high up on the {side} side"),
    ("over the lowest {side} ribs", "low down on the {side} side"),
)
"""Paraphrases of each level."""

COMPLAINTS = ("pain", "tender", "worse")

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
)
"""Paraphrases of each circumstance. None has a comma, a name of a class or a word for what an image shows."""


def write_note(context: int, place: int, person: Person, rng: np.random.Generator) -> str:
    """Writes a note that tells the circumstance and names the place of a complaint, in either order.

    Args:
        context: The circumstance.
        place: One of `findings.PLACES`, by its number.
        person: Whom the note is about.
        rng: Stream of wording and order.

    Returns:
        A text of 10 to 20 words.
    """
    side, level = PLACES[place]
    wording = LEVELS[level][rng.integers(len(LEVELS[level]))].format(side=SIDES[side])
    circumstance = CONTEXTS[context][rng.integers(len(CONTEXTS[context]))].format(n=rng.integers(2, 10))
    phrases = [f"{COMPLAINTS[rng.integers(len(COMPLAINTS))]} {wording}", circumstance]
    if rng.random() < 0.5:
        phrases.reverse()
    opening = f"{capital(person.sex)}, {person.age} years."
    if rng.random() < 0.5:
        return f"{opening} {LEADS[rng.integers(len(LEADS))]}: {phrases[0]}; {phrases[1]}."
    return f"{opening} {capital(phrases[0])}. {capital(phrases[1])}."
