"""What ``predict`` writes: calibrated probabilities, json, and the attention as pictures and numbers."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from recipes.medvlmoe import __main__ as cli
from recipes.medvlmoe import predict, train
from recipes.medvlmoe.predicted_files import overlaid, overlay_names
from recipes.medvlmoe.trained import load_run, stored_temperatures
from recipes.shared.runs import read_json, write_json
from recipes.shared.scores.temperature import scaled_probs
from tests.recipes.medvlmoe.conftest import small_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name in ("one", "two", "três ö"):
        Image.fromarray(rng.integers(0, 255, (80, 60), dtype=np.uint8)).save(folder / f"{name}.png")
    return folder


def test_the_table_holds_the_temperatures_of_the_evaluation(trained_run, images):
    metrics = read_json(trained_run / "metrics.json")
    table = predict.main(trained_run, images=[images])
    trained = load_run(trained_run)
    temperatures = [metrics["calibration"]["temperature"][name] for name in trained.classes]
    assert temperatures[0] != 1
    probs = table.filter(like="prob:").to_numpy(np.float64)
    expected = scaled_probs(np.log(probs / (1 - probs)), temperatures, task="multi-label")
    np.testing.assert_allclose(table.filter(like="calibrated:"), expected, atol=1e-5)
    assert table.attrs["uncalibrated"] == ""


def test_a_run_that_was_not_evaluated_says_so(trained_run, images, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    (run / "metrics.json").unlink()
    out = tmp_path / "out.csv"
    cli.main(["predict", str(run), "--image", str(images / "one.png"), "--out", str(out), "--traceback"])
    assert f"probabilities are not calibrated, since {run} was not evaluated" in capsys.readouterr().out
    assert not [name for name in pd.read_csv(out).columns if name.startswith("calibrated:")]


def test_temperatures_of_other_weights_are_not_used(trained_run, tmp_path):
    classes = load_run(trained_run).classes
    values, why = stored_temperatures(trained_run, classes, "best")
    assert values is not None
    assert why == ""
    values, why = stored_temperatures(trained_run, classes, "last")
    assert values is None
    assert "was evaluated with its best weights, not its last ones" in why
    assert why.endswith("--checkpoint last")
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    write_json(run / "training.json", read_json(run / "training.json") | {"epochs": 9})
    values, why = stored_temperatures(run, classes, "best")
    assert values is None
    assert "was trained on after its evaluation" in why
    metrics = read_json(trained_run / "metrics.json")
    del metrics["calibration"]["temperature"][classes[0]]
    shutil.copy(trained_run / "training.json", run / "training.json")
    write_json(run / "metrics.json", metrics)
    with pytest.raises(ValueError, match=r"metrics\.json lacks the temperature of a class"):
        stored_temperatures(run, classes, "best")
    del metrics["calibration"]
    write_json(run / "metrics.json", metrics)
    assert "evaluated before runs were calibrated" in stored_temperatures(run, classes, "best")[1]


def test_json_and_pictures_hold_what_the_table_holds(trained_run, images, tmp_path):
    arguments = ["predict", str(trained_run), "--image", str(images), "--out", str(tmp_path / "out.csv")]
    cli.main([*arguments, "--json", str(tmp_path / "out.json"), "--overlays", str(tmp_path / "over"), "--traceback"])
    table = pd.read_csv(tmp_path / "out.csv")
    records = json.loads((tmp_path / "out.json").read_text())
    assert records["notice"] == "For research only; not a medical device."
    names = records["classes"]
    assert [record["image"] for record in records["images"]] == table["image"].tolist()
    for row, record in zip(table.to_dict("records"), records["images"], strict=True):
        for kind, field in (("prob", "probabilities"), ("calibrated", "calibrated")):
            np.testing.assert_allclose(
                [record[field][n] for n in names], [row[f"{kind}:{n}"] for n in names], atol=1e-5
            )
        assert row["experts"] == ";".join(str(one["expert"]) for one in record["experts"])
        attention = np.array(record["attention"])
        assert attention.sum() == pytest.approx(1, abs=1e-4)
        written = np.loadtxt(tmp_path / "over" / record["overlay"].replace(".png", ".csv"), delimiter=",")
        np.testing.assert_allclose(written, attention, rtol=1e-4, atol=1e-7)
    pictures = sorted(path.name for path in (tmp_path / "over").glob("*.png"))
    assert pictures == ["1-one.png", "2-tr-s.png", "3-two.png"]


def test_the_picture_is_brightest_where_the_attention_is():
    attention = np.zeros((4, 4))
    attention[1, 2] = 1.0
    picture = np.asarray(overlaid(np.zeros((64, 64), np.uint8), attention).convert("L"), float)
    row, column = np.unravel_index(picture.argmax(), picture.shape)
    assert (row * 4 // picture.shape[0], column * 4 // picture.shape[1]) == (1, 2)
    assert picture[-20:, :20].max() == 0


def test_names_of_pictures_are_safe_and_distinct():
    paths = ["/a/../b.png", "/x/b.png", "/y/\u202eevil\n.dcm", "/z/" + "n" * 300 + ".png", "/w/....png"]
    assert overlay_names(paths) == ["1-b", "2-b", "3-evil", "4-" + "n" * 80, "5-image"]


def test_outputs_that_cannot_be_written_stop_before_the_run_is_read(tmp_path, images):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="give another --overlays"):
        predict.main(tmp_path, images=[images], overlays=tmp_path / "file" / "over")
    with pytest.raises(ValueError, match="give another --json"):
        predict.main(tmp_path, images=[images], json=tmp_path)


def test_a_model_without_attention_has_no_overlays(images, tmp_path):
    config = small_config(tmp_path / "run", epochs=1)
    config = replace(config, model=replace(config.model, variant="vision-only"))
    phantom = replace(config.data.phantom, train_studies=16, val_studies=8, test_studies=8)
    train.main(replace(config, data=replace(config.data, phantom=phantom)))
    with pytest.raises(ValueError, match=r"overlays \(--overlays\): .*variant vision-only.* has no attention map"):
        predict.main(tmp_path / "run", images=[images], overlays=tmp_path / "over")
    predict.main(tmp_path / "run", images=[images], json=tmp_path / "out.json")
    record = json.loads((tmp_path / "out.json").read_text())["images"][0]
    assert record["attention"] is None
    assert record["experts"] is None
    assert record["calibrated"] is None
