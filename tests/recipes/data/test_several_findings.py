"""Drawn studies with several findings: what they show, and that the phantom set stays as it is."""

from itertools import combinations

import numpy as np
import pytest

from recipes.data.pairs import PairSplit
from recipes.data.phantom import phantom_modalities_source, phantom_several_findings
from recipes.data.phantom.modalities import FINDING_NAMES, MODALITIES
from recipes.data.phantom.modalities.drawing import Streams
from recipes.data.phantom.modalities.pairs import DRAWERS
from recipes.data.phantom.streams import Purpose, draw_patients, stream


@pytest.fixture(scope="module")
def split():
    return phantom_several_findings(count=48, size=64)


def test_each_study_has_two_or_three_findings_apart_from_each_other(split):
    assert isinstance(split, PairSplit)
    assert set(split.modalities) == set(MODALITIES)
    counts = [len(study.boxes) for study in split.studies]
    assert set(counts) == {2, 3}
    for study in split.studies:
        names = [box.finding for box in study.boxes]
        assert len(set(names)) == len(names)
        assert sorted(names) == sorted(name for name, shown in zip(FINDING_NAMES, study.labels, strict=True) if shown)
        assert all(name in study.text.lower() for name in names)
        assert len(study.text.replace(".", " .").replace(",", " ,").split()) <= 46  # the tiny preset reads 48 tokens
        for a, b in combinations(study.boxes, 2):
            assert a.x1 <= b.x0 or b.x1 <= a.x0 or a.y1 <= b.y0 or b.y1 <= a.y0


def test_outside_the_boxes_a_picture_is_that_of_the_patient_without_a_finding(split):
    patients = draw_patients(0, "test", len(split), Purpose.PAIR_GROUPS)
    for index, study in enumerate(split.studies):
        streams = Streams(
            stream(0, "test", Purpose.PAIR_ANATOMY, int(patients[index])),
            stream(0, "test", Purpose.PAIR_ACQUISITION, index),
            np.random.default_rng(0),
        )
        plain = DRAWERS[study.modality](None, None, streams, 64).image.astype(int)
        change = np.abs(study.image.astype(int) - plain)
        inside = np.zeros((64, 64), bool)
        for box in study.boxes:
            part = (slice(int(box.y0), int(box.y1)), slice(int(box.x0), int(box.x1)))
            assert change[part].max() > 8
            inside[part] = True
        assert change[inside].sum() > 0.9 * change.sum()


def test_the_same_arguments_draw_the_same_studies(split):
    again = phantom_several_findings(count=3, size=64)
    for one, other in zip(again.studies, split.studies, strict=False):
        assert (one.text, one.boxes, one.id) == (other.text, other.boxes, other.id)
        assert np.array_equal(one.image, other.image)
    assert len({study.id for study in split.studies} | set(phantom_modalities_source(test=8).test.ids)) == 56


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count: expected a whole number of at least 1, got 0"),
        ({"size": 32}, "size: expected a whole number of at least 64, got 32"),
        ({"split": "all"}, "split: expected one of train, val, test, got 'all'"),
    ],
)
def test_several_findings_refuse(options, message):
    with pytest.raises(ValueError, match=message):
        phantom_several_findings(**options)
