import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recipes.data.pairs import PairSource, PairSplit
from recipes.data.tables.pairs import pair_manifest_source

HEADER = ["image", "text", "modality", "split", "group"]
ROWS = [
    ["a.png", "clear lungs", "xray", "train", "p1"],
    ["b.png", " a cyst ", " Ultrasound ", "train", "p1"],
    ["c.png", "a mass", "", "Valid", "p2"],
    ["sub/d.png", "clear lungs", "CT", "TEST", "p3"],
    ["e.png", "no mass", "nan", "test", "p4"],
]
REAL = os.environ.get("MOEKIT_REAL_DATA")


@pytest.fixture
def folder(tmp_path):
    """A folder of five images of different grey, without a csv."""
    (tmp_path / "sub").mkdir()
    for shade, row in enumerate(ROWS):
        Image.fromarray(np.full((4, 6), 10 * shade, np.uint8)).save(tmp_path / row[0])
    return tmp_path


def write(folder, rows=ROWS, header=HEADER):
    csv = folder / "pairs.csv"
    csv.write_text("\n".join(",".join(f'"{cell}"' for cell in row) for row in [header, *rows]) + "\n")
    return csv


def changed(row, column, value):
    """Returns the rows with one cell replaced."""
    rows = [list(cells) for cells in ROWS]
    rows[row][HEADER.index(column)] = value
    return rows


def read(folder, rows=ROWS, **options):
    return pair_manifest_source(write(folder, rows), **({"group_column": "group"} | options))


def test_reads_images_texts_modalities_and_groups_without_labels(folder):
    source = read(folder)
    assert isinstance(source, PairSource)
    assert isinstance(source.train, PairSplit)
    assert (source.name, source.modalities) == ("pairs", ("ct", "ultrasound", "xray"))
    assert source.notes == ("the modality of 2 of 5 pairs is not known",)
    assert source.train.texts == ("clear lungs", "a cyst")
    assert source.train.modalities == ("xray", "ultrasound")
    assert source.val.modalities == (None,)
    assert source.test.modalities == ("ct", None)
    study = source.test[0]
    assert (study.id, study.group, study.text, study.modality) == ("sub/d.png", "p3", "clear lungs", "ct")
    np.testing.assert_array_equal(study.image, np.full((4, 6), 30))
    assert study.labels.tolist() == []


def test_without_columns_of_modality_and_group(folder):
    source = read(folder, modality_column=None, group_column=None, name="mine")
    assert (source.name, source.modalities, source.train.modalities) == ("mine", (), (None, None))
    assert source.notes == ("no group column: every image is its own group, so a patient may lie in two splits",)


def test_a_modality_of_all_that_name_none(folder):
    source = read(folder, modality=" MRI ")
    assert source.val.modalities == ("mri",)
    assert source.test.modalities == ("ct", "mri")
    assert not [note for note in source.notes if "not known" in note]


def test_an_image_may_have_several_captions_in_its_split(folder):
    rows = [
        *ROWS,
        ["./a.png", "heart of normal size", "xray", "train", "p1"],
        ["a.png", "third", "XRAY", "train", "p1"],
    ]
    for options in ({}, {"group_column": None}):
        train = read(folder, rows, **options).train
        assert train.ids == ("a.png", "b.png", "a.png#2", "a.png#3")
        assert train.texts == ("clear lungs", "a cyst", "heart of normal size", "third")
        assert len(set(train.groups)) == (1 if not options else 2)
        np.testing.assert_array_equal(train[2].image, train[0].image)


def test_captions_of_one_image_stay_together_when_splits_are_drawn(folder):
    rows = [[name, f"caption {i}", "xray", "", ""] for name in "abce" for i in range(3)]
    rows = [[f"{row[0]}.png", *row[1:]] for row in rows]
    for seed in range(5):
        source = read(folder, rows, group_column=None, split_column=None, seed=seed, fractions=(0.4, 0.3, 0.3))
        images = [{study.partition("#")[0] for study in split.ids} for split in (source.train, source.val, source.test)]
        assert sum(map(len, images)) == len(set.union(*images)) == 4
    assert source.notes[0] == "splits drawn by group with seed 4 and fractions (0.4, 0.3, 0.3)"


def test_rows_without_a_text_are_refused_or_skipped_and_counted(folder):
    rows = changed(1, "text", " ")
    with pytest.raises(ValueError, match=r"pairs\.csv: column 'text', row 2 is blank, .*\(1 of 5 rows .*on_missing"):
        read(folder, rows)
    source = read(folder, rows, on_missing_text="skip")
    assert source.train.ids == ("a.png",)
    assert source.notes[0] == "skipped 1 of 5 rows that have no text: b.png"
    empty = [[row[0], "nan", *row[2:]] for row in ROWS]
    with pytest.raises(ValueError, match="column 'text' is blank in every row, but a pair needs a text"):
        read(folder, empty, on_missing_text="skip")


