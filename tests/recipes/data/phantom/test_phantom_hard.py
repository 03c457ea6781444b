"""The harder phantom: meanings that depend on the side's circumstance, bounds, and streams that do not leak."""

import itertools
import re
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from recipes.data.phantom import PhantomHardSplit, phantom_hard_source
from recipes.data.phantom.chest.reports import draw_person
from recipes.data.phantom.hard.bounds import best_aurocs
from recipes.data.phantom.hard.findings import (
    CLASSES,
    MAX_CONTEXTS,
    PATTERNS,
    class_of,
    draw_contexts,
    draw_visible,
    labels_of,
)
from recipes.data.phantom.hard.notes import CONTEXTS, write_note
from recipes.data.studies import StudySource, check_groups_apart
from tests.recipes.data.phantom.test_phantom_reports import VISUAL_WORDS

P = len(PATTERNS)


@pytest.fixture(scope="module")
def source() -> StudySource:
    return phantom_hard_source(seed=3, train=500, val=12, test=250, num_contexts=4)


def split_of(source: StudySource, name: str) -> PhantomHardSplit:
    split = getattr(source, name)
    assert isinstance(split, PhantomHardSplit)
    return split


@pytest.mark.parametrize("num_contexts", [2, 4, 6, 8])
def test_each_look_has_several_meanings_and_each_class_several_looks(num_contexts: int) -> None:
    meanings = {(p, c): class_of(p, c) for p in range(P) for c in range(num_contexts)}
    for pattern in range(P):
        assert len({meanings[pattern, c] for c in range(num_contexts)}) == num_contexts
    for number in range(len(CLASSES)):
        pairs = [pair for pair, meaning in meanings.items() if meaning == number]
        assert len(pairs) == num_contexts // 2
        assert len({p for p, _ in pairs}) == len({c for _, c in pairs}) == len(pairs)


def test_a_class_needs_pattern_and_circumstance_on_one_side() -> None:
    visible = np.zeros((3, P, 2), bool)
    visible[:2, 1, 0] = True  # nodules on the right
    contexts = np.array([[3, 0], [0, 3], [3, 3]])
    labels = labels_of(visible, contexts)
    assert [np.flatnonzero(row).tolist() for row in labels] == [[class_of(1, 3)], [class_of(1, 0)], []]


@pytest.mark.parametrize("num_contexts", [2, 4, 8])
def test_bounds_are_those_of_oracles_on_the_latents(num_contexts: int) -> None:
    visible = draw_visible(5, "test", 40_000)
    contexts = draw_contexts(5, "test", 40_000, num_contexts)
    labels = labels_of(visible, contexts)
    assert labels.mean(0) == pytest.approx(np.full(12, 11 / 36), abs=0.01)
    number = 4
    pairs = [(p, c) for p, c in itertools.product(range(P), range(num_contexts)) if class_of(p, c) == number]
    shown = sum(visible[:, p].astype(float) for p, _ in pairs)
    told = sum((contexts == c).astype(float) for _, c in pairs)
    image = 1 - (1 - shown / num_contexts).prod(1)
    best = best_aurocs(num_contexts)
    assert roc_auc_score(labels[:, number], image) == pytest.approx(best.image, abs=0.01)
    assert roc_auc_score(labels[:, number], told.sum(1)) == pytest.approx(best.note, abs=0.01)
    # Both circumstances held against both sides in either order: the mean of the two ways to put them together.
    hits = [
        np.max([visible[:, p, side] & (contexts[:, side ^ swap] == c) for p, c in pairs for side in (0, 1)], axis=0)
        for swap in (0, 1)
    ]
    either = roc_auc_score(labels[:, number], np.mean(hits, axis=0))
    # The posterior given counts is coarser than this where several patterns are visible, so this bounds it from above.
    assert best.image < best.without_sides <= either + 0.01


def test_bound_of_the_note_is_a_fraction() -> None:
    assert best_aurocs(4).note == pytest.approx(float(Fraction(41, 55)))


def test_source_is_described_and_its_boxes_carry_the_positive_classes(source: StudySource) -> None:
    assert (source.name, source.task, source.classes) == ("phantom-hard", "multi-label", CLASSES)
    assert "0.757 from the image alone, 0.745 from the note alone, 0.952" in source.notes[0]
    check_groups_apart(source)
    for index in range(12):
        study = source.val[index]
        assert (study.image.shape, study.image.dtype) == ((96, 96), np.uint8)
        assert {CLASSES.index(box.finding) for box in study.boxes} == set(np.flatnonzero(study.labels))


def test_a_pattern_changes_its_own_side_alone() -> None:
    contexts = np.zeros((1, 2), np.int64)
    empty = PhantomHardSplit(np.zeros((1, P, 2), bool), contexts, seed=0, split="train", size=96)[0]
    for pattern, side in itertools.product(range(P), (0, 1)):
        visible = np.zeros((1, P, 2), bool)
        visible[0, pattern, side] = True
        study = PhantomHardSplit(visible, contexts, seed=0, split="train", size=96)[0]
        change = np.abs(study.image.astype(float) - empty.image)
        halves = change[:, :46].sum(), change[:, 50:].sum()  # the patient's right is the image's left
        assert halves[side] > 50
        assert halves[1 - side] <= 0.02 * halves[side], (PATTERNS[pattern], side)


