import h5py
import numpy as np
import pytest
import yaml

from recipes.data.evaluation.medimeta import medimeta_set

ORGANS = ["heart", "left lung", "right lung"]
LABELS = [0, 1, 2, 0, 1, 2]
SPLITS = {"train": [0, 1, 2], "val": [3], "test": [4, 5]}
VOLUMES = ["volume-0.nii"] * 3 + ["volume-1.nii"] + ["test-volume-0.nii"] * 2


@pytest.fixture
def organs(tmp_path, picture, table):
    """organs_axial with three organs, six images, and a second task of two labels."""
    root = tmp_path / "organs_axial"
    for index in range(6):
        picture(root / "images" / f"{index:06d}.tiff", shade=10 * index)
    (root / "task_labels").mkdir()
    np.save(root / "task_labels" / "organ label.npy", LABELS)
    np.save(root / "task_labels" / "two.npy", np.eye(2, dtype=int)[[0, 1, 0, 1, 0, 1]])
    (root / "splits").mkdir()
    for split, rows in SPLITS.items():
        (root / "splits" / f"{split}.txt").write_text("\n".join(f"images/{index:06d}.tiff" for index in rows))
    write_info(root)
    rows = [(f"images/{i:06d}.tiff", LABELS[i], volume) for i, volume in enumerate(VOLUMES)]
    table(root / "annotations.csv", ["filepath", "tasks/organ label", "original_filepath"], rows)
    return root


def write_info(root, **changes):
    tasks = [
        {"task_name": "organ label", "task_target": "MULTICLASS_CLASSIFICATION", "labels": dict(enumerate(ORGANS))},
        {"task_name": "two", "task_target": "MULTILABEL_CLASSIFICATION", "labels": {0: "a", 1: "b"}},
    ]
    info = {"id": "organs_axial", "name": "Axial Organ Slices", "domain": "Abdominal CT", "tasks": tasks}
    info["splits_num_samples"] = {split: len(rows) for split, rows in SPLITS.items()}
    (root / "info.yaml").write_text(yaml.safe_dump(info | changes))


def test_organs(organs):
    result = medimeta_set(organs, set_id="organs_axial", modality="ct", prompts="organs_axial")
    assert (result.name, result.task, result.classes) == ("organs_axial", "multi-class", tuple(ORGANS))
    assert (result.modality, result.prompts, result.notes) == ("ct", "organs_axial", ())
    assert {name: split.ids for name, split in result.splits.items()} == {
        "train": ("000000", "000001", "000002"),
        "val": ("000003",),
        "test": ("000004", "000005"),
    }
    np.testing.assert_array_equal(result.splits["test"].labels, [[0, 1, 0], [0, 0, 1]])
    assert result.splits["test"].groups == ("test-volume-0.nii",) * 2
    assert result.splits["test"][1].image[0, 0] == 50


def test_the_folder_above_serves_too(organs):
    assert len(medimeta_set(organs.parent, set_id="organs_axial").splits["train"]) == 3
    with pytest.raises(ValueError, match=r"info\.yaml: is of the set 'organs_axial', expected 'organs_coronal'"):
        medimeta_set(organs, set_id="organs_coronal")
    with pytest.raises(ValueError, match=r"info\.yaml' does not exist: expected the folder of a MedIMeta set"):
        medimeta_set(organs.parent)


def write_hdf5(root, count=6):
    with h5py.File(root / "images.hdf5", "w") as file:
        file["images"] = np.arange(count, dtype=np.uint8)[:, None, None] * np.ones((1, 4, 4), np.uint8)


def test_hdf5_where_there_are_no_files(organs):
    write_hdf5(organs)
    assert medimeta_set(organs).splits["test"][0].image[0, 0] == 40
    assert medimeta_set(organs, use_hdf5=True).splits["test"][0].image[0, 0] == 4
    for path in (organs / "images").iterdir():
        path.unlink()
    (organs / "images").rmdir()
    assert medimeta_set(organs).splits["test"][1].image[0, 0] == 5


def test_damaged_hdf5(organs):
    with pytest.raises(ValueError, match=r"images\.hdf5' does not exist"):
        medimeta_set(organs, use_hdf5=True)
    write_hdf5(organs, count=5)
    with pytest.raises(ValueError, match=r"images\.hdf5: 'images' has shape \(5, 4, 4\), expected \(6, H, W\)"):
        medimeta_set(organs, use_hdf5=True)
    (organs / "images.hdf5").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"cannot read the array 'images' of '.*images\.hdf5'"):
        medimeta_set(organs, use_hdf5=True)
    with h5py.File(organs / "images.hdf5", "w") as file:
        file["pictures"] = np.zeros((6, 4, 4), np.uint8)
    with pytest.raises(ValueError, match="cannot read the array 'images'"):
        medimeta_set(organs, use_hdf5=True)


