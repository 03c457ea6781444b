import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from medmnist import INFO

from recipes.data.evaluation.medmnist import MODALITIES, medmnist_set
from recipes.data.evaluation.sets import SETS, open_evaluation_set, set_options
from recipes.data.pairs import PairSplit

ROOT = Path(os.environ.get("MOEKIT_REAL_DATA") or "unset")
real = pytest.mark.skipif(
    not os.environ.get("MOEKIT_REAL_DATA"), reason="MOEKIT_REAL_DATA, the folder of the real sets, is unset"
)
KINDS = {"xray", "ct", "mri", "ultrasound", "pathology", "fundus", None}


def write_npz(path, labels=(0, 1)):
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = np.full((len(labels), 4, 4), 9, np.uint8)
        arrays[f"{split}_labels"] = np.array(labels)[:, None]
    np.savez(path, **arrays)
    return path


def test_every_flat_set_of_medmnist_has_a_kind():
    assert set(MODALITIES) == {flag for flag in INFO if not flag.endswith("3d")}
    assert set(MODALITIES.values()) <= KINDS


def test_medmnist_by_flag_and_by_file(tmp_path):
    path = write_npz(tmp_path / "breastmnist.npz")
    for root in (tmp_path, path):
        result = open_evaluation_set("breastmnist", root)
        assert (result.name, result.task, result.modality) == ("breastmnist", "binary-class", "ultrasound")
        assert (result.classes, result.prompts) == (("malignant", "normal, benign"), "breastmnist")
        assert set(result.splits) == {"train", "val", "test"}
        test = result.splits["test"]
        assert isinstance(test, PairSplit)
        assert (test.modalities, test.texts, test.ids) == (("ultrasound",) * 2, (None, None), test.groups)
        np.testing.assert_array_equal(test.labels, [[1, 0], [0, 1]])
        assert (test[1].modality, test[1].image[0, 0]) == ("ultrasound", 9)
    write_npz(tmp_path / "breastmnist_64.npz")
    assert open_evaluation_set("breastmnist", tmp_path, size=64).prompts == "breastmnist"


def test_medmnist_files_of_other_names(tmp_path):
    result = medmnist_set(write_npz(tmp_path / "own.npz"), modality="mri")
    assert (result.classes, result.modality, result.prompts) == (("0", "1"), "mri", None)
    with pytest.raises(ValueError, match=r"octmnist\.npz' does not exist. Pass download=True"):
        open_evaluation_set("octmnist", tmp_path)


def test_medmnist_labels_out_of_range(tmp_path):
    write_npz(tmp_path / "breastmnist.npz", labels=(0, 2))
    with pytest.raises(ValueError, match=r"train_labels: row 1 holds \[2\], expected 0 to 1"):
        open_evaluation_set("breastmnist", tmp_path)


def test_names_are_those_of_the_table():
    flags = {flag for flag in INFO if not flag.endswith("3d")}
    planes = {"medimeta-axial", "medimeta-coronal", "medimeta-sagittal"}
    assert set(SETS) == {"chexpert5x200", "rsna", "thyroid", "busi", "acl", "meniscus", "csv"} | flags | planes


def test_an_organ_set_by_its_plane(tmp_path, picture):
    for plane in ("axial", "coronal", "sagittal"):
        root = tmp_path / f"organs_{plane}"
        picture(root / "images" / "000000.tiff", shade=7)
        (root / "task_labels").mkdir()
        np.save(root / "task_labels" / "organ label.npy", [1])
        (root / "splits").mkdir()
        (root / "splits" / "test.txt").write_text("images/000000.tiff")
        task = {
            "task_name": "organ label",
            "task_target": "MULTICLASS_CLASSIFICATION",
            "labels": {0: "heart", 1: "liver"},
        }
        counts = {"train": 0, "val": 0, "test": 1}
        info = {"id": root.name, "tasks": [task], "splits_num_samples": counts}
        (root / "info.yaml").write_text(yaml.safe_dump(info))
        for place in (tmp_path, root):
            result = open_evaluation_set(f"medimeta-{plane}", place)
            assert (result.name, result.modality, result.prompts) == (root.name, "ct", root.name)
    with pytest.raises(ValueError, match="is of the set 'organs_axial', expected 'organs_coronal'"):
        open_evaluation_set("medimeta-coronal", tmp_path / "organs_axial")


