"""What is printed of the data before training."""

import numpy as np

from recipes.data.image_files import ImageFiles
from recipes.data.pairs import PairSource, PairStream
from recipes.data.studies import StudySource
from recipes.shared.data_summary import MOST_CLASSES, pair_summary, study_summary


def split(labels, groups, texts=None, modalities=None):
    n = len(groups)
    names = tuple(map(str, range(n)))
    return ImageFiles(
        names, names, ((),) * n, np.array(labels, np.float32), tuple(groups), tuple(texts or [None] * n),
        tuple(modalities or [None] * n),
    )  # fmt: skip


def source(train, val, test, classes=("Edema", "Mass"), **rest):
    return StudySource("set", "multi-label", classes, train, val, test, **rest)


def lines(text):
    return [" ".join(line.split()) for line in text.splitlines()]


def test_studies_patients_texts_and_positives_of_each_split():
    nan = np.nan
    data = source(
        split([[1, 0], [0, nan], [1, 0]], ["p1", "p1", "p2"]),
        split([[nan, nan]], ["p3"]),
        split([[0, 1], [1, 1]], ["p4", "p5"]),
        notes=("skipped 2 of 8 images that cannot be read: a.png",),
    )
    shown = lines(study_summary(data, {"train": ["a note", " ", None], "val": [None], "test": ["x", "y"]}))
    assert shown == [
        "data: set, multi-label, 6 studies",
        "train val test",
        "studies 3 1 2",
        "groups (patients) 2 1 2",
        "texts read 1 0 2",
        "positive: Edema 2 of 3 0 of 0 1 of 2",
        "positive: Mass 0 of 2 0 of 0 2 of 2",
        "note: skipped 2 of 8 images that cannot be read: a.png",
        "note: the training split lacks one side of a class, which cannot be learnt: Mass (positives)",
        "note: val: no study has a text, though training studies have",
    ]


def test_many_classes_are_cut_short():
    labels = np.tile([[1.0], [0.0]], MOST_CLASSES + 2)
    parts = [split(labels, ["a", "b"]) for _ in range(3)]
    shown = study_summary(
        source(*parts, classes=tuple(map(str, range(MOST_CLASSES + 2)))), dict.fromkeys(("train", "val", "test"), ())
    )
    assert shown.count("positive:") == MOST_CLASSES
    assert "and 2 more classes" in shown


class Stream(PairStream):
    def __len__(self):
        return 4

    def modality_of_each(self):
        return ["mri", None, "ct", "ct"]


def test_pairs_are_counted_by_modality_patients_and_texts_of_streams_are_not():
    part = split(np.zeros((3, 0)), ["a", "b", "b"], ["one", "two", "two"], ["ct", None, "ct"])
    shown = lines(pair_summary(PairSource("pairs", ("ct",), Stream(), part, part, notes=("a note",))))
    assert shown == [
        "data: pairs",
        "train val test",
        "pairs 4 3 3",
        "groups (patients) stream 2 2",
        "different texts stream 2 2",
        "modality: ct 2 2 2",
        "modality: mri 1 0 0",
        "modality: not known 1 1 1",
        "note: a note",
    ]
