"""The source: same index same bits, patients kept apart, streams independent, mistakes refused."""

import pickle

import numpy as np
import pytest

from recipes.data.phantom import PhantomSplit, phantom_source
from recipes.data.phantom.chest.findings import CLASSES, PATTERNS
from recipes.data.phantom.streams import draw_causes, draw_visible
from recipes.data.studies import Study, StudySource, StudySplit, check_groups_apart

P = len(PATTERNS)


def same(one: Study, other: Study) -> bool:
    return (
        (one.id, one.group, one.text, one.boxes) == (other.id, other.group, other.text, other.boxes)
        and np.array_equal(one.image, other.image)
        and np.array_equal(one.labels, other.labels)
    )


@pytest.fixture(scope="module")
def source() -> StudySource:
    return phantom_source(seed=3, train=40, val=12, test=15)


def test_source_is_described(source: StudySource) -> None:
    assert (source.name, source.task, source.classes) == ("phantom", "multi-label", CLASSES)
    assert len(set(CLASSES)) == 2 * P
    assert [len(split) for _, split in source.splits()] == [40, 12, 15]
    assert all(isinstance(split, StudySplit) for _, split in source.splits())
    assert "5/6" in source.notes[0]


def test_split_agrees_with_its_studies(source: StudySource) -> None:
    for name, split in source.splits():
        studies = [split[index] for index in range(len(split))]
        assert [study.id for study in studies] == [f"{name}-{index:05d}" for index in range(len(split))]
        assert [study.text for study in studies] == list(split.texts)
        assert [study.group for study in studies] == list(split.groups)
        assert np.array_equal(np.stack([study.labels for study in studies]), split.labels)
        for study in studies:
            assert study.image.dtype == np.uint8
            assert study.image.shape == (96, 96)
            named = {CLASSES.index(box.finding) for box in study.boxes}
            assert named == set(np.flatnonzero(study.labels))


def test_same_arguments_give_the_same_bits_in_any_order(source: StudySource) -> None:
    again = phantom_source(seed=3, train=40, val=12, test=15)
    forward = [source.train[index] for index in range(40)]
    backward = [again.train[index] for index in reversed(range(40))][::-1]
    assert all(same(one, other) for one, other in zip(forward, backward, strict=True))


def test_a_smaller_split_is_the_start_of_a_larger_one(source: StudySource) -> None:
    smaller = phantom_source(seed=3, train=17, val=1, test=1)
    assert all(same(smaller.train[index], source.train[index]) for index in range(17))


def test_pickled_split_draws_the_same(source: StudySource) -> None:
    copy = pickle.loads(pickle.dumps(source.test))
    assert all(same(copy[index], source.test[index]) for index in range(len(copy)))


def test_writing_to_a_study_leaves_the_split_alone(source: StudySource) -> None:
    before = source.val[0]
    changed = source.val[0]
    changed.labels[:] = 7.0
    changed.image[:] = 7
    assert same(source.val[0], before)


def test_seeds_and_splits_differ(source: StudySource) -> None:
    other = phantom_source(seed=4, train=40, val=12, test=15)
    assert not np.array_equal(other.train.labels, source.train.labels)
    assert not np.array_equal(other.train[0].image, source.train[0].image)
    assert other.train.texts != source.train.texts
    assert not np.array_equal(source.val.labels, source.test.labels[:12])
    assert not np.array_equal(source.val[0].image, source.test[0].image)


def test_image_ignores_causes_and_note_ignores_visibility() -> None:
    visible, causes = draw_visible(0, "train", 30), draw_causes(0, "train", 30)
    split = PhantomSplit(visible, causes, seed=0, split="train", size=64)
    recaused = PhantomSplit(visible, 1 - causes, seed=0, split="train", size=64)
    redrawn = PhantomSplit(~visible, causes, seed=0, split="train", size=64)
    assert all(np.array_equal(split[index].image, recaused[index].image) for index in range(30))
    assert all(one != other for one, other in zip(split.texts, recaused.texts, strict=True))
    assert split.texts == redrawn.texts
    assert not any(np.array_equal(split[index].image, redrawn[index].image) for index in range(30))


def test_patients_have_one_to_three_studies_and_one_split() -> None:
    source = phantom_source(train=300, val=60, test=60)
    check_groups_apart(source)
    for _, split in source.splits():
        _, sizes = np.unique(np.asarray(split.groups)[:-3], return_counts=True)
        assert set(sizes) == {1, 2, 3}
        assert list(split.groups) == sorted(split.groups)


def test_a_patient_keeps_anatomy_age_and_sex() -> None:
    nothing = np.zeros((200, P), dtype=bool)
    split = PhantomSplit(nothing, draw_causes(5, "train", 200), seed=5, split="train", size=64)
    groups = np.asarray(split.groups)
    pairs = np.flatnonzero(groups[1:] == groups[:-1])[:40]
    apart = np.flatnonzero(groups[1:] != groups[:-1])[:40]

    def difference(index: int) -> float:
        return float(np.abs(split[index].image.astype(float) - split[index + 1].image.astype(float)).mean())

    assert np.mean([difference(int(i)) for i in pairs]) < np.mean([difference(int(i)) for i in apart])
    for index in pairs:
        sexes = [" woman" in f" {split.texts[i].lower()}" for i in (index, index + 1)]
        assert sexes[0] == sexes[1]


def test_index_counts_from_the_end_and_is_checked(source: StudySource) -> None:
    assert same(source.val[-1], source.val[11])
    assert same(source.val[np.int64(2)], source.val[2])
    for index in (12, -13):
        with pytest.raises(IndexError, match=f"index {index} is out of range for 12 studies"):
            source.val[index]


@pytest.mark.parametrize(
    ("name", "value", "smallest"),
    [
        ("seed", -1, 0),
        ("seed", 0.5, 0),
        ("train", 0, 1),
        ("val", -3, 1),
        ("test", True, 1),
        ("test", "9", 1),
        ("size", 63, 64),
        ("size", 96.0, 64),
    ],
)
def test_bad_argument_is_refused(name: str, value: object, smallest: int) -> None:
    message = f"{name}: expected a whole number of at least {smallest}, got {value!r}"
    with pytest.raises(ValueError, match=message):
        phantom_source(**{name: value})  # type: ignore[arg-type]


def test_split_refuses_what_does_not_fit() -> None:
    visible, causes = draw_visible(0, "val", 4), draw_causes(0, "val", 4)
    with pytest.raises(ValueError, match="split: expected one of train, val, test, got 'dev'"):
        PhantomSplit(visible, causes, seed=0, split="dev", size=64)
    with pytest.raises(ValueError, match=r"shape \(N, 5\), one row per study, got \(4, 5\) and \(3, 5\)"):
        PhantomSplit(visible, causes[:3], seed=0, split="val", size=64)
    with pytest.raises(ValueError, match=r"got \(4, 4\) and \(4, 4\)"):
        PhantomSplit(visible[:, :4], causes[:, :4], seed=0, split="val", size=64)
