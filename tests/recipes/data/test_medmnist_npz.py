import pickle

import numpy as np
import pytest
from medmnist import INFO

from recipes.data.medmnist.npz import medmnist_source
from recipes.data.studies import StudySplit, check_groups_apart

COUNTS = {"train": 12, "val": 4, "test": 5}


def arrays(classes=3, channels=None, columns=None):
    """Makes the six arrays; every class occurs in training."""
    random = np.random.default_rng(0)
    made = {}
    for split, count in COUNTS.items():
        shape = (count, 8, 8) if channels is None else (count, 8, 8, channels)
        made[f"{split}_images"] = random.integers(0, 256, shape, np.uint8)
        labels = np.arange(count)[:, None] % classes
        if columns is not None:
            labels = random.integers(0, 2, (count, columns))
        made[f"{split}_labels"] = labels.astype(np.uint8)
    return made


def write(folder, name, made):
    np.savez(folder / name, **made)
    return folder / name


def test_an_unknown_file_takes_its_task_and_classes_from_its_labels(tmp_path):
    made = arrays()
    source = medmnist_source(write(tmp_path, "mine_8.npz", made))
    assert (source.name, source.task, source.classes) == ("mine_8", "multi-class", ("0", "1", "2"))
    assert source.notes == ("MedMNIST names no patients: every image is its own group",)
    check_groups_apart(source)
    for name, split in source.splits():
        assert isinstance(split, StudySplit)
        np.testing.assert_array_equal(split.labels, np.eye(3)[made[f"{name}_labels"][:, 0]])
        assert split.labels.dtype == np.float32
        for index, study in enumerate(split):
            assert study.id == study.group == split.groups[index]
            np.testing.assert_array_equal(study.image, made[f"{name}_images"][index])
            np.testing.assert_array_equal(study.labels, split.labels[index])
    with pytest.raises(IndexError):
        source.test[5]


def test_two_classes_are_binary_class_and_one_hot_over_both(tmp_path):
    source = medmnist_source(write(tmp_path, "mine.npz", arrays(classes=2)))
    assert (source.task, source.classes) == ("binary-class", ("0", "1"))
    np.testing.assert_array_equal(source.val.labels, [[1, 0], [0, 1], [1, 0], [0, 1]])


def test_several_columns_are_multi_label_and_kept(tmp_path):
    made = arrays(columns=4, channels=3)
    source = medmnist_source(write(tmp_path, "mine.npz", made))
    assert (source.task, source.classes) == ("multi-label", ("0", "1", "2", "3"))
    np.testing.assert_array_equal(source.test.labels, made["test_labels"])
    np.testing.assert_array_equal(source.test[-1].image, made["test_images"][-1])


@pytest.mark.parametrize(
    ("name", "flag", "classes", "columns", "task"),
    [
        ("pathmnist_64.npz", "pathmnist", 9, None, "multi-class"),
        ("breastmnist.npz", "breastmnist", 2, None, "binary-class"),
        ("retinamnist_mine.npz", "retinamnist", 5, None, "ordinal-regression"),
        ("chestmnist.npz", "chestmnist", 14, 14, "multi-label"),
    ],
)
def test_a_known_flag_names_the_classes(tmp_path, name, flag, classes, columns, task):
    source = medmnist_source(write(tmp_path, name, arrays(classes, columns=columns)))
    assert (source.task, source.classes) == (task, tuple(INFO[flag]["label"].values()))
    assert source.train.labels.shape == (12, classes)
    if task != "multi-label":
        np.testing.assert_array_equal(source.train.labels.argmax(1), np.arange(12) % classes)
        np.testing.assert_array_equal(source.train.labels.sum(1), 1)
    official = INFO[flag]["n_samples"]
    assert source.notes[1] == (
        f"differs from the official {flag}: train 12 of {official['train']}, val 4 of {official['val']}, "
        f"test 5 of {official['test']} images"
    )


def test_studies_are_copies_and_the_source_travels(tmp_path):
    source = medmnist_source(write(tmp_path, "mine.npz", arrays()))
    study = source.train[0]
    before = study.image.copy()
    study.image[:], study.labels[:] = 0, 9
    again = pickle.loads(pickle.dumps(source)).train[0]
    np.testing.assert_array_equal(again.image, before)
    np.testing.assert_array_equal(source.train[0].labels, again.labels)
    assert source.train[0].labels.sum() == 1


def test_every_kind_of_integer_is_a_label(tmp_path):
    made = arrays(classes=2)
    for dtype in (np.int64, np.bool_, np.uint16):
        changed = {key: value.astype(dtype) if "labels" in key else value for key, value in made.items()}
        source = medmnist_source(write(tmp_path, "mine.npz", changed))
        np.testing.assert_array_equal(source.test.labels, np.eye(2)[made["test_labels"][:, 0]])


