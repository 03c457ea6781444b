import numpy as np
import pytest

from recipes.data.evaluation.knee import knee_set

LABELS = {"train": {"0000": 1, "0001": 0, "0002": 0, "0003": 1}, "valid": {"1130": 0, "1131": 1}}


@pytest.fixture
def mrnet(tmp_path, table):
    """Volumes of 4 slices whose pixels tell plane and slice, and tables without headers."""
    for part, labels in LABELS.items():
        for tens, plane in enumerate(("axial", "coronal", "sagittal")):
            folder = tmp_path / part / plane
            folder.mkdir(parents=True)
            for exam in labels:
                volume = (10 * tens + np.arange(4, dtype=np.uint8))[:, None, None] * np.ones((1, 5, 5), np.uint8)
                np.save(folder / f"{exam}.npy", volume)
        table(tmp_path / f"{part}-acl.csv", None, labels.items())
        table(tmp_path / f"{part}-meniscus.csv", None, [(exam, 1 - label) for exam, label in labels.items()])
    return tmp_path


def test_one_slice_per_exam(mrnet):
    result = knee_set(mrnet, "acl", val_fraction=0.25, seed=3)
    assert (result.name, result.modality, result.prompts) == ("acl", "mri", "acl")
    assert {name: len(split) for name, split in result.splits.items()} == {"train": 3, "val": 1, "test": 2}
    test = result.splits["test"]
    assert test.ids == ("valid/1130", "valid/1131")
    assert test.groups == ("1130", "1131")
    np.testing.assert_array_equal(test.labels, [[1, 0], [0, 1]])
    np.testing.assert_array_equal(test[0].image, np.full((5, 5), 22))
    assert any("val is 0.25 of the training exams, drawn with seed 3" in note for note in result.notes)


def test_planes_slices_and_findings(mrnet):
    result = knee_set(mrnet, "meniscus", plane="coronal", position=0)
    np.testing.assert_array_equal(result.splits["test"].labels, [[0, 1], [1, 0]])
    assert result.splits["test"][0].image[0, 0] == 10
    assert knee_set(mrnet, "meniscus", plane="axial", position=1).splits["test"][0].image[0, 0] == 3


def test_the_first_exam_is_no_header(mrnet):
    result = knee_set(mrnet, "acl")
    exams = {group for name in ("train", "val") for group in result.splits[name].groups}
    assert exams == set(LABELS["train"])


def test_zeros_that_a_spreadsheet_stripped(mrnet, table):
    table(mrnet / "train-acl.csv", None, [(int(exam), label) for exam, label in LABELS["train"].items()])
    assert knee_set(mrnet, "acl").splits["train"][0].image[0, 0] == 22


def test_without_training_exams_there_is_test_alone(mrnet):
    (mrnet / "train-acl.csv").unlink()
    assert list(knee_set(mrnet, "acl").splits) == ["test"]


@pytest.mark.parametrize("row", ["id,label", "0004", "0004,2", "a,1", "0004,1,1"])
def test_refuses_headers_and_other_rows(mrnet, row):
    csv = mrnet / "train-acl.csv"
    csv.write_text(csv.read_text() + row + "\n")
    with pytest.raises(
        ValueError, match=r"train-acl\.csv: row 5 must be an exam's number and 0 or 1, without a header"
    ):
        knee_set(mrnet, "acl")


def test_refuses_damage(mrnet):
    csv = mrnet / "train-acl.csv"
    csv.write_text(csv.read_text() + "0000,1\n")
    with pytest.raises(ValueError, match=r"train-acl\.csv: row 5 lists the exam 0000 a second time"):
        knee_set(mrnet, "acl")
    csv.write_text("\n")
    with pytest.raises(ValueError, match=r"train-acl\.csv: holds no rows"):
        knee_set(mrnet, "acl")
    csv.write_text("1130,1\n0000,0\n0001,0\n")
    np.save(mrnet / "train" / "sagittal" / "1130.npy", np.zeros((2, 3, 3), np.uint8))
    with pytest.raises(ValueError, match=r"groups must not cross splits.*'1130'"):
        knee_set(mrnet, "acl")
    (mrnet / "valid-acl.csv").unlink()
    with pytest.raises(ValueError, match=r"valid-acl\.csv' does not exist"):
        knee_set(mrnet, "acl")


def test_refuses_missing_and_damaged_volumes(mrnet):
    path = mrnet / "valid" / "sagittal" / "1131.npy"
    path.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"cannot read the volume '.*1131\.npy'"):
        knee_set(mrnet, "acl").splits["test"][1]
    result = knee_set(mrnet, "acl", on_bad_image="skip")
    assert result.splits["test"].ids == ("valid/1130",)
    path.unlink()
    with pytest.raises(ValueError, match=r"1 of 6 images are missing or empty: .*1131\.npy"):
        knee_set(mrnet, "acl")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"plane": "oblique"}, "plane must be one of 'axial', 'coronal', 'sagittal', got 'oblique'"),
        ({"position": 1.5}, "position must lie between 0 and 1, got 1.5"),
        ({"val_fraction": 1.0}, "val_fraction must lie between 0 and 1, got 1.0"),
    ],
)
def test_refuses_other_options(mrnet, options, message):
    with pytest.raises(ValueError, match=message):
        knee_set(mrnet, "acl", **options)


def test_refuses_options_of_the_benchmark(mrnet):
    with pytest.raises(ValueError, match=r"label_column: .* is MRNet's folder, which has no use for it\. Leave it out"):
        knee_set(mrnet, "acl", label_column="label")