def test_bad_images_are_refused_or_skipped_and_counted(folder):
    (folder / "a.png").write_bytes(b"damaged")
    (folder / "e.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 5 images are missing or empty, looked for in .*: e\.png\. Set image_"):
        read(folder)
    source = read(folder, on_bad_image="skip")
    assert (source.train.ids, source.test.ids) == (("b.png",), ("sub/d.png",))
    assert source.notes[0] == "skipped 2 of 5 images that cannot be read: a.png, e.png"
    (folder / "e.png").write_bytes((folder / "b.png").read_bytes())
    with pytest.raises(ValueError, match=r"cannot read the image '.*a\.png': cannot identify"):
        read(folder).train[0]


def test_an_unreadable_image_among_captions_takes_them_all(folder):
    (folder / "a.png").write_bytes(b"damaged")
    rows = [*ROWS, ["a.png", "another", "xray", "train", "p1"]]
    assert read(folder, rows, on_bad_image="skip").train.ids == ("b.png",)


@pytest.mark.parametrize(
    ("row", "column", "value", "message"),
    [
        (4, "group", "p1", r"pairs: groups must not cross splits.*'p1' \(train and test\)"),
        (1, "split", "dev", r"pairs\.csv: column 'split', row 2: a split must be one of .*got 'dev'"),
        (1, "group", "", r"pairs\.csv: column 'group', row 2 is blank"),
        (1, "image", "", r"pairs\.csv: column 'image', row 2 is blank"),
        (
            1,
            "image",
            "a.png",
            r"rows 1 and 2 both list .*, with different modalities \('xray' and 'ultrasound'\)",
        ),
        (4, "image", "a.png", r"rows 1 and 5 both list the image .*in different splits \(train and test\)"),
        (2, "split", "train", r"every split needs a study, but val has none: train 3, val 0, test 2"),
    ],
)
def test_refuses_bad_cells_by_row(folder, row, column, value, message):
    with pytest.raises(ValueError, match=message):
        read(folder, changed(row, column, value))


@pytest.mark.parametrize(
    ("added", "message"),
    [
        (["a.png", "clear lungs", "xray", "train", "p1"], r"rows 1 and 6 list the same image .*with the same text"),
        (["a.png", "other", "xray", "train", "p9"], r"rows 1 and 6 both list .*in different groups \('p1' and 'p9'\)"),
    ],
)
def test_refuses_rows_of_one_image_that_disagree(folder, added, message):
    with pytest.raises(ValueError, match=message):
        read(folder, [*ROWS, added])


@pytest.mark.parametrize("argument", ["image_column", "text_column", "modality_column", "split_column", "group_column"])
def test_a_column_the_csv_lacks(folder, argument):
    with pytest.raises(ValueError, match=r"pairs\.csv: lacks the column 'other'; it has \['image', 'text', 'modality'"):
        read(folder, **{argument: "other"})


@pytest.mark.parametrize("argument", ["on_bad_image", "on_missing_text"])
def test_refuses_unknown_choices(folder, argument):
    with pytest.raises(ValueError, match=f"{argument} must be one of 'error', 'skip', got 'x'"):
        read(folder, **{argument: "x"})


@pytest.mark.skipif(not REAL, reason="MOEKIT_REAL_DATA, the folder of the real sets, is unset")
def test_the_real_manifest():
    source = pair_manifest_source(Path(REAL) / "multimodal_manifest.csv", group_column="group", on_bad_image="skip")
    assert source.modalities == ("ct", "fundus", "pathology", "ultrasound", "xray")
    assert source.notes == ()
    splits = (source.train, source.val, source.test)
    assert [len(split) for split in splits] == [670, 125, 184]
    counts = {name: sum(split.modalities.count(name) for split in splits) for name in source.modalities}
    assert counts == {"ct": 49, "fundus": 45, "pathology": 264, "ultrasound": 402, "xray": 219}
    colours = {study.modality: study.image.ndim for study in (source.test[i] for i in range(0, 184, 3))}
    assert colours["pathology"] == colours["fundus"] == 3
    assert colours["xray"] == 2


def test_a_column_that_holds_no_texts_is_named_in_the_notes(tmp_path):
    rows = ["image,label,report,split"]
    for row in range(30):
        Image.fromarray(np.full((8, 8), row, np.uint8)).save(tmp_path / f"{row}.png")
        split = ("train", "val", "test")[row % 3]
        rows.append(f"{row}.png,{('sick', 'healthy')[row % 2]},a long report on case {row} with many words,{split}")
    (tmp_path / "pairs.csv").write_text("\n".join(rows))
    read = {"modality_column": None}
    wrong = pair_manifest_source(tmp_path / "pairs.csv", text_column="label", **read).notes
    assert any(
        "column 'label' is read as the text, but seems to hold names or codes; columns that seem to hold texts: "
        "'report' (text_column)" in note
        for note in wrong
    )
    assert not any(
        "text_column" in note
        for note in pair_manifest_source(tmp_path / "pairs.csv", text_column="report", **read).notes
    )
    both = (
        (tmp_path / "pairs.csv")
        .read_text()
        .replace("label", "caption")
        .replace("sick", "a sick lung")
        .replace("healthy", "a healthy lung")
    )
    (tmp_path / "both.csv").write_text(both)
    notes = pair_manifest_source(tmp_path / "both.csv", text_column="report", **read).notes
    assert "the column 'report' is read as the text; 'caption' seem to hold texts too (text_column)" in notes
