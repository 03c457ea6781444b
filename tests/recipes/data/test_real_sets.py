"""The readers on real sets, which are not part of the repository: MOEKIT_REAL_DATA names their folder."""

import os
from pathlib import Path

import numpy as np
import pytest

from recipes.data.images.read import read_image
from recipes.data.medmnist.npz import medmnist_source
from recipes.data.tables.studies import manifest_source

ROOT = Path(os.environ.get("MOEKIT_REAL_DATA") or "unset")
pytestmark = pytest.mark.skipif(
    not os.environ.get("MOEKIT_REAL_DATA"), reason="MOEKIT_REAL_DATA, the folder of the real sets, is unset"
)
CHEST = ["COVID-19", "Pneumonia", "Viral", "Bacterial", "Fungal", "ARDS", "No Finding"]


def sizes(source):
    return [len(split) for _, split in source.splits()]


@pytest.fixture(scope="module")
def chest():
    return manifest_source(
        ROOT / "covid_cxr" / "metadata.csv",
        text_column="clinical_notes",
        label_columns=CHEST,
        group_column="patientid",
        on_bad_image="skip",
    )


def test_chest_radiographs(chest):
    labels = np.concatenate([split.labels for _, split in chest.splits()])
    np.testing.assert_array_equal(labels.sum(0), [256, 341, 263, 43, 16, 13, 15])
    assert sum(text is not None for _, split in chest.splits() for text in split.texts) == 268
    assert len({group for _, split in chest.splits() for group in split.groups}) == 162
    assert (chest.task, sum(sizes(chest)), chest.notes) == ("multi-label", 360, ())
    for study in chest.test:
        assert study.image.shape == (224, 224)
        assert study.image.std() > 5


def test_chest_radiographs_split_anew_by_patient():
    source = manifest_source(
        ROOT / "covid_cxr" / "metadata.csv",
        text_column="clinical_notes",
        label_columns=CHEST,
        group_column="patientid",
        split_column=None,
        seed=3,
    )
    np.testing.assert_allclose(np.array(sizes(source)) / 360, (0.7, 0.1, 0.2), atol=0.02)


def test_five_modalities():
    source = manifest_source(ROOT / "multimodal_manifest.csv", label_column="label", group_column="group")
    assert (source.task, len(source.classes), sizes(source)) == ("multi-class", 31, [670, 125, 184])
    for _, split in source.splits():
        np.testing.assert_array_equal(split.labels.sum(1), 1)
        assert None not in split.texts
    assert {study.image.ndim for study in source.test} == {2, 3}


def test_joined_findings_of_chestxray14(tmp_path):
    csv = ROOT / "nih_like" / "Data_Entry_2017_v2020_head.csv"
    columns = {"image_column": "Image Index", "label_column": "Finding Labels", "group_column": "Patient ID"}
    layout = {"text_column": None, "split_column": None, "negative_label": "No Finding"}
    with pytest.raises(ValueError, match=r"199 of 201 images are missing or empty, looked for in '.*images'"):
        manifest_source(csv, **columns, **layout, image_root=ROOT / "nih_like" / "images")
    with csv.open() as table:
        names = [line.split(",")[0] for line in table][1:]
    for name in names:
        (tmp_path / name).write_bytes(b"stands in for the radiograph")
    source = manifest_source(csv, **columns, **layout, image_root=tmp_path)
    assert source.task == "multi-label"
    assert "Pleural_Thickening" in source.classes
    assert "No Finding" not in source.classes
    labels = {study: row for _, split in source.splits() for study, row in zip(split.ids, split.labels, strict=True)}
    result = {source.classes[i] for i in np.flatnonzero(labels["00000001_001.png"])}
    assert result == {"Cardiomegaly", "Emphysema"}
    assert labels["00000002_000.png"].sum() == 0


def test_radiographs_of_chestxray14():
    for path in sorted((ROOT / "nih_like" / "images").iterdir()):
        image = read_image(path)
        assert image.shape == (512, 512)
        assert image.std() > 20


@pytest.mark.parametrize(
    ("name", "task", "classes", "counts", "shape"),
    [
        ("breastmnist", "binary-class", 2, [546, 78, 156], (28, 28)),
        ("pneumoniamnist", "binary-class", 2, [3882, 524, 624], (28, 28)),
        ("pathmnist_718", "multi-class", 9, [428, 143, 147], (28, 28, 3)),
        ("mednist6_64", "multi-class", 6, [3000, 600, 600], (64, 64)),
        ("retina_hrf_64", "multi-class", 3, [30, 6, 9], (64, 64, 3)),
    ],
)
def test_medmnist_files(name, task, classes, counts, shape):
    source = medmnist_source(ROOT / "medmnist_layout" / f"{name}.npz")
    assert (source.task, len(source.classes), sizes(source)) == (task, classes, counts)
    assert source.test[0].image.shape == shape
    assert (np.concatenate([split.labels for _, split in source.splits()]).sum(0) > 0).all()


def test_a_short_file_is_noted_and_a_whole_one_is_not():
    folder = ROOT / "medmnist_layout"
    assert len(medmnist_source("breastmnist", root=folder).notes) == 1
    short = medmnist_source("pneumoniamnist", root=folder)
    assert short.notes[1] == "differs from the official pneumoniamnist: train 3882 of 4708 images"


def test_a_file_without_training_images():
    with pytest.raises(ValueError, match="lacks train_images, train_labels, val_images, val_labels; it has"):
        medmnist_source(ROOT / "medmnist_layout" / "pathmnist_test10pct_asfound.npz")
