import numpy as np
import pytest
from PIL import Image

from recipes.data.evaluation.busi import busi_set


@pytest.fixture
def busi(tmp_path, picture):
    """Dataset_BUSI_with_GT: two benign (one with two masks), one malignant, two normal."""
    root = tmp_path / "Dataset_BUSI_with_GT"
    for place, name in enumerate(["benign (1)", "benign (10)", "malignant (2)", "normal (1)", "normal (2)"]):
        folder = root / name.split()[0]
        picture(folder / f"{name}.png", shade=50 + place)
        mask = np.zeros((6, 8), np.uint8)
        mask[1:3, 2:5] = 0 if "normal" in name else 255
        Image.fromarray(mask).save(folder / f"{name}_mask.png")
    second = np.zeros((6, 8), np.uint8)
    second[5, 7] = 255
    Image.fromarray(second).save(root / "benign" / "benign (10)_mask_1.png")
    return root


def test_masks_are_boxes_and_never_images(busi):
    result = busi_set(busi, splits="test")
    test = result.splits["test"]
    assert (result.name, result.classes, result.task) == ("busi", ("benign", "malignant", "normal"), "multi-class")
    assert (result.modality, result.prompts) == ("ultrasound", "busi")
    assert test.ids == (
        "benign/benign (1).png",
        "benign/benign (10).png",
        "malignant/malignant (2).png",
        "normal/normal (1).png",
        "normal/normal (2).png",
    )
    assert test.labels.argmax(1).tolist() == [0, 0, 1, 2, 2]
    assert [int(study.image[0, 0]) for study in test] == [50, 51, 52, 53, 54]
    assert test[1].boxes == (("benign tumour", 2, 1, 5, 3), ("benign tumour", 7, 5, 8, 6))
    assert test[2].boxes[0].finding == "malignant tumour"
    assert test[3].boxes == ()
    assert any("names no patients" in note for note in result.notes)


def test_the_folder_above_serves_too_and_splits_are_drawn(busi):
    result = busi_set(busi.parent, seed=2, fractions=(0.4, 0.3, 0.3))
    assert sum(len(split) for split in result.splits.values()) == 5
    assert set(result.splits) == {"train", "val", "test"}
    assert "seed 2" in result.notes[-1]


def test_normal_may_be_merged(busi):
    result = busi_set(busi, merge_normal=True, splits="test")
    assert (result.classes, result.task) == (("benign", "malignant"), "binary-class")
    assert result.splits["test"].labels.argmax(1).tolist() == [0, 0, 1, 0, 0]
    assert any("normal breasts count as benign" in note for note in result.notes)


@pytest.mark.parametrize("name", ["benign (3)_segmentation.png", "malignant (3).png", "mask.png", "benign 4.jpg"])
def test_refuses_pictures_that_are_neither_image_nor_mask(busi, picture, name):
    picture(busi / "benign" / name)
    with pytest.raises(ValueError, match=r"is neither an image such as 'benign \(1\)\.png' nor a mask"):
        busi_set(busi)


def test_leaves_other_files_alone(busi):
    (busi / "benign" / "Thumbs.db").write_bytes(b"x")
    assert len(busi_set(busi, splits="test").splits["test"]) == 5


def test_refuses_masks_without_images_and_missing_folders(busi):
    (busi / "benign" / "benign (1).png").unlink()
    with pytest.raises(ValueError, match=r"benign \(1\)_mask\.png: is a mask without its image, as are 0 others"):
        busi_set(busi)
    (busi / "benign" / "benign (1)_mask.png").unlink()
    assert len(busi_set(busi, splits="test").splits["test"]) == 4
    for path in (busi / "malignant").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"malignant: holds no image such as 'malignant \(1\)\.png'"):
        busi_set(busi)
    (busi / "malignant").rmdir()
    with pytest.raises(ValueError, match="malignant: no such folder, expected benign, malignant, normal"):
        busi_set(busi)


def test_unreadable_images_and_masks(busi):
    (busi / "benign" / "benign (1).png").write_bytes(b"damaged")
    (busi / "malignant" / "malignant (2)_mask.png").write_bytes(b"damaged")
    test = busi_set(busi, splits="test").splits["test"]
    with pytest.raises(ValueError, match=r"cannot read the image '.*benign \(1\)\.png'"):
        test[0]
    with pytest.raises(ValueError, match=r"cannot read the image '.*malignant \(2\)_mask\.png'"):
        test[2]


def test_refuses_options_of_another_layout(busi, table):
    with pytest.raises(ValueError, match=r"image_column: .* is BUSI's own folder, which has no use for it"):
        busi_set(busi, image_column="path")
    csv = table(busi / "t.csv", ["filename", "label"], [("benign/benign (1).png", "benign")])
    with pytest.raises(ValueError, match=r"merge_normal: .* is of the benchmark's layout"):
        busi_set(csv, merge_normal=True)
