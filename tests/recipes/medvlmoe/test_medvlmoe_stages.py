"""Evaluation, prediction and the command line, on a small trained run."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from recipes.data.phantom import phantom_source
from recipes.medvlmoe import __main__ as cli
from recipes.medvlmoe import evaluate, predict, train
from recipes.medvlmoe.config import Config, paper, tiny
from recipes.medvlmoe.examples import NUM_EXAMPLES
from recipes.medvlmoe.report import write_report
from recipes.shared.scores.metrics import auroc
from tests.recipes.medvlmoe.conftest import small_config

pytestmark = pytest.mark.slow


def test_metrics_hold_what_the_documentation_says(trained_run):
    metrics = json.loads((trained_run / "metrics.json").read_text())
    test = metrics["test"]
    low, high = test["macro_auroc_ci95"]
    assert low <= test["macro_auroc"] <= high
    assert test["studies"] == 40
    assert set(test["per_class"]) == set(metrics["run"]["classes"])
    assert sum(metrics["experts"]["load"]) == pytest.approx(1)
    assert 0 < metrics["experts"]["entropy"] <= math.log(4) + 1e-6
    assert metrics["seconds"] > 0
    assert metrics["peak_memory_bytes"] > 10**8
    for row, positives in zip(
        metrics["experts"]["activation"]["matrix"], metrics["experts"]["activation"]["positives"], strict=True
    ):
        assert (row is None) == (positives == 0)
        assert row is None or sum(row) == pytest.approx(1)


def test_predictions_agree_with_the_metrics(trained_run):
    metrics = json.loads((trained_run / "metrics.json").read_text())
    table = pd.read_csv(trained_run / "predictions.csv")
    test = table[table["split"] == "test"]
    assert list(test["id"]) == [f"test-{i:05d}" for i in range(40)]
    for name, scores in metrics["test"]["per_class"].items():
        assert auroc(test[f"prob:{name}"], test[f"label:{name}"]) == pytest.approx(scores["auroc"], abs=1e-5)
    experts = test["experts"].str.split(";", expand=True).astype(int)
    assert (experts[0] != experts[1]).all()
    gates = test["gates"].str.split(";", expand=True).astype(float)
    assert gates.sum(axis=1).to_numpy() == pytest.approx(np.ones(40), abs=2e-4)


def test_calibration_belongs_to_the_predictions(trained_run):
    metrics = json.loads((trained_run / "metrics.json").read_text())
    table = pd.read_csv(trained_run / "predictions.csv")
    calibration, test = metrics["calibration"], table[table["split"] == "test"]
    assert calibration["val_nll_after"] <= calibration["val_nll_before"]
    name = next(name for name in metrics["run"]["classes"] if name not in calibration["not_fitted"])
    probs, calibrated = (test[f"{kind}:{name}"].to_numpy() for kind in ("prob", "calibrated"))
    logits = np.log(calibrated / (1 - calibrated)) * calibration["temperature"][name]
    assert 1 / (1 + np.exp(-logits)) == pytest.approx(probs, abs=1e-5)
    labels = test[f"label:{name}"].to_numpy()
    for kind, values in (("uncalibrated", probs), ("calibrated", calibrated)):
        brier = calibration[kind]["per_class"][name]["brier"]
        assert brier == pytest.approx(np.nanmean((values - labels) ** 2), abs=1e-5)
    points = metrics["operating_points"][name]["youden"]
    hits = (probs >= points["threshold"] - 1e-7) & (labels == 1)
    assert hits.sum() == points["true_positives"]


def test_evaluation_options_are_checked_before_the_model_runs(trained_run):
    with pytest.raises(ValueError, match=r"specificities \(--specificities\) must lie in \(0, 1\], got 90"):
        evaluate.main(trained_run, specificities=(90,))
    with pytest.raises(ValueError, match="scope must be one of shared, per-class, got 'each'"):
        evaluate.main(trained_run, temperature="each")


def test_examples_show_different_classes_and_proper_attention(trained_run):
    examples = np.load(trained_run / "examples.npz")
    assert len(examples["ids"]) == NUM_EXAMPLES
    assert examples["attention"].sum((1, 2)) == pytest.approx(np.ones(8), abs=1e-4)
    assert (examples["labels"].max(0) > 0).sum() >= 6
    source = phantom_source(train=48, val=32, test=40, size=64)
    row = int(str(examples["ids"][0]).removeprefix("test-"))
    assert (examples["images"][0] == source.test[row].image).all()
    assert json.loads(str(examples["boxes"][0])) == [box._asdict() for box in source.test[row].boxes]


def test_evaluating_twice_gives_the_same_figures(trained_run):
    first = json.loads((trained_run / "metrics.json").read_text())
    again = evaluate.main(trained_run, bootstrap=50)
    assert again["test"] == first["test"]
    assert again["experts"] == first["experts"]


def test_prediction_of_a_saved_image_equals_the_evaluation(trained_run, tmp_path):
    table = pd.read_csv(trained_run / "predictions.csv")
    study = phantom_source(train=48, val=32, test=40, size=64).test[5]
    Image.fromarray(study.image).save(tmp_path / "five.png")
    output = predict.main(trained_run, images=[tmp_path / "five.png"], text=study.text)
    columns = [name for name in output if name.startswith("prob:")]
    expected = table[table["id"] == "test-00005"][columns].to_numpy()[0]
    assert output[columns].to_numpy()[0] == pytest.approx(expected, abs=1e-5)
    without = predict.main(trained_run, images=[tmp_path / "five.png"])
    assert without[columns].to_numpy()[0] != pytest.approx(expected, abs=1e-3)


def test_prediction_of_a_csv_reads_images_beside_it(trained_run, tmp_path):
    Image.fromarray(np.zeros((50, 80), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "list.csv").write_text("image,label\na.png,unused\n")
    output = predict.main(trained_run, csv=tmp_path / "list.csv")
    assert list(output["image"]) == [str(tmp_path / "a.png")]
    assert output.filter(like="prob:").to_numpy().min() >= 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give either images, a text, or both, or a csv"),
        ({"images": ["a.png", "b.png"], "text": "note"}, "text belongs to a single image, got 2"),
    ],
)
def test_prediction_refuses_what_it_cannot_read(trained_run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(name)
    with pytest.raises(ValueError, match=message):
        predict.main(trained_run, **arguments)


def test_prediction_names_a_missing_csv_column(trained_run, tmp_path):
    (tmp_path / "list.csv").write_text("picture\na.png\n")
    with pytest.raises(ValueError, match=r"lacks the column 'image'; it has \['picture'\]"):
        predict.main(trained_run, csv=tmp_path / "list.csv")
    with pytest.raises(ValueError, match=r"absent\.csv' does not exist"):
        predict.main(trained_run, csv=tmp_path / "absent.csv")


def test_a_folder_that_is_no_run_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"is .* the folder of a finished run"):
        evaluate.main(tmp_path)


def test_seeds_are_aggregated_by_a_t_interval(tmp_path):
    config = replace(small_config(tmp_path / "run", epochs=1), seeds=(0, 1))
    train.main(config)
    metrics = evaluate.main(tmp_path / "run", bootstrap=10)
    each = [json.loads((tmp_path / "run" / f"seed-{s}" / "metrics.json").read_text()) for s in (0, 1)]
    values = [m["test"]["macro_auroc"] for m in each]
    assert metrics["test"]["macro_auroc"]["mean"] == pytest.approx(np.mean(values))
    assert metrics["runs"] == ["seed-0", "seed-1"]
    assert metrics["test"]["seeds"] == [0, 1]


def test_the_command_line_runs_every_stage(tmp_path, capsys):
    run = tmp_path / "run"
    sizes = [
        "--train-studies",
        "32",
        "--val-studies",
        "24",
        "--test-studies",
        "24",
        "--image-size",
        "64",
        "--epochs",
        "1",
    ]
    cli.main(["train", "--preset", "tiny", "--out", str(run), "--accelerator", "cpu", *sizes])
    cli.main(["evaluate", str(run), "--bootstrap", "20"])
    cli.main(["report", str(run)])
    out = capsys.readouterr().out
    assert f"trained: {run}" in out
    assert "test macro AUROC" in out
    assert f"open {run / 'report.html'}" in out
    assert "<svg" in (run / "report.html").read_text()
    assert Config.from_json(json.loads((run / "config.json").read_text())).data.phantom.train_studies == 32
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "a.png")
    cli.main(["predict", str(run), "--image", str(tmp_path / "a.png"), "--out", str(tmp_path / "new" / "own.csv")])
    assert len(pd.read_csv(tmp_path / "new" / "own.csv")) == 1


def test_errors_end_the_command_line_with_one_line(tmp_path):
    with pytest.raises(SystemExit, match=r"^ValueError: .*config\.json does not exist"):
        cli.main(["evaluate", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"ValueError: preset must be one of paper, tiny, convirt, .*, got 'huge'"):
        cli.main(["train", "--preset", "huge"])


def test_help_names_the_stages_and_the_options(capsys):
    with pytest.raises(SystemExit):
        cli.main([])
    listed = capsys.readouterr().out
    assert all(stage in listed for stage in ("train", "evaluate", "predict", "report"))
    with pytest.raises(SystemExit):
        cli.main(["train", "--preset", "paper", "--help"])
    shown = capsys.readouterr().out
    assert "--image-encoder" in shown
    assert "vit_large_patch14_clip_224" in shown
    assert "--lr-encoder" in shown


def test_presets_are_what_the_paper_prints_and_a_small_one():
    printed = cli.parse_train(["--preset", "paper"])
    assert printed == paper()
    assert (printed.model.dim, printed.model.num_experts, printed.model.top_k) == (512, 8, 2)
    assert (printed.train.lr_encoder, printed.train.lr_head, printed.train.weight_decay) == (3e-5, 1e-4, 0.1)
    assert (printed.train.epochs, printed.train.warmup_epochs, printed.train.batch_size) == (100, 10, 32)
    assert (printed.train.patience, printed.train.balance_weight, len(printed.seeds)) == (15, 0.01, 3)
    changed = cli.parse_train(["--text-encoder", "some/folder", "--label-columns", "a", "b"])
    assert changed.model == replace(tiny().model, text_encoder="some/folder")
    assert changed.data.manifest.label_columns == ("a", "b")


@pytest.mark.parametrize(
    "options",
    [
        {"variant": "no-moe"},
        {"variant": "no-fusion"},
        {"variant": "vision-only"},
        {"route_on": "token"},
        {"cross_attention": "summary"},
    ],
    ids=str,
)
def test_every_kind_of_model_is_evaluated_and_reported(tmp_path, options):
    config = small_config(tmp_path / "run", epochs=1)
    config = replace(config, model=replace(config.model, **options))
    train.main(config)
    metrics = evaluate.main(config.out, bootstrap=10)
    sparse = options.get("variant") not in ("no-moe", "vision-only")
    assert (metrics["experts"] is not None) == sparse
    if sparse:
        assert sum(metrics["experts"]["load"]) == pytest.approx(1)
        table = pd.read_csv(config.out / "predictions.csv")
        usage = table.loc[table["split"] == "test", [f"usage:{e}" for e in range(4)]]
        assert usage.mean().tolist() == pytest.approx(metrics["experts"]["load"], abs=1e-6)
    examples = np.load(config.out / "examples.npz")
    assert ("attention" in examples) == (options.get("variant") not in ("no-fusion", "vision-only"))
    page = write_report(config.out).read_text()
    assert ("Experts by disease" in page) == sparse
