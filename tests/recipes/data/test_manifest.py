import pickle

import numpy as np
import pytest
from PIL import Image

from recipes.data.studies import StudySplit
from recipes.data.tables.studies import manifest_source

HEADER = ["image", "text", "split", "group", "Edema", "Mass", "label"]
ROWS = [
    ["a.png", "clear lungs", "train", "p1", "0", "0", "none"],
    ["b.png", "", "train", "p1", "1", "-1", "mass"],
    ["c.png", "nan", "Valid", "p2", "", "1", "none"],
    ["sub/d.png", ' a "word", two ', "TEST", "p3", "1.0", "0", "mass"],
    ["e.png", "N/A", "test", "p4", "0", "1", "none"],
]
COLUMNS = {"label_columns": ["Edema", "Mass"], "group_column": "group"}


def quoted(cell):
    return '"' + cell.replace('"', '""') + '"'


@pytest.fixture
def folder(tmp_path):
    """A folder of five images of different grey, without a csv."""
    (tmp_path / "sub").mkdir()
    for shade, row in enumerate(ROWS):
        Image.fromarray(np.full((4, 6), 10 * shade, np.uint8)).save(tmp_path / row[0])
    return tmp_path


def write(folder, rows=ROWS, header=HEADER):
    csv = folder / "set.csv"
    csv.write_text("\n".join(",".join(map(quoted, row)) for row in [header, *rows]) + "\n")
    return csv


def changed(row, column, value):
    """Returns the rows with one cell replaced."""
    rows = [list(cells) for cells in ROWS]
    rows[row][HEADER.index(column)] = value
    return rows


def test_reads_labels_texts_groups_and_images(folder):
    source = manifest_source(write(folder), **COLUMNS)
    assert (source.name, source.task, source.classes, source.notes) == ("set", "multi-label", ("Edema", "Mass"), ())
    np.testing.assert_array_equal(source.train.labels, [[0, 0], [1, np.nan]])
    np.testing.assert_array_equal(source.val.labels, [[np.nan, 1]])
    assert source.train.texts == ("clear lungs", None)
    assert source.val.texts == (None,)
    assert source.test.texts == ('a "word", two', "N/A")
    assert source.test.groups == ("p3", "p4")
    study = source.test[0]
    assert (study.id, study.group, study.text) == ("sub/d.png", "p3", 'a "word", two')
    np.testing.assert_array_equal(study.image, np.full((4, 6), 30))
    np.testing.assert_array_equal(study.labels, [1, 0])


def test_further_columns_are_kept_for_subgroups(folder):
    source = manifest_source(write(folder), **COLUMNS, attribute_columns=("label", "group"))
    assert dict(source.train.attributes) == {"label": ("none", "mass"), "group": ("p1", "p1")}
    assert dict(source.test.attributes) == {"label": ("mass", "none"), "group": ("p3", "p4")}
    with pytest.raises(ValueError, match="lacks the column 'sex'"):
        manifest_source(write(folder), **COLUMNS, attribute_columns=("sex",))


def test_a_column_may_name_modalities(folder):
    source = manifest_source(write(folder), **COLUMNS, modality_column="label")
    assert (source.train.modalities, source.train[1].modality) == (("none", "mass"), "mass")
    source = manifest_source(write(folder), **COLUMNS, modality_column="text")
    assert source.train.modalities == ("clear lungs", None)
    assert manifest_source(write(folder), **COLUMNS).train[0].modality is None


def test_a_split_is_a_sequence_of_its_own(folder):
    source = manifest_source(write(folder), **COLUMNS)
    for _, split in source.splits():
        assert isinstance(split, StudySplit)
        assert len(list(split)) == len(split) == len(split.labels)
        assert split.labels.dtype == np.float32
    study = source.test[np.int64(-1)]
    study.labels[:] = 7
    study.image[:] = 7
    np.testing.assert_array_equal(source.test[1].labels, [0, 1])
    np.testing.assert_array_equal(source.test[1].image, np.full((4, 6), 40))
    with pytest.raises(IndexError):
        source.test[2]
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again.val[0].image, source.val[0].image)


def test_images_are_read_when_asked_for(folder):
    source = manifest_source(write(folder), **COLUMNS)
    (folder / "a.png").write_bytes(b"damaged")
    assert source.train[1].id == "b.png"
    with pytest.raises(ValueError, match=r"cannot read the image '.*a\.png'"):
        source.train[0]


