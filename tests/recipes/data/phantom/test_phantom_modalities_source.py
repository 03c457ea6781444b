"""The pairs: states equally likely, patients apart; and the labelled sets made of them."""

from dataclasses import replace

import numpy as np
import pytest

from recipes.data.pairs import PairSource, PairSplit
from recipes.data.phantom import (
    PhantomModalitySplit,
    phantom_evaluation_sets,
    phantom_modalities_source,
    phantom_prompts,
    phantom_source,
)
from recipes.data.phantom.modalities import FINDING_NAMES, MODALITIES, PhantomModalityPart, findings_of
from recipes.data.studies import StudySplit
from tests.recipes.data.phantom.same_study import same

SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def source() -> PairSource:
    return phantom_modalities_source(seed=3, train=60, val=24, test=30)


@pytest.fixture(scope="module")
def large() -> PhantomModalitySplit:
    return PhantomModalitySplit(4000, seed=1, split="train", size=96)


def test_source_is_described(source: PairSource) -> None:
    assert source.name == "phantom-modalities"
    assert source.modalities == ("ct", "mri", "ultrasound", "xray")
    assert [len(getattr(source, name)) for name in SPLITS] == [60, 24, 30]
    assert all(isinstance(getattr(source, name), PairSplit) for name in SPLITS)
    assert "drawn, not real" in source.notes[0]


def test_split_agrees_with_its_studies(source: PairSource) -> None:
    split = source.train
    assert isinstance(split, PhantomModalitySplit)
    for index in range(len(split)):
        study, finding = split[index], split.findings[index]
        assert (study.id, study.group) == (f"train-{index:05d}", split.groups[index])
        assert (study.text, study.modality) == (split.texts[index], split.modalities[index])
        assert np.array_equal(study.labels, split.labels[index])
        assert (study.image.dtype, study.image.shape) == (np.uint8, (96, 96))
        assert [box.finding for box in study.boxes] == ([] if finding is None else [finding])
        assert [FINDING_NAMES[k] for k in np.flatnonzero(study.labels)] == ([] if finding is None else [finding])
        assert finding is None or finding in split.texts[index].lower()
        assert finding is None or finding in [one.name for one in findings_of(split.modalities[index])]


def test_box_lies_on_the_side_that_the_report_tells(source: PairSource) -> None:
    split = source.train
    assert isinstance(split, PhantomModalitySplit)
    checked = 0
    for index in range(len(split)):
        words = split.texts[index].replace(".", " ").replace(",", " ").split()
        for box in split[index].boxes:
            if box.finding != "liver mass" and ("right" in words or "left" in words):
                assert ((box.x0 + box.x1) / 2 < 48) == ("right" in words)
                checked += 1
    assert checked > 10


def test_seeds_and_splits_differ(source: PairSource) -> None:
    other = phantom_modalities_source(seed=4, train=60, val=24, test=30)
    assert other.train.texts != source.train.texts
    assert source.val.texts != source.test.texts[:24]
    assert not any(np.array_equal(source.train[i].image, other.train[i].image) for i in range(5))
    assert not any(np.array_equal(source.val[i].image, source.test[i].image) for i in range(5))


def test_states_are_equally_likely_and_texts_repeat(large: PhantomModalitySplit) -> None:
    kinds = np.asarray(large.modalities)
    for modality in MODALITIES:
        assert np.mean(kinds == modality) == pytest.approx(0.25, abs=0.04)
        for name in (*(finding.name for finding in findings_of(modality)), None):
            states = np.array([finding == name for finding in large.findings])
            assert np.mean(states[kinds == modality]) == pytest.approx(0.25, abs=0.05)
    assert set(large.labels.sum(axis=1)) == {0.0, 1.0}
    assert 0.3 < len(set(large.texts)) / len(large) < 0.95


