"""The harder phantom: a place that the note names, meanings that depend on it, bounds, and streams that do not leak."""

import itertools
import re

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
    CONFLICTING,
    LOCAL,
    MAX_CONTEXTS,
    PATTERNS,
    PLACES,
    SIGNS,
    diseases_of,
    draw_contexts,
    draw_named,
    draw_patterns,
    labels_of,
)
from recipes.data.phantom.hard.notes import CONTEXTS, LEVELS, SIDES, write_note
from recipes.data.studies import StudySource, check_groups_apart
from tests.recipes.data.phantom.test_phantom_reports import VISUAL_WORDS

P, Z = len(PATTERNS), len(PLACES)


@pytest.fixture(scope="module")
def source() -> StudySource:
    return phantom_hard_source(seed=3, train=500, val=12, test=250, num_contexts=4)


def split_of(source: StudySource, name: str) -> PhantomHardSplit:
    split = getattr(source, name)
    assert isinstance(split, PhantomHardSplit)
    return split


def latents(count: int, num_contexts: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    drawn = draw_patterns(5, "test", count), draw_contexts(5, "test", count, num_contexts), draw_named(5, "test", count)
    assert [np.unique(each).tolist() for each in drawn] == [list(range(P)), list(range(num_contexts)), list(range(Z))]
    return drawn


def test_signatures_conflict() -> None:
    for pattern in range(P):
        meant = [diseases_of(pattern, context) for context in range(MAX_CONTEXTS)]
        assert {CLASSES[local] for local, _ in meant} == {LOCAL[pattern]}
        assert {CLASSES[conflicting] for _, conflicting in meant} == set(CONFLICTING)
    for context in range(MAX_CONTEXTS):  # every disease has one pattern under every circumstance
        meant = [CLASSES[number] for pattern in range(P) for number in diseases_of(pattern, context)]
        assert sorted(meant) == sorted(LOCAL + CONFLICTING)


def test_labels_are_those_of_the_place_that_the_note_names() -> None:
    patterns = np.array([[1, 0, 2, 3], [1, 0, 2, 3], [1, 0, 2, 3], [1, 1, 2, 2]])
    labels = labels_of(patterns, np.array([0, 2, 1, 0]), np.array([0, 3, 0, 1]))
    positive = [[CLASSES[k] for k in np.flatnonzero(row)] for row in labels]
    assert positive[0] == ["Disease B", "Disease F"]
    assert positive[1] == ["Disease D", "Disease F"]
    assert positive[2] == ["Disease B", "Disease G"]
    assert positive[3] == ["Sign B", "Sign C", "Disease B", "Disease F"]
    for row, (shown, context) in enumerate(((1, 0), (3, 2), (1, 1), (1, 0))):
        assert set(diseases_of(shown, context)) == {CLASSES.index(name) for name in positive[row] if "Dis" in name}


@pytest.mark.parametrize("num_contexts", [1, 2, 4])
def test_bounds_are_those_of_oracles_on_the_latents(num_contexts: int) -> None:
    patterns, contexts, named = latents(40_000, num_contexts)
    labels = labels_of(patterns, contexts, named)
    assert labels.mean(0) == pytest.approx([67 / 256] * P + [1 / 4] * (2 * P), abs=0.01)
    counts = (patterns[:, :, None] == np.arange(P)).sum(1)
    means = []
    for classes, number in ((SIGNS, 2), (LOCAL, P + 2), (CONFLICTING, 2 * P + 2)):
        best = best_aurocs(num_contexts, classes)
        means.append(best)
        # Every pattern is as likely at every place, so neither circumstance nor place tells anything alone.
        assert best.note == 0.5
        for note in (contexts, named):
            shares = [labels[note == value, number].mean() for value in np.unique(note)]
            assert shares == pytest.approx([labels[:, number].mean()] * len(shares), abs=0.02)
        if classes == SIGNS:
            assert best.image == best.without_places == 1.0
            continue
        looks = [2 if classes == LOCAL else (2 - context) % P for context in range(num_contexts)]
        image = counts[:, looks].mean(1)
        assert roc_auc_score(labels[:, number], image) == pytest.approx(best.image, abs=0.01)
        no_places = counts[np.arange(len(counts)), np.array(looks)[contexts]]
        assert roc_auc_score(labels[:, number], no_places) == pytest.approx(best.without_places, abs=0.01)
    assert best_aurocs(num_contexts) == pytest.approx(np.mean(means, axis=0))


def test_without_places_is_the_shift_of_a_binomial() -> None:
    # At the three other places the pattern is as likely whether the named one shows it or not.
    odds = np.array([27, 27, 9, 1]) / 64
    pairs = itertools.product(range(Z), repeat=2)
    shifted = sum(odds[i] * odds[j] * ((i + 1 > j) + (i + 1 == j) / 2) for i, j in pairs)
    assert best_aurocs(4, LOCAL).without_places == best_aurocs(4, CONFLICTING).without_places == pytest.approx(shifted)


def test_source_is_described_and_its_boxes_carry_the_positive_classes(source: StudySource) -> None:
    assert (source.name, source.task, source.classes) == ("phantom-hard", "multi-label", CLASSES)
    assert "0.769 from the image alone, 0.500 from the note alone, 0.872 from both without" in source.notes[0]
    check_groups_apart(source)
    split = split_of(source, "val")
    for index in range(12):
        study = split[index]
        assert (study.image.shape, study.image.dtype) == ((96, 96), np.uint8)
        assert {CLASSES.index(box.finding) for box in study.boxes} == set(np.flatnonzero(study.labels))
        side, level = PLACES[split.named[index]]
        for box in study.boxes:
            if box.finding not in SIGNS:
                assert ((box.x0 + box.x1) / 2 > 48) == (side == 1)
                assert ((box.y0 + box.y1) / 2 > 46) == (level == 1)


def test_a_pattern_changes_its_own_place_alone() -> None:
    contexts = named = np.zeros(1, np.int64)
    for place, (one, other) in itertools.product(range(Z), itertools.combinations(range(P), 2)):
        images = []
        for pattern in (one, other):
            patterns = np.zeros((1, Z), np.int64)
            patterns[0, place] = pattern
            split = PhantomHardSplit(patterns, contexts, named, seed=0, split="train", size=96)
            images.append(split[0].image.astype(float))
        change = np.abs(images[0] - images[1])
        side, level = PLACES[place]  # the patient's right is the image's left
        own = np.zeros_like(change, bool)
        own[(slice(0, 47), slice(43, 96))[level], (slice(0, 47), slice(49, 96))[side]] = True
        assert change[own].sum() > 200
        assert change[~own].sum() <= 0.02 * change[own].sum(), (PATTERNS[one], PATTERNS[other], place)


def test_image_ignores_the_note_and_the_note_ignores_the_image() -> None:
    patterns, contexts, named = draw_patterns(0, "val", 10), draw_contexts(0, "val", 10, 4), draw_named(0, "val", 10)
    split = PhantomHardSplit(patterns, contexts, named, seed=0, split="val", size=64)
    retold = PhantomHardSplit(patterns, 3 - contexts, 3 - named, seed=0, split="val", size=64)
    redrawn = PhantomHardSplit(3 - patterns, contexts, named, seed=0, split="val", size=64)
    assert all(np.array_equal(split[i].image, retold[i].image) for i in range(10))
    assert not any(one == other for one, other in zip(split.texts, retold.texts, strict=True))
    assert split.texts == redrawn.texts
    assert not any(np.array_equal(split[i].image, redrawn[i].image) for i in range(10))


def test_notes_tell_place_and_circumstance_and_leak_nothing() -> None:
    assert len(CONTEXTS) == MAX_CONTEXTS
    wordings = [wording for context in CONTEXTS for wording in context]
    assert len(set(wordings)) == len(wordings)
    hidden = set(VISUAL_WORDS.split()) - {"left", "right"} | {"disease", "sign", "cavity"}
    for context, place, seed in itertools.product(range(MAX_CONTEXTS), range(Z), range(8)):
        rng = np.random.default_rng((context, place, seed))
        note = write_note(context, place, draw_person(rng), rng)
        assert 10 <= len(note.split()) <= 20, note
        assert not set(re.findall(r"[a-z\-]+", note.lower())) & hidden, note
        assert "{" not in note
        told = [
            number
            for number, forms in enumerate(CONTEXTS)
            if any(re.search(re.escape(form).replace(r"\{n\}", r"\d"), note, re.IGNORECASE) for form in forms)
        ]
        assert told == [context], note
        places = [
            number
            for number, (side, level) in enumerate(PLACES)
            if any(form.format(side=SIDES[side]) in note for form in LEVELS[level])
        ]
        assert places == [place], note


def aurocs(inputs: NDArray, targets: NDArray, held_out: NDArray, truth: NDArray, model) -> list[float]:
    return [
        roc_auc_score(truth[:, k], model.fit(inputs, targets[:, k]).decision_function(held_out))
        for k in range(targets.shape[1])
    ]


def one_hot(values: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    return values[:, None] == np.arange(count)


def test_note_tells_place_and_circumstance_and_no_pattern(source: StudySource) -> None:
    train, test = split_of(source, "train"), split_of(source, "test")
    counter = CountVectorizer(ngram_range=(1, 3), min_df=2)
    words, held_out = counter.fit_transform(train.texts), counter.transform(test.texts)
    model = LogisticRegression(max_iter=300, C=10)
    for of_train, of_test, count in ((train.contexts, test.contexts, 4), (train.named, test.named, Z)):
        assert min(aurocs(words, one_hot(of_train, count), held_out, one_hot(of_test, count), model)) > 0.99
    shown = aurocs(words, train.patterns == 0, held_out, test.patterns == 0, model)
    shown += aurocs(words, train.labels, held_out, test.labels, model)
    assert max(abs(value - 0.5) for value in shown) < 0.14
    assert abs(np.mean(shown) - 0.5) < 0.05


def features(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Brightness and its fine bright and dark detail, pooled over a grid of 6 x 6 cells."""
    picture = image.astype(np.float32) / 255.0
    smooth = [picture, *(ndimage.gaussian_filter(picture, sigma) for sigma in (1.0, 2.5))]
    fine, middle = smooth[0] - smooth[1], smooth[1] - smooth[2]
    cells = np.stack([picture, np.abs(fine), np.abs(middle)]).reshape(3, 6, 16, 6, 16).swapaxes(2, 3)
    return np.concatenate([cells.mean(axis=(3, 4)).ravel(), cells[1:].max(axis=(3, 4)).ravel()])


def test_image_tells_the_pattern_at_each_place_and_nothing_of_the_note(source: StudySource) -> None:
    train, test = split_of(source, "train"), split_of(source, "test")
    inputs, held_out = (np.stack([features(split[i].image) for i in range(len(split))]) for split in (train, test))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
    places = np.arange(P)  # each pattern at another place
    shown = aurocs(inputs, train.patterns == places, held_out, test.patterns == places, model)
    assert min(shown) > 0.8, dict(zip(PATTERNS, shown, strict=True))
    note = [(split.contexts == 1, split.named == 1) for split in (train, test)]
    told = aurocs(inputs, np.stack(note[0], axis=1), held_out, np.stack(note[1], axis=1), model)
    assert max(abs(value - 0.5) for value in told) < 0.14


def test_arguments_that_do_not_fit_are_refused() -> None:
    for value in (0, 5, True, 2.5):
        with pytest.raises(ValueError, match=rf"num_contexts.*: expected a whole .* got {value!r}"):
            phantom_hard_source(train=1, val=1, test=1, num_contexts=value)
    patterns, contexts, named = draw_patterns(0, "val", 4), draw_contexts(0, "val", 4, 4), draw_named(0, "val", 4)
    with pytest.raises(ValueError, match=r"\(N, 4\), \(N,\) and \(N,\), one row per study, got \(4, 4\), \(3,\) and"):
        PhantomHardSplit(patterns, contexts[:3], named, seed=0, split="val", size=64)
