"""Labelled sets of DICOM files without preamble, as old programs wrote them."""

import numpy as np
import pytest

from recipes.data.evaluation.sets import open_evaluation_set, set_options
from recipes.medmoe.data.labelled_sets import parse_options
from tests.recipes.data.dicom_files import image_dataset

SHADES = {"a": 10, "b": 200}


@pytest.fixture
def old(tmp_path, table):
    """A function that writes the two files and a table of them."""

    def write(folder, csv, header, rows):
        (tmp_path / folder).mkdir(exist_ok=True)
        for name, shade in SHADES.items():
            data = image_dataset(np.full((4, 6), shade, np.uint8))
            data.save_as(tmp_path / folder / f"{name}.dcm", implicit_vr=True, little_endian=True)
        return table(tmp_path / csv, header, rows)

    return write


def check(name, root):
    with pytest.raises(ValueError, match=r"no DICOM preamble.*for labelled sets --options force_dicom=True"):
        open_evaluation_set(name, root).splits["test"][0]
    forced = open_evaluation_set(name, root, **parse_options(["force_dicom=True"]))
    shown = sorted(study.image[0, 0] for split in forced.splits.values() for study in split)
    assert shown == sorted(SHADES.values())


def test_a_table(old):
    csv = old("images", "mine.csv", ["image", "label"], [["images/a.dcm", "x"], ["images/b.dcm", "y"]])
    check("csv", csv)


@pytest.mark.parametrize("name", ["thyroid", "busi"])
def test_a_table_of_the_benchmark(old, name):
    rows = [["images/a.dcm", "benign"], ["images/b.dcm", "malignant"]]
    check(name, old("images", "test.csv", ["filename", "label"], rows))


def test_a_table_of_knees(old):
    check("acl", old("images", "test.csv", ["filename", "label"], [["images/a.dcm", "yes"], ["images/b.dcm", "no"]]))


def test_rsna(old, tmp_path):
    header = ["patientId", "x", "y", "width", "height", "Target"]
    rows = [["a", "", "", "", "", "0"], ["b", "1", "1", "2", "2", "1"]]
    old("stage_2_train_images", "stage_2_train_labels.csv", header, rows)
    forced = open_evaluation_set("rsna", tmp_path, splits="test", force_dicom=True)
    assert sorted(study.image[0, 0] for study in forced.splits["test"]) == sorted(SHADES.values())


def test_the_sets_that_may_hold_dicom_files_take_the_option():
    for name in ("csv", "rsna", "chexpert5x200", "thyroid", "busi", "acl", "meniscus"):
        assert "force_dicom" in set_options(name)
    for name in ("breastmnist", "medimeta-axial"):
        assert "force_dicom" not in set_options(name)
