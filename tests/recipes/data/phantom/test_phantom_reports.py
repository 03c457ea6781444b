"""Notes: length, variety, and no word of a diagnosis or of what the image shows."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.data.phantom.chest.contexts import CONTEXTS
from recipes.data.phantom.chest.findings import CLASSES, PATTERNS
from recipes.data.phantom.chest.reports import Person, draw_person, write_note

P = len(PATTERNS)
VISUAL_WORDS = """
    opacity opacification consolidation infiltrate nodule nodular reticular reticulation fluid air meniscus
    bronchogram pleural pleura rim line lung lobe lobar base basal apex apical left right shadow x-ray
    radiograph metastatic fibrotic edematous oedema haemorrhage bleed effusions
"""


@settings(deadline=None, max_examples=300)
@given(seed=st.integers(0, 2**32), causes=st.lists(st.integers(0, 1), min_size=P, max_size=P))
def test_note_has_every_context_and_no_leak(seed: int, causes: list[int]) -> None:
    rng = np.random.default_rng(seed)
    note = write_note(causes, draw_person(rng), rng)
    words = set(re.findall(r"[a-z\-]+", note.lower()))
    assert 20 <= len(note.split()) <= 60
    assert not any(name.lower() in note.lower() for name in CLASSES)
    assert not words & {word for name in CLASSES for word in name.lower().split()}
    assert not words & set(VISUAL_WORDS.split())
    assert "{" not in note
    assert note == note.strip()
    assert note.endswith(".")
    for pattern, cause in enumerate(causes):
        assert mentions(note, pattern, cause)
        assert not mentions(note, pattern, 1 - cause)


def mentions(note: str, pattern: int, cause: int) -> bool:
    wordings = (re.escape(wording).replace(r"\{n\}", r"\d") for wording in CONTEXTS[pattern][cause])
    return any(re.search(wording, note, flags=re.IGNORECASE) for wording in wordings)


def test_contexts_are_short_distinct_and_complete() -> None:
    assert len(CONTEXTS) == P
    wordings = [wording for causes in CONTEXTS for context in causes for wording in context]
    assert len(set(wordings)) == len(wordings)
    for wording in wordings:
        assert 4 <= len(wording.split()) <= 7
        assert not set(wording) & set(",;.:")


def test_notes_vary_in_order_wording_and_style() -> None:
    notes = [write_note([0] * P, Person(60, "man"), np.random.default_rng(seed)) for seed in range(200)]
    assert len(set(notes)) == 200
    first = {min(range(P), key=lambda p: position(note, p)) for note in notes}
    assert first == set(range(P))
    for marker in ("Presents with", "Indication:", ", also "):
        assert 0 < sum(marker in note for note in notes) < 200
    for wordings in (context for causes in CONTEXTS for context in causes[:1]):
        assert all(any(wording.split()[-1] in note for note in notes) for wording in wordings)


def position(note: str, pattern: int) -> int:
    lowered = note.lower()
    starts = [wording.split("{")[0].lower() for wording in CONTEXTS[pattern][0]]
    return min(lowered.find(start) for start in starts if start in lowered)


def test_person_is_told_and_drawn_in_range() -> None:
    people = [draw_person(np.random.default_rng(seed)) for seed in range(500)]
    assert {person.sex for person in people} == {"man", "woman"}
    assert min(person.age for person in people) >= 18
    assert max(person.age for person in people) <= 92
    note = write_note([1] * P, Person(77, "woman"), np.random.default_rng(0))
    assert "77" in note
    assert "woman" in note.lower()


def test_note_needs_one_cause_per_pattern() -> None:
    with pytest.raises(ValueError, match="shorter"):
        write_note([0] * (P - 1), Person(50, "man"), np.random.default_rng(0))