def test_other_tasks(organs):
    result = medimeta_set(organs, label_task="two")
    assert (result.task, result.classes) == ("multi-label", ("a", "b"))
    np.testing.assert_array_equal(result.splits["test"].labels, [[1, 0], [0, 1]])
    with pytest.raises(ValueError, match=r"label_task must be one of \['organ label', 'two'\]"):
        medimeta_set(organs, label_task="three")


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_missing_split_file_is_named(organs, split):
    (organs / "splits" / f"{split}.txt").unlink()
    with pytest.raises(ValueError, match=rf"split file '.*{split}\.txt' does not exist"):
        medimeta_set(organs)


def test_a_split_that_should_be_empty_needs_no_file(organs):
    (organs / "splits" / "val.txt").unlink()
    write_info(organs, splits_num_samples={"train": 3, "val": 0, "test": 2})
    assert list(medimeta_set(organs).splits) == ["train", "test"]


@pytest.mark.parametrize("line", ["images/000006.tiff", "images/cover.tiff"])
def test_refuses_split_lines_that_name_no_image(organs, line):
    (organs / "splits" / "test.txt").write_text(f"images/000004.tiff\n{line}\n")
    with pytest.raises(ValueError, match=rf"test\.txt: line 2 must name an image .* below 6, got '{line}'"):
        medimeta_set(organs)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 3, 0, 1, 2], r"organ label\.npy: row 2 holds 3, expected 0 to 2"),
        ([0, 1, -1, 0, 1, 2], r"row 2 holds -1, expected 0 to 2"),
        ([0, 1, 0.5, 0, 1, 2], r"row 2 holds 0.5, expected 0 to 2"),
        ([[0], [1], [2], [0], [1], [2]], r"must hold numbers of shape \(N,\), got int64 of shape \(6, 1\)"),
        (["a", "b"], r"must hold numbers of shape \(N,\)"),
    ],
)
def test_refuses_labels_out_of_range(organs, labels, message):
    np.save(organs / "task_labels" / "organ label.npy", labels)
    with pytest.raises(ValueError, match=message):
        medimeta_set(organs)


def test_refuses_missing_and_damaged_labels(organs):
    path = organs / "task_labels" / "organ label.npy"
    path.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"cannot read the labels '.*organ label\.npy'"):
        medimeta_set(organs)
    path.unlink()
    with pytest.raises(ValueError, match=r"label file '.*organ label\.npy' does not exist"):
        medimeta_set(organs)


def test_refuses_a_volume_in_two_splits(organs, table):
    rows = [(f"images/{i:06d}.tiff", "one.nii") for i in range(6)]
    table(organs / "annotations.csv", ["filepath", "original_filepath"], rows)
    with pytest.raises(
        ValueError, match=r"organs_axial \(.*\): groups must not cross splits.*'one.nii' \(train and test\)"
    ):
        medimeta_set(organs)


def test_the_patient_goes_before_the_file(organs, table):
    rows = [(f"images/{i:06d}.tiff", "one.nii", f"p{i}") for i in range(6)]
    table(organs / "annotations.csv", ["filepath", "original_filepath", "patient_id"], rows)
    assert medimeta_set(organs).splits["test"].groups == ("p4", "p5")


def test_annotations_may_be_missing_but_not_incomplete(organs, table):
    table(organs / "annotations.csv", ["filepath", "original_filepath"], [("images/000000.tiff", "one.nii")])
    with pytest.raises(ValueError, match=r"annotations\.csv: column 'original_filepath' has no value for image 000001"):
        medimeta_set(organs)
    table(organs / "annotations.csv", ["filepath", "organ"], [("images/000000.tiff", "heart")])
    with pytest.raises(ValueError, match=r"annotations\.csv: lacks the column 'original_filepath'"):
        medimeta_set(organs)
    (organs / "annotations.csv").unlink()
    result = medimeta_set(organs)
    assert result.splits["test"].groups == ("000004", "000005")
    assert "every image is its own group" in result.notes[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": []}, "lacks the id or the tasks"),
        ({"tasks": [{"task_name": "t", "task_target": "DETECTION", "labels": {0: "a"}}]}, "task_target must be one of"),
        (
            {"tasks": [{"task_name": "t", "task_target": "BINARY_CLASSIFICATION", "labels": {1: "a", 2: "b"}}]},
            "labels must name the classes 0, 1",
        ),
    ],
)
def test_refuses_damaged_descriptions(organs, changes, message):
    write_info(organs, **changes)
    with pytest.raises(ValueError, match=rf"info\.yaml: .*{message}"):
        medimeta_set(organs)


def test_refuses_what_is_no_yaml(organs):
    (organs / "info.yaml").write_text("id: [")
    with pytest.raises(ValueError, match=r"cannot read '.*info\.yaml'"):
        medimeta_set(organs)


def test_missing_and_unreadable_images(organs):
    (organs / "images" / "000005.tiff").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"cannot read the image '.*000005\.tiff'"):
        medimeta_set(organs).splits["test"][1]
    (organs / "images" / "000005.tiff").unlink()
    with pytest.raises(ValueError, match=r"1 of 6 images are missing or empty: .*000005\.tiff"):
        medimeta_set(organs)