def test_one_column_of_names(folder):
    source = manifest_source(write(folder), label_column="label", text_column=None, name="mine")
    assert (source.name, source.task, source.classes) == ("mine", "multi-class", ("mass", "none"))
    np.testing.assert_array_equal(source.train.labels, [[0, 1], [1, 0]])
    assert source.train.texts == (None, None)


def test_a_negative_label_that_no_row_has_is_noted(folder):
    columns = {"label_column": "label", "group_column": "group"}
    assert manifest_source(write(folder), negative_label="none", **columns).notes == ()
    source = manifest_source(write(folder), negative_label="None", **columns)
    assert source.classes == ("mass", "none")
    assert source.notes == ("no cell of column 'label' is 'None', which stands for no class (negative_label)",)


def test_without_a_group_column_images_are_their_own_groups_and_a_note_says_so(folder):
    source = manifest_source(write(folder), label_column="label")
    assert source.test.groups == ("sub/d.png", "e.png")
    assert any("every image is its own group" in note for note in source.notes)


def test_policies_and_names_to_show_reach_the_labels(folder):
    source = manifest_source(write(folder), **COLUMNS, uncertain="ones", blank="zeros", classes=["oedema", "mass"])
    assert source.classes == ("oedema", "mass")
    np.testing.assert_array_equal(source.train.labels, [[0, 0], [1, 1]])
    np.testing.assert_array_equal(source.val.labels, [[0, 1]])


def test_negative_label_and_separator(folder):
    rows = [[*row[:-1], value] for row, value in zip(ROWS, ["a;b", "a", "none", "b", "none"], strict=True)]
    source = manifest_source(write(folder, rows), label_column="label", label_separator=";", negative_label="none")
    assert (source.task, source.classes) == ("multi-label", ("a", "b"))
    np.testing.assert_array_equal(source.train.labels, [[1, 1], [1, 0]])
    np.testing.assert_array_equal(source.val.labels, [[0, 0]])


def test_draws_splits_by_group_when_there_is_no_split_column(folder):
    rows = changed(4, "group", "p1")
    source = manifest_source(write(folder, rows), **COLUMNS, split_column=None, seed=1, fractions=(0.6, 0.2, 0.2))
    assert sorted(group for _, split in source.splits() for group in set(split.groups)) == ["p1", "p2", "p3"]
    assert "splits drawn by group with seed 1 and fractions (0.6, 0.2, 0.2)" in source.notes
    again = manifest_source(write(folder, rows[::-1]), **COLUMNS, split_column=None, seed=1, fractions=(0.6, 0.2, 0.2))
    for (_, one), (_, other) in zip(source.splits(), again.splits(), strict=True):
        assert set(one.ids) == set(other.ids)


def test_refuses_groups_that_cross(folder):
    csv = write(folder, changed(4, "group", "p1"))
    with pytest.raises(ValueError, match=r"set: groups must not cross splits.*'p1' \(train and test\)"):
        manifest_source(csv, **COLUMNS)


def test_images_may_lie_elsewhere(folder):
    (folder / "tables").mkdir()
    csv = write(folder).rename(folder / "tables" / "set.csv")
    assert len(manifest_source(csv, **COLUMNS, image_root=folder).train) == 2
    absolute = [[str(folder / row[0]), *row[1:]] for row in ROWS]
    (folder / "tables" / "set.csv").unlink()
    assert len(manifest_source(write(folder / "tables", absolute), **COLUMNS).train) == 2


def test_missing_and_empty_images_are_found_at_once(folder):
    csv = write(folder)
    (folder / "b.png").unlink()
    (folder / "e.png").write_bytes(b"")
    with pytest.raises(
        ValueError,
        match=r"2 of 5 images are missing or empty, .*: b\.png, e\.png\. Set image_root to .*on_bad_image='skip'",
    ):
        manifest_source(csv, **COLUMNS)


def test_only_the_first_missing_images_are_listed(folder):
    rows = [[f"{i}.png", *ROWS[0][1:]] for i in range(7)]
    with pytest.raises(ValueError, match=r"7 of 7 images .*: 0\.png, 1\.png, 2\.png, 3\.png, 4\.png, \.\.\.\."):
        manifest_source(write(folder, rows), **COLUMNS)


