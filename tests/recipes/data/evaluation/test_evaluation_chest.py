import numpy as np
import pytest

from recipes.data.evaluation.chexpert5x200 import CLASSES, chexpert_5x200
from recipes.data.evaluation.rsna import rsna_pneumonia

HEADER = ["", "imgpath", "Sex", "Age", "Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion"]
HEADER += ["Report Impression"]
STUDY = "CheXpert-v1.0-small/train/patient{}/study1/view1_frontal.jpg"


@pytest.fixture
def chexpert(tmp_path, picture, table):
    """Five images, one per finding; columns in another order than the classes, as in the real table."""
    rows = []
    for place in range(5):
        path = STUDY.format(38610 + place)
        picture(tmp_path / path, shade=place)
        rows.append(
            [place, path, "Male", 26, *(f"{float(place == column)}" for column in range(5)), f"impression {place}"]
        )
    rows[0][5], rows[0][6] = "-1.0", ""
    return tmp_path, lambda rows=rows, header=HEADER: table(tmp_path / "chexpert-5x200.csv", header, rows), rows


def test_chexpert(chexpert):
    root, write, _ = chexpert
    write()
    result = chexpert_5x200(root)
    assert result.classes == CLASSES == ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
    assert (result.name, result.task, result.modality, result.prompts) == (
        "chexpert5x200",
        "multi-class",
        "xray",
        "chexpert5x200",
    )
    assert list(result.splits) == ["test"]
    test = result.splits["test"]
    assert [result.classes[i] for i in test.labels.argmax(1)] == [
        "Cardiomegaly",
        "Edema",
        "Consolidation",
        "Atelectasis",
        "Pleural Effusion",
    ]
    np.testing.assert_array_equal(test.labels.sum(1), 1)
    assert test.groups[0] == "patient38610"
    assert (test[3].text, test[3].image[0, 0]) == ("impression 3", 3)
    assert result.notes == ("differs from the published set: [1, 1, 1, 1, 1] images, not 200 each",)


def test_chexpert_by_the_path_of_its_table(chexpert, tmp_path):
    root, write, _ = chexpert
    moved = write().rename(root.parent / f"{root.name}.csv")
    assert chexpert_5x200(moved, image_root=root).splits["test"][0].image[0, 0] == 0
    with pytest.raises(ValueError, match=r"holds none of chexpert-5x200\.csv, chexpert_5x200\.csv"):
        chexpert_5x200(tmp_path)


@pytest.mark.parametrize(("cells", "present"), [("1.0", r"\['Cardiomegaly', 'Edema'\]"), (None, "none")])
def test_chexpert_refuses_rows_that_are_not_exclusive(chexpert, cells, present):
    root, write, rows = chexpert
    rows[1][4], rows[1][5] = ("1.0", "1.0") if cells else ("0.0", "0.0")
    write(rows)
    with pytest.raises(ValueError, match=rf"csv: row 2 \(.*38611.*\) has {present} of the five findings"):
        chexpert_5x200(root)


def test_chexpert_refuses_damage(chexpert):
    root, write, rows = chexpert
    write([row[:-1] for row in rows], HEADER[:-1])
    with pytest.raises(ValueError, match=r"chexpert-5x200\.csv: lacks the column 'Report Impression'; it has"):
        chexpert_5x200(root)
    write(header=["", "picture", *HEADER[2:]])
    with pytest.raises(ValueError, match=r"chexpert-5x200\.csv: lacks a column of images: expected one of"):
        chexpert_5x200(root)
    assert len(chexpert_5x200(root, image_column="picture").splits["test"]) == 5
    write([*rows[:4], [*rows[4][:4], "2", *rows[4][5:]]])
    with pytest.raises(ValueError, match="column 'Cardiomegaly', row 5: a label must be 1, 0, -1"):
        chexpert_5x200(root)
    write()
    (root / STUDY.format(38612)).unlink()
    with pytest.raises(ValueError, match=r"1 of 5 images are missing or empty: .*patient38612"):
        chexpert_5x200(root)


def test_chexpert_paths_without_a_patient_are_their_own_groups(chexpert, picture):
    root, write, rows = chexpert
    picture(root / "elsewhere.png")
    rows[2][1] = "elsewhere.png"
    write(rows)
    assert chexpert_5x200(root).splits["test"].groups[2] == "elsewhere.png"


