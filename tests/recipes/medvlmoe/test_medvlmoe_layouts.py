"""Public sets in their own layouts: each trains, is evaluated and predicts."""

import json
from dataclasses import replace

import numpy as np
import pytest
from medmnist import INFO

from recipes.data.chest.chexpert import COMPETITION
from recipes.medvlmoe import __main__ as cli
from recipes.medvlmoe.config import DataConfig, ManifestConfig
from recipes.medvlmoe.sources import build_source
from tests.recipes import chest_folders as folders
from tests.recipes.medvlmoe.conftest import small_config

FLAGS = [flag for flag in INFO if not flag.endswith("3d")]

SETS = {
    "chestxray14": (folders.chestxray14, [], "00000009_000.png", "images/00000009_000.png"),
    "chexpert": (
        folders.chexpert_folder,
        ["--uncertain", "per-label", "--views", "frontal"],
        "valid/patient00012/study1/view1_frontal.jpg",
        "valid/patient00012/study1/view1_frontal.jpg",
    ),
    "mimic-cxr": (
        folders.mimic_cxr_folder,
        ["--text-section", "impression,findings,last_paragraph"],
        "00000009-pa",
        "files/p10/p10009000/s50000009/00000009-pa.jpg",
    ),
    "openi": (folders.openi_folder, ["--text-section", "findings"], None, "NLMCXR_png/CXR1_IM-0001-1001.png"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_every_layout_trains_is_evaluated_and_predicts(tmp_path, name, capsys):
    write, options, test_id, image = SETS[name]
    root = write(tmp_path / "set")
    run = tmp_path / "run"
    small = ["--epochs", "1", "--batch-size", "8", "--image-size", "64", "--dim", "32", "--num-heads", "2"]
    small += ["--image-encoder", "test_efficientnet", "--num-experts", "4", "--expert-hidden-dim", "32"]
    cli.main(["train", "--data", f"{name}:{root}", "--out", str(run), "--accelerator", "cpu", *small, *options])
    cli.main(["evaluate", str(run), "--bootstrap", "10"])
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["run"]["data"] == name
    assert (metrics["run"]["text_encoder"] is not None) == (name in ("mimic-cxr", "openi"))
    assert set(metrics["test"]["class_sets"]) == ({"competition"} if name in ("chexpert", "mimic-cxr") else set())
    if name == "chexpert":
        five = metrics["test"]["class_sets"]["competition"]
        each = [metrics["test"]["per_class"][finding]["auroc"] for finding in COMPETITION]
        assert five["macro_auroc"] == pytest.approx(np.mean(each))
        assert f"over the 5 competition classes: {five['macro_auroc']:.4f}" in capsys.readouterr().out
        assert metrics["test"]["macro_auroc"] == pytest.approx(
            np.mean([scores["auroc"] for scores in metrics["test"]["per_class"].values()])
        )
    assert test_id is None or test_id in (run / "predictions.csv").read_text()
    text = ["--text", "FINDINGS: Clear."] if metrics["run"]["text_encoder"] else []
    out = tmp_path / "out.csv"
    cli.main(["predict", str(run), "--image", str(root / image), "--out", str(out), *text])
    header, row = out.read_text().splitlines()
    assert header.startswith("image,prob:")
    assert all(0 < float(cell) < 1 for cell in row.split(",")[1 : 1 + len(metrics["run"]["classes"])])
    capsys.readouterr()


def write_medmnist(path, flag, size):
    info, rng = INFO[flag], np.random.default_rng(0)
    classes, count = len(info["label"]), 3
    shape = (count, size, size) if info["n_channels"] == 1 else (count, size, size, 3)
    columns = classes if info["task"].startswith("multi-label") else 1
    highest = 2 if columns > 1 else classes
    arrays = {f"{split}_images": rng.integers(0, 256, shape, dtype=np.uint8) for split in ("train", "val", "test")}
    arrays |= {f"{split}_labels": rng.integers(0, highest, (count, columns)) for split in ("train", "val", "test")}
    np.savez(path, **arrays)


@pytest.mark.parametrize("flag", FLAGS)
def test_every_medmnist_set_by_name_at_every_size(tmp_path, flag):
    assert len(FLAGS) == 12
    for size in (28, 64, 128, 224):
        write_medmnist(tmp_path / (f"{flag}.npz" if size == 28 else f"{flag}_{size}.npz"), flag, size)
        source = build_source(DataConfig(data=flag, data_root=tmp_path, data_size=size), 64)
        assert source.train[0].image.shape[:2] == (size, size)
        assert source.task == INFO[flag]["task"].partition(",")[0]
        assert source.classes == tuple(INFO[flag]["label"].values())


def test_a_size_that_medmnist_lacks(tmp_path):
    with pytest.raises(ValueError, match=r"size: breastmnist comes in \[28, 64, 128, 224\] pixels, got 96"):
        build_source(DataConfig(data="breastmnist", data_root=tmp_path, data_size=96), 64)


@pytest.mark.parametrize("option", [{"views": ("frontal",)}, {"official_splits": False}])
def test_settings_of_chest_radiographs_are_refused_for_other_data(tmp_path, option):
    config = small_config(tmp_path).data
    with pytest.raises(ValueError, match=r"views and official_splits are for chestxray14, .*, got data='phantom'"):
        build_source(replace(config, chest=replace(config.chest, **option)), 64)


def test_a_section_that_no_report_of_a_set_has(tmp_path):
    from recipes.medvlmoe.sources import texts_of

    manifest = ManifestConfig(text_section="history,technique")
    config = DataConfig(data=f"openi:{folders.openi_folder(tmp_path)}", manifest=manifest)
    with pytest.raises(ValueError, match=r"--text-section 'history,technique': 0 of \d+ texts have this section"):
        texts_of(build_source(config, 64).train, config)


def test_options_of_a_csv_are_refused_for_sets_with_their_own_tables(tmp_path):
    manifest = ManifestConfig(image_root=tmp_path, group_column="x", uncertain="ones", split_seed=3)
    config = DataConfig(data=f"chexpert:{tmp_path}", manifest=manifest)
    with pytest.raises(ValueError, match=r"^--image-root, --group-column: for a csv of your own, but chexpert is read"):
        build_source(config, 64)
