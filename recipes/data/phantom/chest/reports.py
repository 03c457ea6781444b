"""The clinical note that goes with a study: it tells the causes and nothing of the image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recipes.data.phantom.chest.contexts import CONTEXTS

_OPENINGS = (
    "{age}-year-old {sex}.",
    "Patient is a {sex} aged {age}.",
    "{sex}, {age} years.",
    "{age} year old {sex} patient.",
)
_ASIDES = (
    "Single frontal view.",
    "Portable film at the bedside.",
    "Upright view in full inspiration.",
    "Requested by the ward team.",
    "No earlier films available.",
    "Comparison with last year requested.",
    "Appendectomy in youth.",
    "Type 2 diabetes on metformin.",
    "Allergic to penicillin.",
    "Works as a school teacher.",
    "Takes vitamin D.",
    "Treated for high cholesterol.",
    "Wears hearing aids.",
    "Lives with family.",
)
LEADS = ("Indication", "Clinical history", "Reason for exam", "History")


@dataclass(frozen=True)
class Person:
    """What the notes of one patient agree on."""

    age: int
    sex: str


def draw_person(rng: np.random.Generator) -> Person:
    """Draws a patient's age (18 to 92 years) and sex."""
    return Person(int(rng.integers(18, 93)), ("man", "woman")[rng.integers(2)])


def capital(text: str) -> str:
    """Returns the text with a capital first letter."""
    return text[:1].upper() + text[1:]


def _compose(phrases: list[str], rng: np.random.Generator) -> str:
    """Sets the phrases in one of four styles."""
    style = rng.integers(4)
    if style == 0:
        return f"{LEADS[rng.integers(len(LEADS))]}: {'; '.join(phrases)}."
    if style == 1:
        return " ".join(f"{capital(phrase)}." for phrase in phrases)
    if style == 2:
        first, second, *others = phrases
        return f"Presents with {first} and {second}. Background: {'; '.join(others)}."
    return f"{capital(', '.join(phrases[:-1]))}, also {phrases[-1]}."


def write_note(causes: Sequence[int] | NDArray[np.int64], person: Person, rng: np.random.Generator) -> str:
    """Writes a note that gives the context of one cause for every pattern, visible or not.

    Args:
        causes: Shape ``(P,)``, 0 or 1.
        person: Whom the note is about.
        rng: Stream of wording, order and asides.

    Returns:
        A text of 20 to 60 words.
    """
    phrases: list[str] = []
    for contexts, cause in zip(CONTEXTS, causes, strict=True):
        wording = contexts[int(cause)]
        phrases.append(wording[rng.integers(len(wording))].format(n=rng.integers(2, 10)))
    order = rng.permutation(len(phrases))
    return framed(lambda: _compose([phrases[i] for i in order], rng), person, rng)


def framed(write_body: Callable[[], str], person: Person, rng: np.random.Generator) -> str:
    """Sets a note's body between an opening, which tells age and sex, and one or two asides without information.

    Args:
        write_body: Writes the body; it may draw from ``rng``.
        person: Whom the note is about.
        rng: Stream of the wording.
    """
    opening = _OPENINGS[rng.integers(len(_OPENINGS))].format(age=person.age, sex=person.sex)
    asides = [_ASIDES[i] for i in rng.choice(len(_ASIDES), size=rng.integers(1, 3), replace=False)]
    parts = [write_body()]
    for aside in asides:
        parts.insert(int(rng.integers(len(parts) + 1)), aside)
    return " ".join([capital(opening), *parts])