BOXES = ["patientId", "x", "y", "width", "height", "Target"]
ROWS = [["a", "", "", "", "", 0], ["b", 1.0, 2.0, 3.0, 2.5, 1], ["b", 0, 0, 1, 1, 1], ["c", "", "", "", "", 0]]


@pytest.fixture
def rsna(tmp_path, table):
    for name in "abc":
        path = tmp_path / "stage_2_train_images" / f"{name}.dcm"
        path.parent.mkdir(exist_ok=True)
        write_dicom(path, ord(name))
    return tmp_path, lambda rows=ROWS, header=BOXES: table(tmp_path / "stage_2_train_labels.csv", header, rows)


def write_dicom(path, shade):
    """Writes an 8-bit radiograph of 4 by 5 pixels."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.Rows, data.Columns, data.SamplesPerPixel = 4, 5, 1
    data.PhotometricInterpretation, data.PixelRepresentation = "MONOCHROME2", 0
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit = 7
    data.PixelData = np.full((4, 5), shade, np.uint8).tobytes()
    data.save_as(path, enforce_file_format=True)


def test_rsna_rows_are_boxes(rsna):
    root, write = rsna
    write()
    result = rsna_pneumonia(root, splits="test")
    assert (result.name, result.classes, result.modality, result.prompts) == (
        "rsna",
        ("normal", "pneumonia"),
        "xray",
        "rsna",
    )
    test = result.splits["test"]
    assert test.ids == test.groups == ("a", "b", "c")
    np.testing.assert_array_equal(test.labels, [[1, 0], [0, 1], [1, 0]])
    assert test[1].boxes == (("pneumonia", 1, 2, 4, 4.5), ("pneumonia", 0, 0, 1, 1))
    assert test[0].boxes == ()
    np.testing.assert_array_equal(test[2].image, np.full((4, 5), ord("c")))
    assert any("other findings" in note for note in result.notes)


def test_rsna_splits_are_drawn_and_noted(rsna):
    root, write = rsna
    write()
    result = rsna_pneumonia(root, seed=4, fractions=(0.4, 0.3, 0.3))
    assert sorted(split.ids for split in result.splits.values()) == [("a",), ("b",), ("c",)]
    assert result.notes[-1] == "splits drawn by group with seed 4 and fractions (0.4, 0.3, 0.3)"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["a", 1, 2, 3, 4, 0]], r"row 1 \(a\): Target is 0, but there is a box"),
        ([["a", "", "", "", "", 1]], r"row 1 \(a\): a box needs four numbers .*'height'"),
        ([["a", 1, 2, 0, 4, 1]], r"row 1 \(a\): a box needs a width and a height above 0"),
        ([["a", "nan", 2, 1, 4, 1]], "a box needs a width"),
        ([["a", "", "", "", "", 2]], "column 'Target' must be 0 or 1, got '2'"),
        ([["a", "", "", "", "", 0], ["a", 1, 2, 3, 4, 1]], r"row 2 \(a\): Target is 1, but an earlier row .* has 0"),
        ([["a", 1, 2, 3, 4, 1], ["a", "", "", "", "", 0]], r"row 2 \(a\): Target is 0, but an earlier row lists"),
        ([["", 1, 2, 3, 4, 1]], "column 'patientId', row 1 is blank"),
        ([["d", 1, 2, 3, 4, 1]], r"1 of 1 images are missing or empty: .*d\.dcm"),
    ],
)
def test_rsna_refuses_damage(rsna, rows, message):
    root, write = rsna
    write(rows)
    with pytest.raises(ValueError, match=message):
        rsna_pneumonia(root, splits="test")


def test_rsna_refuses_missing_columns_tables_and_damaged_images(rsna, tmp_path):
    root, write = rsna
    with pytest.raises(ValueError, match=r"stage_2_train_labels\.csv' does not exist"):
        rsna_pneumonia(root)
    write([row[:-1] for row in ROWS], BOXES[:-1])
    with pytest.raises(ValueError, match=r"stage_2_train_labels\.csv: lacks the column 'Target'"):
        rsna_pneumonia(root)
    write()
    (root / "stage_2_train_images" / "b.dcm").write_bytes(b"no DICOM")
    with pytest.raises(ValueError, match=r"cannot read the image '.*b\.dcm'"):
        rsna_pneumonia(root, splits="test").splits["test"][1]