def test_options_reach_the_reader(tmp_path, picture, table):
    for name in ("314_1", "130_1"):
        picture(tmp_path / "images" / f"{name}.jpg")
    rows = [("images/314_1.jpg", "malignant"), ("images/130_1.jpg", "benign")]
    table(tmp_path / "thyroid_test_fold3.csv", ["img_dir", "label"], rows)
    assert len(open_evaluation_set("thyroid", tmp_path, fold=3).splits["test"]) == 2
    csv = table(tmp_path / "mine.csv", ["image", "kind"], rows)
    assert open_evaluation_set("csv", csv, label_column="kind").classes == ("benign", "malignant")


@pytest.mark.parametrize("name", sorted(SETS))
def test_every_set_names_its_options(name, tmp_path):
    options = set_options(name)
    assert options
    assert not {"root", "csv", "data", "finding"} & set(options)
    with pytest.raises(ValueError, match=rf"{name} takes the options {options[0]}.*, got colour"):
        open_evaluation_set(name, tmp_path, colour=1)


def test_refuses_other_names_and_roots(tmp_path):
    for call in (lambda: open_evaluation_set("imagenet", tmp_path), lambda: set_options("imagenet")):
        with pytest.raises(ValueError, match=r"name must be one of chexpert5x200, rsna, .*, got 'imagenet'"):
            call()
    with pytest.raises(ValueError, match="root: busi needs the folder or file that it lies in"):
        open_evaluation_set("busi")
    with pytest.raises(ValueError, match=r"root: '.*nowhere' does not exist"):
        open_evaluation_set("acl", tmp_path / "nowhere")


@real
@pytest.mark.parametrize(
    ("flag", "counts", "modality"),
    [("breastmnist", [546, 78, 156], "ultrasound"), ("pneumoniamnist", [3882, 524, 624], "xray")],
)
def test_real_medmnist(flag, counts, modality):
    result = open_evaluation_set(flag, ROOT / "medmnist_layout")
    assert [len(split) for split in result.splits.values()] == counts
    assert (result.modality, result.splits["test"][0].modality) == (modality, modality)
    with pytest.raises(ValueError, match="lacks train_images"):
        open_evaluation_set("pathmnist", ROOT / "medmnist_layout" / "pathmnist_test10pct_asfound.npz")


@real
def test_real_manifest_by_modality():
    columns = {"split_column": "split", "group_column": "group", "modality_column": "modality", "text_column": "text"}
    whole = open_evaluation_set("csv", ROOT / "multimodal_manifest.csv", **columns)
    assert [len(split) for split in whole.splits.values()] == [670, 125, 184]
    assert (whole.modality, len(whole.classes)) == (None, 31)
    counts = {}
    for kind in ("xray", "ct", "ultrasound", "pathology", "fundus"):
        part = open_evaluation_set("csv", ROOT / "multimodal_manifest.csv", only=[f"modality={kind}"], **columns)
        assert part.modality == kind
        counts[kind] = sum(len(split) for split in part.splits.values())
        assert part.splits["test"][0].modality == kind
        assert part.splits["test"][0].image.std() > 1
    assert counts == {"xray": 219, "ct": 49, "ultrasound": 402, "pathology": 264, "fundus": 45}


@real
def test_real_manifest_all_for_test():
    result = open_evaluation_set("csv", ROOT / "hrf_fundus" / "metadata.csv", **hrf_columns())
    assert list(result.splits) == ["test"]
    assert len(result.splits["test"]) == 45


def hrf_columns():
    header = (ROOT / "hrf_fundus" / "metadata.csv").read_text().splitlines()[0].split(",")
    image = next(name for name in header if name in ("image", "file", "filename", "path"))
    label = next(name for name in header if name in ("label", "diagnosis", "class"))
    return {"image_column": image, "label_column": label, "modality": "fundus"}
