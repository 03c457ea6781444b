"""The source: patients kept apart, streams independent, splits that do not fit refused."""

import numpy as np
import pytest

from recipes.data.phantom import PhantomSplit, phantom_source
from recipes.data.phantom.chest.findings import CLASSES, PATTERNS
from recipes.data.phantom.streams import draw_causes, draw_visible
from recipes.data.studies import StudySource, StudySplit, check_groups_apart

P = len(PATTERNS)


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


def test_split_refuses_what_does_not_fit() -> None:
    visible, causes = draw_visible(0, "val", 4), draw_causes(0, "val", 4)
    with pytest.raises(ValueError, match="split: expected one of train, val, test, got 'dev'"):
        PhantomSplit(visible, causes, seed=0, split="dev", size=64)
    with pytest.raises(ValueError, match=r"shape \(N, 5\), one row per study, got \(4, 5\) and \(3, 5\)"):
        PhantomSplit(visible, causes[:3], seed=0, split="val", size=64)
    with pytest.raises(ValueError, match=r"got \(4, 4\) and \(4, 4\)"):
        PhantomSplit(visible[:, :4], causes[:, :4], seed=0, split="val", size=64)
