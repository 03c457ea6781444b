"""Images that are named by their folder, and images that are read before training."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recipes.data.image_files import ImageFiles
from recipes.data.image_folders import image_files
from recipes.data.verify import verify_images
from tests.recipes.data.dicom_files import write_dicom


def test_a_folder_stands_for_the_images_in_it(tmp_path):
    (tmp_path / "sub" / ".hidden").mkdir(parents=True)
    for name in ("b.PNG", "a.jpeg", "sub/c.tif", "sub/.hidden/d.png", ".e.png", "notes.txt", "table.csv", "README"):
        (tmp_path / name).write_bytes(b"x")
    write_dicom(tmp_path / "IM0001", np.zeros((4, 4), np.uint8))
    files = image_files([tmp_path / "notes.txt", tmp_path])
    names = [str(file.relative_to(tmp_path)) for file in files]
    assert names == ["notes.txt", "IM0001", "a.jpeg", "b.PNG", "sub/c.tif"]


def test_what_does_not_exist_and_empty_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"image \(--image\): '.*absent\.png' does not exist"):
        image_files([tmp_path / "absent.png"])
    (tmp_path / "text.txt").write_text("x")
    with pytest.raises(ValueError, match=r"image \(--image\): the folder '.*' holds no \.png, \.jpg"):
        image_files([tmp_path])
    assert image_files([]) == []


def split(folder: Path, names):
    n = len(names)
    paths = tuple(str(folder / name) for name in names)
    return ImageFiles(tuple(names), paths, ((),) * n, np.zeros((n, 1), np.float32), paths, (None,) * n, (None,) * n)


def test_truncated_images_are_found_before_they_are_needed(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.jpg", "c.png", "d.jpg"):
        Image.fromarray(rng.integers(0, 255, (64, 64), dtype=np.uint8)).save(tmp_path / name)
    splits = [("train", split(tmp_path, ["a.png", "b.jpg"])), ("test", split(tmp_path, ["c.png", "d.jpg"]))]
    assert verify_images(splits, "set.csv") == 4
    for name in ("b.jpg", "c.png"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(
        ValueError, match=r"set\.csv: 2 of 4 images cannot be read: b\.jpg, c\.png \(cannot read .*on_bad_image='skip'"
    ):
        verify_images(splits, "set.csv")