def test_image_ignores_circumstances_and_note_ignores_patterns() -> None:
    visible, contexts = draw_visible(0, "val", 10), draw_contexts(0, "val", 10, 4)
    split = PhantomHardSplit(visible, contexts, seed=0, split="val", size=64)
    retold = PhantomHardSplit(visible, 3 - contexts, seed=0, split="val", size=64)
    redrawn = PhantomHardSplit(~visible, contexts, seed=0, split="val", size=64)
    assert all(np.array_equal(split[i].image, retold[i].image) for i in range(10))
    assert not any(one == other for one, other in zip(split.texts, retold.texts, strict=True))
    assert split.texts == redrawn.texts
    assert not any(np.array_equal(split[i].image, redrawn[i].image) for i in range(10))


def test_notes_tell_both_sides_and_leak_nothing() -> None:
    assert len(CONTEXTS) == MAX_CONTEXTS
    wordings = [wording for context in CONTEXTS for wording in context]
    assert len(set(wordings)) == len(wordings)
    hidden = set(VISUAL_WORDS.split()) - {"left", "right"} | {"disease", "cavity"}
    for first, second in itertools.product(range(MAX_CONTEXTS), repeat=2):
        rng = np.random.default_rng(first * 10 + second)
        note = write_note((first, second), draw_person(rng), rng)
        assert 12 <= len(note.split()) <= 45, note
        assert not set(re.findall(r"[a-z\-]+", note.lower())) & hidden, note
        assert "{" not in note
        for side, context in (("right", first), ("left", second)):
            forms = (re.escape(wording).replace(r"\{n\}", r"\d") for wording in CONTEXTS[context])
            assert any(re.search(rf"{form} on the {side}|on the {side} {form}", note, re.I) for form in forms), note


def aurocs(inputs: NDArray, targets: NDArray, held_out: NDArray, truth: NDArray, model) -> list[float]:
    return [
        roc_auc_score(truth[:, k], model.fit(inputs, targets[:, k]).decision_function(held_out))
        for k in range(targets.shape[1])
    ]


def test_note_tells_the_circumstance_of_each_side_and_no_pattern(source: StudySource) -> None:
    train, test = split_of(source, "train"), split_of(source, "test")
    counter = CountVectorizer(ngram_range=(1, 4), min_df=2)
    words, held_out = counter.fit_transform(train.texts), counter.transform(test.texts)
    model = LogisticRegression(max_iter=300, C=10)
    told = aurocs(words, train.contexts == 2, held_out, test.contexts == 2, model)
    assert min(told) > 0.8
    shown = aurocs(words, train.visible[:, :, 0], held_out, test.visible[:, :, 0], model)
    assert max(abs(value - 0.5) for value in shown) < 0.14


def features(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Brightness and its fine bright and dark detail, pooled over a grid of 6 x 6 cells."""
    picture = image.astype(np.float32) / 255.0
    smooth = [picture, *(ndimage.gaussian_filter(picture, sigma) for sigma in (1.0, 2.5))]
    fine, middle = smooth[0] - smooth[1], smooth[1] - smooth[2]
    cells = np.stack([picture, np.abs(fine), np.abs(middle)]).reshape(3, 6, 16, 6, 16).swapaxes(2, 3)
    return np.concatenate([cells.mean(axis=(3, 4)).ravel(), cells[1:].max(axis=(3, 4)).ravel()])


def test_image_tells_the_patterns_of_each_side_and_no_circumstance(source: StudySource) -> None:
    train, test = split_of(source, "train"), split_of(source, "test")
    inputs, held_out = (np.stack([features(split[i].image) for i in range(len(split))]) for split in (train, test))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
    shown = aurocs(inputs, train.visible[:, :, 1], held_out, test.visible[:, :, 1], model)
    assert min(shown) > 0.7, dict(zip(PATTERNS, shown, strict=True))
    told = aurocs(inputs, train.contexts == 1, held_out, test.contexts == 1, model)
    assert max(abs(value - 0.5) for value in told) < 0.14


def test_arguments_that_do_not_fit_are_refused() -> None:
    for value in (0, 3, 10, True, 4.5):
        with pytest.raises(ValueError, match=rf"num_contexts \(--num-contexts\): expected an even .* got {value!r}"):
            phantom_hard_source(train=1, val=1, test=1, num_contexts=value)
    visible, contexts = draw_visible(0, "val", 4), draw_contexts(0, "val", 4, 4)
    with pytest.raises(ValueError, match=r"\(N, 6, 2\) and \(N, 2\), one row per study, got \(4, 6, 2\) and \(3, 2\)"):
        PhantomHardSplit(visible, contexts[:3], seed=0, split="val", size=64)