def test_patients_have_one_to_three_studies_of_one_modality(large: PhantomModalitySplit) -> None:
    groups = np.asarray(large.groups)
    _, sizes = np.unique(groups[:-3], return_counts=True)
    assert set(sizes) == {1, 2, 3}
    kinds: dict[str, set[str]] = {}
    for group, modality in zip(groups, large.modalities, strict=True):
        kinds.setdefault(group, set()).add(modality)
    assert all(len(one) == 1 for one in kinds.values())


def test_no_patient_is_in_two_splits(source: PairSource) -> None:
    groups = [set(getattr(source, name).groups) for name in SPLITS]
    assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]


def test_the_index_of_an_evaluation_split_counts_from_the_end_and_is_checked(source: PairSource) -> None:
    part = phantom_evaluation_sets(source)[0].splits["val"]
    assert same(part[-1], part[len(part) - 1])
    for index in (len(part), -len(part) - 1):
        with pytest.raises(IndexError, match=f"index {index} is out of range for {len(part)} studies"):
            part[index]


def test_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="split: expected one of train, val, test, got 'dev'"):
        PhantomModalitySplit(4, seed=0, split="dev", size=64)


def test_evaluation_sets_part_the_studies_by_modality(source: PairSource) -> None:
    sets = phantom_evaluation_sets(source)
    assert [one.name for one in sets] == ["phantom-xray", "phantom-ct", "phantom-ultrasound", "phantom-mri"]
    for name in SPLITS:
        ids = [study for one in sets for study in one.splits[name].ids]
        assert sorted(ids) == list(getattr(source, name).ids)
    for one in sets:
        assert one.modality is not None
        assert (one.prompts, one.task) == (one.name, "multi-class")
        assert one.classes == tuple(phantom_prompts(one.modality)["classes"])
        assert one.notes == source.notes
        for split in one.splits.values():
            assert isinstance(split, StudySplit)
            assert len(split) == len(split.texts) == len(split.groups) == len(split.labels)


def test_studies_of_an_evaluation_set_are_the_sources_with_labels_of_their_own(source: PairSource) -> None:
    split = source.test
    assert isinstance(split, PhantomModalitySplit)
    for one in phantom_evaluation_sets(source):
        part = one.splits["test"]
        for index in range(len(part)):
            study = part[index]
            row = list(split.ids).index(study.id)
            assert study.modality == one.modality
            assert same(replace(split[row], labels=study.labels), study)
            assert (study.text, study.group) == (part.texts[index], part.groups[index])
            assert np.array_equal(study.labels, part.labels[index])
            assert study.labels.dtype == np.float32
            named = [one.classes[k] for k in np.flatnonzero(study.labels)]
            assert named == [split.findings[row] or "normal"]


def test_only_drawn_modalities_make_evaluation_sets(source: PairSource) -> None:
    other = phantom_source(train=2, val=2, test=2)
    mixed = replace(source, name="mixed", val=other.val)  # type: ignore[arg-type]
    message = "source: expected one of phantom_modalities_source, got 'mixed' whose val split is a PhantomSplit"
    with pytest.raises(ValueError, match=message):
        phantom_evaluation_sets(mixed)
    with pytest.raises(ValueError, match="modality: expected one of xray, ct, ultrasound, mri, got 'pet'"):
        PhantomModalityPart(source.test, "pet")  # type: ignore[arg-type]


def test_modality_can_be_told_from_a_thumbnail(source: PairSource) -> None:
    """Nearest mean picture: the modalities are apart, as routing by image needs."""
    split = source.train
    assert isinstance(split, PhantomModalitySplit)
    thumbnails = np.stack([split[i].image.reshape(12, 8, 12, 8).mean(axis=(1, 3)).ravel() for i in range(60)])
    kinds = np.asarray(split.modalities)
    means = {m: thumbnails[:40][kinds[:40] == m].mean(axis=0) for m in MODALITIES}
    nearest = [min(MODALITIES, key=lambda m: np.linalg.norm(one - means[m])) for one in thumbnails[40:]]
    assert nearest == list(kinds[40:])
