"""The benchmark's tables of path and one word: thyroid, breast, ACL and meniscus."""

import numpy as np
import pytest

from recipes.data.evaluation.busi import busi_set
from recipes.data.evaluation.knee import knee_set
from recipes.data.evaluation.thyroid import thyroid_set

KNEE = {"train": [("1", 5, "yes"), ("1", 6, "no")], "val": [("2", 5, "no")], "test": [("3", 4, "yes"), ("4", 4, "no")]}


@pytest.fixture
def knee(tmp_path, picture, table):
    """The ACL tables in their own folder, beside the images."""
    for split, rows in KNEE.items():
        cells = [(f"images/000{exam}_sagittal_{number}.000000.png", label) for exam, number, label in rows]
        for path, _ in cells:
            picture(tmp_path / path, shade=int(path[10]))
        table(tmp_path / "dataframe" / f"{split}_fold1.csv", ["filename", "acl_label"], cells)
    return tmp_path


def test_acl(knee):
    result = knee_set(knee, "acl")
    assert (result.name, result.classes, result.modality, result.prompts) == (
        "acl",
        ("no ACL tear", "ACL tear"),
        "mri",
        "acl",
    )
    assert {name: split.groups for name, split in result.splits.items()} == {
        "train": ("0001", "0001"),
        "val": ("0002",),
        "test": ("0003", "0004"),
    }
    np.testing.assert_array_equal(result.splits["test"].labels, [[0, 1], [1, 0]])
    study = result.splits["test"][1]
    assert (study.id, study.image[0, 0], study.modality) == ("images/0004_sagittal_4.000000.png", 4, "mri")
    assert result.notes == ("fold 1 of the benchmark's five",)


def test_one_table_is_all_test(knee):
    result = knee_set(knee / "dataframe" / "test_fold1.csv", "acl", image_root=knee)
    assert {name: len(split) for name, split in result.splits.items()} == {"test": 2}
    assert result.notes == ()


def test_the_test_table_may_stand_alone(knee):
    for split in ("train", "val"):
        (knee / "dataframe" / f"{split}_fold1.csv").unlink()
    assert list(knee_set(knee, "acl").splits) == ["test"]


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_missing_table_is_named(knee, split):
    (knee / "dataframe" / f"{split}_fold1.csv").unlink()
    with pytest.raises(ValueError, match=rf"lacks the table {split}_fold1\.csv, though .* is there"):
        knee_set(knee, "acl")


def test_refuses_an_exam_in_two_splits(knee, table):
    table(
        knee / "dataframe" / "val_fold1.csv", ["filename", "acl_label"], [("images/0004_sagittal_4.000000.png", "no")]
    )
    with pytest.raises(ValueError, match=r"is listed twice \(val and test\)"):
        knee_set(knee, "acl")


def test_refuses_slices_of_one_exam_in_two_splits(knee, table, picture):
    picture(knee / "images/0004_sagittal_9.000000.png")
    table(
        knee / "dataframe" / "val_fold1.csv", ["filename", "acl_label"], [("images/0004_sagittal_9.000000.png", "no")]
    )
    with pytest.raises(ValueError, match=r"acl \(.*\): groups must not cross splits.*'0004' \(val and test\)"):
        knee_set(knee, "acl")


def test_refuses_missing_columns_words_and_images(knee, table):
    test = knee / "dataframe" / "test_fold1.csv"
    table(test, ["file_name", "acl_label"], [("x.png", "yes")])
    with pytest.raises(ValueError, match=r"test_fold1\.csv: lacks a column of images: expected one of .* it has"):
        knee_set(knee, "acl")
    table(test, ["filename", "tear"], [("x.png", "yes")])
    with pytest.raises(ValueError, match=r"test_fold1\.csv: lacks a column of labels"):
        knee_set(knee, "acl")
    with pytest.raises(ValueError, match=r"lacks the column 'rupture'"):
        knee_set(test, "acl", label_column="rupture")
    table(test, ["filename", "acl_label"], [("x.png", "maybe")])
    with pytest.raises(ValueError, match=r"column 'acl_label', row 1: a label must be one of no, yes.*got 'maybe'"):
        knee_set(knee, "acl")
    table(test, ["filename", "acl_label"], [("images/x.png", "yes")])
    with pytest.raises(ValueError, match=r"1 of 4 images are missing or empty: .*images/x\.png"):
        knee_set(knee, "acl")


def test_the_words_of_the_meniscus(tmp_path, picture, table):
    for exam in ("0011", "0012"):
        picture(tmp_path / "images" / f"{exam}_sagittal_27.000000.png")
    rows = [("images/0011_sagittal_27.000000.png", "n"), ("images/0012_sagittal_27.000000.png", "p")]
    table(tmp_path / "meniscus_test_fold2.csv", ["img_dir", "label"], rows)
    result = knee_set(tmp_path, "meniscus", fold=2)
    assert (result.classes, result.prompts) == (("no meniscal tear", "meniscal tear"), "meniscus")
    np.testing.assert_array_equal(result.splits["test"].labels, [[1, 0], [0, 1]])
    with pytest.raises(
        ValueError, match=r"folder with meniscus_test_fold1\.csv, or MRNet's folder with valid-meniscus"
    ):
        knee_set(tmp_path, "meniscus")
    with pytest.raises(ValueError, match="finding must be one of 'acl', 'meniscus', got 'abnormal'"):
        knee_set(tmp_path, "abnormal")


def test_thyroid(tmp_path, picture, table):
    for name in ("314_1", "130_1", "130_2"):
        picture(tmp_path / "images" / f"{name}.jpg")
    rows = [("images/314_1.jpg", "malignant"), ("images/130_1.jpg", "benign"), ("images/130_2.jpg", "benign")]
    csv = table(tmp_path / "thyroid_test_fold1.csv", ["img_dir", "label"], rows)
    for root in (tmp_path, csv):
        test = thyroid_set(root).splits["test"]
        assert test.groups == ("314", "130", "130")
        np.testing.assert_array_equal(test.labels, [[0, 1], [1, 0], [1, 0]])


def test_breast_counts_normal_as_benign_and_refuses_masks(tmp_path, picture, table):
    for name in ("benign (17).png", "normal (89).png", "malignant (2).png", "malignant (2)_mask.png"):
        picture(tmp_path / "images" / name)
    rows = [("images/benign (17).png", "benign"), ("images/normal (89).png", "benign")]
    rows.append(("images/malignant (2).png", "malignant"))
    csv = table(tmp_path / "breast_test_fold1.csv", ["filename", "label"], rows)
    result = busi_set(tmp_path)
    assert (result.classes, result.prompts) == (("benign", "malignant"), "busi")
    assert result.splits["test"].labels.argmax(1).tolist() == [0, 0, 1]
    assert result.splits["test"].groups[0] == "benign (17)"
    assert any("normal breasts count as benign" in note for note in result.notes)
    table(csv, ["filename", "label"], [*rows, ("images/malignant (2)_mask.png", "malignant")])
    with pytest.raises(ValueError, match=r"breast_test_fold1\.csv: row 4 lists the mask '.*_mask\.png' as an image"):
        busi_set(tmp_path)


def test_refuses_options_of_another_layout(knee):
    with pytest.raises(ValueError, match=r"plane, seed: .* is of the benchmark's layout, which has no use for it"):
        knee_set(knee, "acl", plane="axial", seed=1)