def test_missing_keys_are_named(tmp_path):
    made = {key: value for key, value in arrays().items() if key.startswith("test")}
    with pytest.raises(
        ValueError, match=r"mine\.npz: lacks train_images, train_labels, val_images, val_labels; it has \['test_im"
    ):
        medmnist_source(write(tmp_path, "mine.npz", made))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("val_images", np.zeros((4, 8, 8, 8, 3), np.uint8), r"or \(N, D, H, W\) for volumes, got \(4, 8, 8, 8, 3\)"),
        ("val_images", np.zeros((4, 8, 8, 1), np.uint8), r"val_images must have shape \(N, H, W\) or .*8, 1\)"),
        ("val_images", np.zeros((4, 64), np.uint8), r"val_images must have shape .*got \(4, 64\)"),
        ("val_images", np.zeros((4, 8, 8)), "val_images must be uint8, got float64"),
        ("val_images", np.zeros((0, 8, 8), np.uint8), "val_images is empty .*at least one image"),
        ("val_images", np.zeros((4, 9, 8), np.uint8), r"splits must agree in shape.*'val_images': \(9, 8\)"),
        ("val_images", np.zeros((3, 8, 8), np.uint8), "val_labels has 4 rows for 3 images"),
        ("val_images", np.array([None]), "val_images cannot be read .*allow_pickle"),
        ("val_labels", np.zeros(4, np.uint8), r"val_labels must have shape \(N, 1\), or .*got \(4,\)"),
        ("val_labels", np.zeros((4, 0), np.uint8), r"val_labels must have shape .*got \(4, 0\)"),
        ("val_labels", np.zeros((4, 1)), "val_labels must be integers, got float64"),
        ("val_labels", np.zeros((4, 2), np.uint8), r"splits must agree in shape.*'val_labels': \(2,\)"),
        ("val_labels", np.full((4, 1), 7, np.uint8), r"without a gap.*got the values \[0, 1, 2, 7\]"),
        ("val_labels", np.full((4, 1), -1), r"without a gap.*got the values \[-1, 0, 1, 2\]"),
    ],
)
def test_refuses_what_is_not_the_layout_by_file_and_key(tmp_path, key, value, message):
    with pytest.raises(ValueError, match=r"mine\.npz: .*" + message):
        medmnist_source(write(tmp_path, "mine.npz", arrays() | {key: value}))


def test_a_gap_lists_no_more_than_ten_values(tmp_path):
    labels = np.array([[0], *[[value] for value in range(20, 31)]], np.uint8)
    with pytest.raises(ValueError, match=r"got the values \[0, 1, 2, 20, .*26\], \.\.\."):
        medmnist_source(write(tmp_path, "mine.npz", arrays() | {"train_labels": labels}))


@pytest.mark.parametrize(
    ("name", "made", "message"),
    [
        ("breastmnist.npz", arrays(classes=3), r"train_labels: row 2 holds \[2\], expected 0 to 1 \(binary-class, 2"),
        ("pathmnist.npz", arrays(columns=9), "train_labels must have 1 columns for 9 classes .*got 9"),
        ("chestmnist.npz", arrays(columns=3), "train_labels must have 14 columns for 14 classes .*got 3"),
        (
            "mine.npz",
            arrays(columns=3) | {"test_labels": np.full((5, 3), 2)},
            r"row 0 holds \[2, 2, 2\], expected 0 to 1",
        ),
    ],
)
def test_refuses_labels_beyond_the_classes(tmp_path, name, made, message):
    with pytest.raises(ValueError, match=message):
        medmnist_source(write(tmp_path, name, made))


def test_refuses_a_single_class(tmp_path):
    with pytest.raises(ValueError, match=r"at least two of them, got the values \[0\]"):
        medmnist_source(write(tmp_path, "mine.npz", arrays(classes=1)))


def test_refuses_damaged_files(tmp_path):
    path = tmp_path / "mine.npz"
    for content in (b"", b"no archive", write(tmp_path, "whole.npz", arrays()).read_bytes()[:1000]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"mine\.npz: is no readable \.npz file .*get it again"):
            medmnist_source(path)
    data = bytearray((tmp_path / "whole.npz").read_bytes())
    data[500] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"mine\.npz: train_images cannot be read \(.*CRC.*get the file again"):
        medmnist_source(path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match=r"mine\.npz: holds a single array, expected an \.npz archive"):
        medmnist_source(path)
