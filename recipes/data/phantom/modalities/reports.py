"""The report that goes with a study: what the study is, what is found and where, and an aside."""

import numpy as np

from recipes.data.phantom.modalities.findings import Finding, Place
from recipes.data.phantom.modalities.wording import NORMAL_SENTENCES, OPENINGS, SENTENCES, TECHNIQUES

_MIN_WORDS = 10


def _one_of(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[rng.integers(len(options))]


def write_report(modality: str, finding: Finding | None, place: Place | None, rng: np.random.Generator) -> str:
    """Writes a report of 10 to 25 words.

    Args:
        modality: Kind of the image.
        finding: What is seen, or ``None`` for a normal study.
        place: Where it lies; ``None`` exactly where ``finding`` is.
        rng: Stream of wording and order.
    """
    opening, technique = _one_of(OPENINGS[modality], rng), _one_of(TECHNIQUES[modality], rng)
    opened, technique_first = rng.random() < 0.6, rng.random() < 0.25
    if finding is None or place is None:
        sentence = _one_of(NORMAL_SENTENCES[modality], rng)
    else:
        sentence = _one_of(SENTENCES[finding.name], rng).format(place=place.words)
    parts = [technique, sentence] if technique_first else [sentence, technique]
    if opened or sum(len(part.split()) for part in parts) < _MIN_WORDS:
        parts.insert(0, opening)
    return " ".join(parts)
