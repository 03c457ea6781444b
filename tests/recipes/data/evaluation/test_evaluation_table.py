import numpy as np
import pytest

from recipes.data.evaluation.any_table import csv_set

HEADER = ["image", "label", "modality", "split", "patient", "note"]
ROWS = [
    ["a.png", "mass", "ct", "train", "p1", "seen"],
    ["b.png", "none", "ct", "val", "p2", ""],
    ["c.png", "mass", "xray", "test", "p3", "clear"],
    ["d.png", "none", "xray", "test", "p3", ""],
    ["e.png", "cyst", "", "test", "p4", ""],
]


@pytest.fixture
def csv(tmp_path, picture, table):
    for place, row in enumerate(ROWS):
        picture(tmp_path / row[0], shade=place)
    return table(tmp_path / "mine.csv", HEADER, ROWS)


def test_all_rows_are_for_test(csv):
    result = csv_set(csv)
    assert (result.name, result.task, result.classes) == ("mine", "multi-class", ("cyst", "mass", "none"))
    assert (result.modality, result.prompts, list(result.splits)) == (None, None, ["test"])
    assert result.splits["test"].labels.argmax(1).tolist() == [1, 2, 1, 2, 0]
    assert result.splits["test"][4].image[0, 0] == 4
    assert result.notes == ("no group column: every image is its own group, so a patient may lie in two splits",)


def test_columns_of_splits_groups_texts_and_modalities(csv):
    result = csv_set(
        csv,
        split_column="split",
        group_column="patient",
        text_column="note",
        modality_column="modality",
        classes=["none", "mass", "cyst"],
        prompts="p",
        name="other",
    )
    assert {name: split.ids for name, split in result.splits.items()} == {
        "train": ("a.png",),
        "val": ("b.png",),
        "test": ("c.png", "d.png", "e.png"),
    }
    test = result.splits["test"]
    assert (test.groups, test.texts) == (("p3", "p3", "p4"), ("clear", None, None))
    assert test.modalities == ("xray", "xray", None)
    assert test[0].modality == "xray"
    assert (result.name, result.prompts, result.modality, result.notes) == ("other", "p", None, ())
    assert test.labels.argmax(1).tolist() == [1, 0, 2]


def test_rows_may_be_chosen(csv):
    result = csv_set(csv, only=["modality=xray", "split = test"], modality_column="modality")
    assert result.splits["test"].ids == ("c.png", "d.png")
    assert (result.classes, result.modality) == (("mass", "none"), "xray")
    assert result.notes[:2] == ("only rows with modality=xray", "only rows with split = test")
    with pytest.raises(ValueError, match=r"only: no row has modality=mri; 'modality' holds \['', 'ct', 'xray'\]"):
        csv_set(csv, only=["modality=mri"])
    with pytest.raises(ValueError, match="only: a condition must be column=value, got 'modality'"):
        csv_set(csv, only=["modality"])


def test_splits_may_be_drawn_by_group(csv):
    result = csv_set(csv, splits="draw", group_column="patient", fractions=(0.4, 0.3, 0.3), modality="ct")
    assert set(result.splits) == {"train", "val", "test"}
    assert sum("p3" in split.groups for split in result.splits.values()) == 1
    assert result.modality == "ct"


def test_several_labels_in_a_cell(csv, table):
    table(csv, HEADER[:2], [["a.png", "mass|cyst"], ["b.png", "none"]])
    result = csv_set(csv, label_separator="|", negative_label="none")
    assert (result.task, result.classes) == ("multi-label", ("cyst", "mass"))
    np.testing.assert_array_equal(result.splits["test"].labels, [[1, 1], [0, 0]])


def test_refuses_damage(csv, table):
    with pytest.raises(ValueError, match=r"mine\.csv: lacks the column 'diagnosis'; it has"):
        csv_set(csv, label_column="diagnosis")
    with pytest.raises(ValueError, match=r"mine\.csv: lacks the column 'scanner'"):
        csv_set(csv, only=["scanner=1"])
    with pytest.raises(ValueError, match=r"column 'label': row 5: 'cyst' is none of the classes \['mass', 'none'\]"):
        csv_set(csv, classes=["mass", "none"])
    with pytest.raises(ValueError, match="give modality or modality_column, got 'ct' and 'modality'"):
        csv_set(csv, modality="ct", modality_column="modality")
    with pytest.raises(ValueError, match=r"splits, seed: .*mine\.csv names the split of each row, .* Leave it out"):
        csv_set(csv, split_column="split", splits="draw", seed=3)
    with pytest.raises(ValueError, match=r"seed: splits='test' draws nothing, which has no use for it"):
        csv_set(csv, seed=3)
    with pytest.raises(ValueError, match=r"csv file '.*no\.csv' does not exist"):
        csv_set(csv.parent / "no.csv")
    table(csv, HEADER, [*ROWS, ["f.png", "mass", "ct", "test", "p1", ""]])
    with pytest.raises(ValueError, match=r"mine\.csv: 1 of 6 images are missing or empty: .*f\.png"):
        csv_set(csv)


def test_refuses_groups_that_cross_and_splits_without_test(csv, table):
    rows = [[*row[:4], "p1", ""] if row[0] == "e.png" else row for row in ROWS]
    table(csv, HEADER, rows)
    with pytest.raises(ValueError, match=r"mine \(.*\): groups must not cross splits.*'p1' \(train and test\)"):
        csv_set(csv, split_column="split", group_column="patient")
    table(csv, HEADER, ROWS[:2])
    with pytest.raises(ValueError, match="the test split of mine holds no image"):
        csv_set(csv, split_column="split")
    table(csv, HEADER, [[*ROWS[0][:3], "dev", "p1", ""], *ROWS[1:]])
    with pytest.raises(ValueError, match="column 'split', row 1: a split must be one of"):
        csv_set(csv, split_column="split")