def test_bad_images_are_skipped_and_counted(folder):
    data = (folder / "e.png").read_bytes()
    (folder / "e.png").write_bytes(data[: len(data) // 2])
    (folder / "a.png").unlink()
    source = manifest_source(write(folder), **COLUMNS, on_bad_image="skip")
    assert (source.train.ids, source.test.ids) == (("b.png",), ("sub/d.png",))
    np.testing.assert_array_equal(source.train.labels, [[1, np.nan]])
    assert source.notes == ("skipped 2 of 5 images that cannot be read: a.png, e.png",)


def test_nothing_to_skip_leaves_no_note(folder):
    assert manifest_source(write(folder), **COLUMNS, on_bad_image="skip").notes == ()


@pytest.mark.parametrize("split_column", ["split", None])
def test_skipping_every_image_is_an_error_that_says_why(folder, split_column):
    csv = write(folder)
    with pytest.raises(ValueError, match=r"train and val and test has none: .* after 5 unreadable .*does not exist"):
        manifest_source(csv, **COLUMNS, on_bad_image="skip", image_root=folder / "no", split_column=split_column)


@pytest.mark.parametrize(
    ("row", "column", "value", "message"),
    [
        (1, "image", "", r"set\.csv: column 'image', row 2 is blank"),
        (1, "group", " ", r"set\.csv: column 'group', row 2 is blank"),
        (1, "split", "dev", r"set\.csv: column 'split', row 2: a split must be one of .*got 'dev'"),
        (1, "split", "", r"row 2: a split must be one of"),
        (1, "Mass", "maybe", r"set\.csv: column 'Mass', row 2: a label must be 1, 0, -1 .*got 'maybe'"),
        (2, "split", "train", r"set\.csv: every split needs a study, but val has none: train 3, val 0, test 2"),
        (1, "image", "./a.png", r"rows 1 and 2 both list the image '.*a\.png': expected one row per image"),
        (4, "image", "a.png", r"rows 1 and 5 both list the image .*in different splits \(train and test\)"),
    ],
)
def test_refuses_bad_cells_by_row(folder, row, column, value, message):
    with pytest.raises(ValueError, match=message):
        manifest_source(write(folder, changed(row, column, value)), **COLUMNS)


def test_blank_names_are_refused_with_file_and_column(folder):
    with pytest.raises(ValueError, match=r"set\.csv: column 'label': row 3 is blank"):
        manifest_source(write(folder, changed(2, "label", "")), label_column="label")


@pytest.mark.parametrize("argument", ["image_column", "text_column", "modality_column", "split_column", "group_column"])
def test_a_column_the_csv_lacks(folder, argument):
    with pytest.raises(ValueError, match=r"set\.csv: lacks the column 'other'; it has \['image', 'text', 'split'"):
        manifest_source(write(folder), **(COLUMNS | {argument: "other"}))
    with pytest.raises(ValueError, match=r"lacks the column 'Oedema'; it has"):
        manifest_source(write(folder), label_columns=["Edema", "Oedema"])


def test_a_csv_without_rows(folder):
    with pytest.raises(ValueError, match=r"set\.csv: holds a header but no rows"):
        manifest_source(write(folder, []), **COLUMNS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give either label_columns .* or label_column"),
        ({"label_columns": ["Edema"], "label_column": "label"}, "give either label_columns .* or label_column"),
        ({"label_columns": "Edema"}, "label_columns must be a sequence of column names, got 'Edema'"),
        ({"label_columns": []}, r"label_columns must be a sequence of column names, got \[\]"),
        ({"label_columns": ["Mass", "Mass"]}, "label_columns must differ from each other"),
        ({"label_columns": ["Mass"], "negative_label": "x"}, "negative_label is for label_column, got 'x'"),
        ({"label_columns": ["Mass"], "classes": ["a", "b"]}, "classes must give 1 different names for 1 label"),
        ({"label_column": "label", "uncertain": "ones"}, "uncertain is for label_columns, got 'ones'"),
        ({"label_column": "label", "task": "multi"}, "task must be one of 'multi-label', .*got 'multi'"),
        ({"label_columns": ["Mass"], "uncertain": "u"}, "uncertain must be one of 'ignore', .*got 'u'"),
        ({"label_columns": ["Mass"], "blank": "ones"}, "blank must be one of 'ignore', 'zeros', got 'ones'"),
        ({"label_columns": ["Mass"], "on_bad_image": "x"}, "on_bad_image must be one of 'error', 'skip', got 'x'"),
    ],
)
def test_refuses_arguments_that_contradict_each_other(folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        manifest_source(write(folder), **arguments)
