import json

import numpy as np
import pytest

from recipes.data.evaluation.thyroid import thyroid_set

OUTLINE = json.dumps([{"points": [{"x": 1, "y": 2}, {"x": 4, "y": 3}, {"x": 2, "y": 5}], "regionType": "freehand"}])


def write_case(folder, number, tirads, marks):
    """Writes an XML file of DDTI: marks are pairs of an image's number and an outline."""
    body = "".join(f"<mark><image>{image}</image><svg>{svg}</svg></mark>" for image, svg in marks)
    category = f"<tirads>{tirads}</tirads>" if tirads else "<tirads/>"
    (folder / f"{number}.xml").write_text(
        f"<case><number>{number}</number><age>40</age><sex>F</sex><composition>solid</composition>"
        f"<echogenicity>isoechogenicity</echogenicity>{category}<reporteco/>{body}</case>"
    )


@pytest.fixture
def ddti(tmp_path, picture):
    """Five cases: one of two images, one without a category, one whose outline is damaged."""
    for number, tirads, images in ((1, "2", (1,)), (2, "4a", (1, 2)), (10, "5", (1,)), (3, "", (1,)), (4, "3", (1,))):
        write_case(tmp_path, number, tirads, [(image, OUTLINE if number != 4 else "[{") for image in images])
        for image in images:
            picture(tmp_path / f"{number}_{image}.jpg", shade=10 * number)
    return tmp_path


def test_ddti(ddti):
    result = thyroid_set(ddti, splits="test")
    assert (result.name, result.classes, result.task) == ("thyroid", ("benign", "malignant"), "binary-class")
    assert (result.modality, result.prompts) == ("ultrasound", "thyroid")
    test = result.splits["test"]
    assert test.ids == ("1_1.jpg", "2_1.jpg", "2_2.jpg", "4_1.jpg", "10_1.jpg")
    assert test.groups == ("1", "2", "2", "4", "10")
    np.testing.assert_array_equal(test.labels.argmax(1), [0, 1, 1, 0, 1])
    assert test[0].boxes == (("thyroid nodule", 1, 2, 5, 6),)
    assert test[3].boxes == ()
    assert abs(int(test[4].image[0, 0]) - 100) <= 2
    assert "left out 1 of 5 cases without a TI-RADS category" in result.notes
    assert "1 outlines of nodules could not be read and give no box" in result.notes
    assert any("2 and 3 are taken for benign, 4a to 5 for malignant" in note for note in result.notes)


@pytest.mark.parametrize(("tirads", "label"), [("2", 0), ("3", 0), ("4a", 1), ("4B", 1), ("4c", 1), ("5", 1)])
def test_every_category(tmp_path, picture, tirads, label):
    write_case(tmp_path, 7, tirads, [])
    picture(tmp_path / "7_1.jpg")
    assert thyroid_set(tmp_path, splits="test").splits["test"].labels.argmax(1).tolist() == [label]


def test_images_of_a_case_stay_together(ddti):
    for seed in range(5):
        result = thyroid_set(ddti, seed=seed, fractions=(0.4, 0.3, 0.3))
        assert sum(split.groups.count("2") for split in result.splits.values()) == 2
        assert sum("2" in split.groups for split in result.splits.values()) == 1
        assert any(f"seed {seed}" in note for note in result.notes)


@pytest.mark.parametrize("tirads", ["4", "6", "malignant"])
def test_ddti_refuses_other_categories(ddti, tirads):
    write_case(ddti, 2, tirads, [])
    with pytest.raises(
        ValueError, match=rf"2\.xml: tirads: a label must be one of 2, 3, 4a, 4b, 4c, 5, got '{tirads}'"
    ):
        thyroid_set(ddti)


def test_ddti_refuses_damage(ddti, picture):
    picture(ddti / "77_1.jpg")
    with pytest.raises(ValueError, match=r"77_1\.jpg: has no 77\.xml beside it"):
        thyroid_set(ddti)
    (ddti / "77_1.jpg").unlink()
    (ddti / "1_1.jpg").unlink()
    with pytest.raises(ValueError, match=r"1\.xml: has no image 1_1\.jpg beside it"):
        thyroid_set(ddti)
    (ddti / "1.xml").write_text("<case><tirads>2</tirads>")
    with pytest.raises(ValueError, match=r"cannot read the XML file '.*1\.xml'"):
        thyroid_set(ddti)


def test_ddti_refuses_folders_without_any_category(tmp_path):
    write_case(tmp_path, 1, "", [])
    with pytest.raises(ValueError, match="none of its 1 cases has a TI-RADS category"):
        thyroid_set(tmp_path)


def test_unreadable_images_of_ddti(ddti):
    (ddti / "10_1.jpg").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"cannot read the image '.*10_1\.jpg'"):
        thyroid_set(ddti, splits="test").splits["test"][4]
    result = thyroid_set(ddti, splits="test", on_bad_image="skip")
    assert "10_1.jpg" not in result.splits["test"].ids


def test_tn3k_is_refused_for_it_has_no_labels(tmp_path, picture):
    picture(tmp_path / "trainval-image" / "0000.jpg")
    picture(tmp_path / "trainval-mask" / "0000.jpg")
    with pytest.raises(ValueError, match="is TN3K, which has masks of nodules and no label"):
        thyroid_set(tmp_path)


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected a table, a folder with thyroid_test_fold3\.csv, or DDTI's folder"):
        thyroid_set(tmp_path, fold=3)


def test_refuses_options_of_another_layout(ddti, table):
    with pytest.raises(ValueError, match=r"fold, image_root: .* is DDTI's folder, which has no use for it"):
        thyroid_set(ddti, fold=2, image_root=ddti)
    csv = table(ddti / "t.csv", ["img_dir", "label"], [("1_1.jpg", "benign")])
    with pytest.raises(ValueError, match=r"splits: .* is of the benchmark's layout"):
        thyroid_set(csv, splits="test")
