"""A cell trains and evaluates by the stages of the recipe, from whatever a killed attempt left."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from recipes.medvlmoe.config import Config, DataConfig, tiny
from recipes.medvlmoe.tables.cell import FILES, model_cell, pixel_cell, run_cell
from recipes.shared.settings import settings_from_json
from recipes.shared.sweeps import Record, SweepFolder, run_sweep
from recipes.shared.sweeps.provenance import checksum
from tests.recipes.medvlmoe.conftest import small_config


def test_a_cell_goes_on_with_a_run_and_begins_a_damaged_one_again(tmp_path, capsys):
    run = tmp_path / "run"
    cell = model_cell("a", small_config(run, epochs=2), bootstrap=100)
    settings = json.loads(json.dumps(dict(cell.settings)))
    assert "out" not in settings["config"]
    result = run_cell(settings, run)
    assert result["studies"] == {"train": 48, "val": 32, "test": 40}
    assert result["macro_auroc_ci95"][0] < result["macro_auroc"] < result["macro_auroc_ci95"][1]
    assert result["epochs"] == 2
    predictions = (run / "predictions.csv").read_bytes()
    # Killed between training and evaluation: nothing is trained again.
    for name in FILES:
        (run / name).unlink()
    history = (run / "history.jsonl").read_bytes()
    assert run_cell(settings, run) == result
    assert (run / "history.jsonl").read_bytes() == history
    assert (run / "predictions.csv").read_bytes() == predictions
    # What cannot be gone on with is begun again, with the same result.
    (run / "checkpoints" / "last.ckpt").write_bytes(b"cut off")
    assert run_cell(settings, run) == result
    assert "the run cannot be gone on with, and begins again" in capsys.readouterr().out
    assert (run / "predictions.csv").read_bytes() == predictions


def test_an_error_of_a_new_run_is_the_cells(tmp_path):
    config = replace(tiny(), data=DataConfig(str(tmp_path / "none.npz")))
    with pytest.raises(ValueError, match=r"none\.npz"):
        run_cell(model_cell("a", config, bootstrap=100).settings, tmp_path / "run")


@pytest.mark.parametrize("classes", [2, 3])
def test_the_floor_of_the_pixels_knows_what_pixels_tell(tmp_path, classes):
    rng = np.random.default_rng(classes)
    arrays = {}
    for split, count in (("train", 90), ("val", 30), ("test", 60)):
        labels = np.arange(count) % classes
        images = rng.integers(0, 80, (count, 28, 28, 3), dtype=np.uint8)
        images[np.arange(count), 4 * labels + 3, :, :] += 90
        arrays |= {f"{split}_images": images, f"{split}_labels": labels[:, None].astype(np.uint8)}
    np.savez(tmp_path / "set.npz", **arrays)
    run = tmp_path / "run"
    run.mkdir()
    config = Config(data=DataConfig(str(tmp_path / "set.npz")), preset="tiny")
    result = run_cell(pixel_cell("a", config, bootstrap=100).settings, run)
    assert result["macro_auroc"] > 0.95
    assert result["task"] == ("binary-class" if classes == 2 else "multi-class")
    table = pd.read_csv(run / "predictions.csv")
    assert set(table["split"]) == {"val", "test"}
    assert np.allclose(table[[name for name in table if name.startswith("prob:")]].sum(axis=1), 1)
    assert all((run / name).is_file() for name in FILES)


def test_the_floor_leaves_unknown_labels_out_and_gives_a_class_of_one_outcome_its_share(tmp_path):
    from recipes.medvlmoe.tables.pixels import _fit_classes

    pixels = np.concatenate([np.zeros((10, 4)), np.ones((10, 4))])
    labels = np.stack([np.repeat([0, 1], 10), np.ones(20), np.full(20, np.nan)], axis=1).astype(np.float32)
    labels[0, 0] = np.nan
    probs = _fit_classes(pixels, labels)(pixels)
    assert (probs[10:, 0] > 0.5).all()
    assert (probs[:10, 0] < 0.5).all()
    assert (probs[:, 1] == 1).all()
    assert (probs[:, 2] == 0.5).all()


def settings_of(data, **changed):
    """The checksum of a cell of a data set, and of one whose other settings of the data differ."""
    config = tiny()
    other = replace(config.data, data=data)
    for part, values in changed.items():
        other = replace(
            other, **{part: replace(getattr(other, part), **values) if isinstance(values, dict) else values}
        )
    return [
        make("a", replace(config, data=each), bootstrap=100)
        for make in (model_cell, pixel_cell)
        for each in (replace(config.data, data=data), other)
    ]


@pytest.mark.parametrize(
    ("data", "changed"),
    [
        ("breastmnist", {"phantom": {"num_contexts": 4, "train_studies": 9}, "manifest": {"group_column": "id"}}),
        ("phantom", {"phantom": {"num_contexts": 4}, "chest": {"official_splits": False}, "data_size": 64}),
        ("a/table.csv", {"phantom": {"test_studies": 9}, "download": True}),
        ("chexpert:folder", {"phantom": {"test_studies": 9}, "manifest": {"image_column": "path"}}),
    ],
)
def test_settings_that_a_data_set_does_not_read_make_no_other_cell(data, changed):
    one, other, pixels, other_pixels = settings_of(data, **changed)
    assert one.checksum == other.checksum != pixels.checksum
    assert pixels.checksum == other_pixels.checksum
    assert settings_from_json(Config, {**one.settings["config"]}).data.data == data


@pytest.mark.parametrize(
    ("data", "changed"),
    [
        ("breastmnist", {"data_size": 64}),
        ("breastmnist", {"manifest": {"text_section": "findings"}}),
        ("phantom", {"phantom": {"train_studies": 9}}),
        ("phantom-hard", {"phantom": {"num_contexts": 4}}),
        ("a/table.csv", {"manifest": {"group_column": "id"}}),
        ("chexpert:folder", {"chest": {"official_splits": False}}),
        ("chexpert:folder", {"manifest": {"uncertain": "ones"}}),
    ],
)
def test_settings_that_it_reads_make_another_cell(data, changed):
    one, other, pixels, other_pixels = settings_of(data, **changed)
    assert one.checksum != other.checksum
    assert pixels.checksum != other_pixels.checksum
    assert not one.is_of(other.checksum)
    assert not set(one.earlier) & set(other.earlier)


def test_a_record_of_a_version_that_counted_all_settings_counts(tmp_path):
    config = replace(tiny(), data=DataConfig("breastmnist"))
    cell = model_cell("a", config, bootstrap=100)
    whole = json.loads(json.dumps(config.to_json(), default=str))
    settings = {"kind": "model", "bootstrap": 100, "config": {k: whole[k] for k in whole if k not in ("out", "resume")}}
    place = SweepFolder(tmp_path)
    place.state("a").mkdir(parents=True)
    place.write(Record("a", "finished", "1", checksum(settings), 1.0, "abc"))
    assert place.records([cell])["a"].attempt == "1"
    assert run_sweep([cell], tmp_path, run_cell, progress=False)["a"].attempt == "1"
    other = model_cell("a", replace(config, seeds=(1,)), bootstrap=100)
    assert place.records([other]) == {}
    with pytest.raises(ValueError, match="1 finished cells were run with other settings: a"):
        run_sweep([other], tmp_path, run_cell, progress=False)
