"""The tables of MedMoE by their commands, on pretrainings of a few steps."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from recipes.medmoe.__main__ import main
from recipes.medmoe.tables.printed import COLUMN

SMALL = ["--train-studies", "48", "--val-studies", "24", "--test-studies", "40", "--image-size", "64", "--dim", "32"]
SMALL += ["--epochs", "1", "--batch-size", "16", "--accelerator", "cpu", "--num-experts", "6"]
SETS = ["--sets", "ct=--set phantom-ct", "mri=--set phantom-mri --near-duplicates leave-out", "mine=--csv nowhere.csv"]
CLASSES = ("liver mass", "kidney cyst", "kidney stone", "normal")
OPTIONS = ["--models", "medmoe", "gloria", "clip", "--seeds", "0", "--bootstrap", "100"]

pytestmark = pytest.mark.slow  # three pretrainings and their evaluations: a minute


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("tables") / "out"
    main(["table1", "--out", str(out), *OPTIONS, *SETS, "--scorings", "mean", "combined", "--", *SMALL])
    return out


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_table_1_has_models_sets_and_what_is_absent(folder):
    table = {(row["set"], row["model"]): row for row in rows(folder / "table1.csv")}
    for model in ("medmoe", "gloria", "clip"):
        assert 0 <= float(table["ct", model]["accuracy"]) <= 1
        assert float(table["ct", model]["accuracy_low"]) <= float(table["ct", model]["accuracy"])
    assert float(table["ct.combined", "medmoe"]["accuracy"]) >= 0
    assert "it has no local scores" in table["ct.combined", "clip"]["notes"]
    assert "no nowhere.csv (--csv)" in table["mine", "medmoe"]["notes"]
    assert ("ct", "quiltnet-released") not in table  # the paper prints nothing of it
    assert "--released quiltnet='--model open_clip:FOLDER'" in table["rsna", "quiltnet-released"]["notes"]
    assert table["rsna", "quiltnet-released"][COLUMN] == "45.45"
    assert table["rsna", "medmoe"][COLUMN] == "78.32"
    assert ("rsna", "gloria") not in table  # trained here: not the paper's weights
    assert "--set rsna --root FOLDER" in table["rsna", "medmoe"]["notes"]


def test_means_and_differences_are_computed_from_the_predictions(folder):
    table = {(row["set"], row["model"]): row for row in rows(folder / "table1.csv")}
    value = {key: float(row["accuracy"]) for key, row in table.items() if row["accuracy"]}
    for model in ("medmoe", "gloria", "clip"):
        mean = value["mean of the drawn sets", model]
        assert mean == pytest.approx((value["ct", model] + value["mri", model]) / 2)
        run = folder / "runs" / "zero-shot" / "ct" / model / "seed-0"
        predictions = rows(run / "predictions.csv")
        right = [
            max(CLASSES, key=lambda name: float(one[f"prob:{name}"]))
            == next(name.removeprefix("label:") for name in one if name.startswith("label:") and one[name] == "1.0")
            for one in predictions
        ]
        assert value["ct", model] == pytest.approx(sum(right) / len(right))
        assert json.loads((run / "result.json").read_text())["accuracy"] == pytest.approx(value["ct", model])
        by_class = {name: [] for name in CLASSES}
        for one, hit in zip(predictions, right, strict=True):
            by_class[next(name for name in CLASSES if one[f"label:{name}"] == "1.0")].append(hit)
        recalls = [sum(hits) / len(hits) for hits in by_class.values() if hits]
        assert float(table["ct", model]["balanced_accuracy"]) == pytest.approx(sum(recalls) / len(recalls))
        spread = json.loads((run / "result.json").read_text())["prompt_spread"]["accuracy"]
        assert float(table["ct", model]["sd_over_prompts"]) == pytest.approx(spread["sd"])
    difference = float(table["mri", "clip"]["difference"])
    assert difference == pytest.approx(value["mri", "clip"] - value["mri", "medmoe"])
    assert table["mri", "medmoe"]["difference"] == ""


def test_the_text_of_table_1_says_where_figures_come_from(folder):
    text = (folder / "table1.md").read_text()
    assert "best on 4: CheXpert (5x200), RSNA, MedIMeta Axial, MedIMeta Coronal" in text
    assert "no experts to choose from" in text
    assert "hit rate" in text
    cells = {row["cell"]: row for row in rows(folder / "table1-cells.csv")}
    assert cells["pretrain/clip/seed-0"]["data"]
    assert cells["zero-shot/ct/medmoe/seed-0"]["data"] != cells["zero-shot/mri/medmoe/seed-0"]["data"]
    assert all(row["commit"] for row in cells.values())
    assert "phantom-ct, checksum" in text
    assert "equal or nearly equal to one of the 48 pretraining images" in text
    overlap = [
        json.loads((folder / f"cells/zero-shot/{name}/clip/seed-0/record.json").read_text())["result"]
        for name in ("ct", "mri")
    ]
    assert [one["near_duplicates"]["mode"] for one in overlap] == ["count", "leave-out"]
    assert all(one["near_duplicates"]["pretraining_images"] == 48 for one in overlap)
    assert (folder / "table1.png").stat().st_size > 5000
    maps = rows(folder / "table1-maps.csv")
    assert {row["model"] for row in maps} == {"medmoe", "gloria", "clip"}


def test_the_same_command_runs_nothing_again_and_a_new_pretraining_is_evaluated_anew(folder, tmp_path, capsys):
    out = tmp_path / "copy"
    shutil.copytree(folder, out)
    before = (out / "table1.md").read_text()
    arguments = [*OPTIONS, *SETS, "--scorings", "mean", "combined"]
    stamp = (out / "runs/pretrain/clip/seed-0/checkpoints/best.ckpt").stat().st_mtime_ns
    main(["table1", "--out", str(out), "--collect", *arguments, "--", *SMALL])
    assert (out / "table1.md").read_text() == before
    record = out / "cells/zero-shot/ct/clip/seed-0/record.json"
    attempt = json.loads(record.read_text())["attempt"]
    other = json.loads(record.read_text())
    other["result"]["weights"] = "of another pretraining"
    record.write_text(json.dumps(other))
    main(["table1", "--out", str(out), *arguments, "--", *SMALL])
    assert json.loads(record.read_text())["attempt"] != attempt
    assert (out / "runs/pretrain/clip/seed-0/checkpoints/best.ckpt").stat().st_mtime_ns == stamp
    assert (out / "table1.md").read_text() == before
    with pytest.raises(SystemExit, match="were run with other settings"):
        main(["table1", "--out", str(out), *arguments, "--", *SMALL, "--lr", "0.5"])


def test_table_2_and_figure_3_take_the_pretrainings_of_table_1(folder):
    stamp = (folder / "runs/pretrain/medmoe/seed-0/checkpoints/best.ckpt").stat().st_mtime_ns
    sets = ["--sets", "ct=--set phantom-ct"]
    options = ["--fractions", "0.5", "1.0", "--subsets", "2"]
    main(["table2", "--out", str(folder), *OPTIONS, *sets, *options, "--", *SMALL])
    main(["figure3", "--out", str(folder), *OPTIONS, "--", *SMALL])
    assert (folder / "runs/pretrain/medmoe/seed-0/checkpoints/best.ckpt").stat().st_mtime_ns == stamp
    table = [row for row in rows(folder / "table2.csv") if row["set"] == "ct" and row["accuracy"]]
    assert [(row["model"], row["fraction"], row["values"]) for row in table] == [
        (model, fraction, values)
        for model in ("medmoe", "gloria", "clip")
        for fraction, values in (("0.5", "2"), ("1.0", "1"))
    ]
    by_key = {(row["model"], row["fraction"]): row for row in table}
    gain = float(by_key["clip", "1.0"]["accuracy"]) - float(by_key["medmoe", "1.0"]["accuracy"])
    assert float(by_key["clip", "1.0"]["difference"]) == pytest.approx(gain)
    text = (folder / "table2.md").read_text()
    assert "fitted on the share of training alone" in text
    assert "near-duplicates: " in text
    assert "unimed-clip has 89.61" in text
    figure = (folder / "figure3.md").read_text()
    assert "Word maps of medmoe, gloria, clip on the same studies" in figure
    for name in ("figure3.png", "figure3-routing.png", "table2.png"):
        assert (folder / name).stat().st_size > 5000


def test_options_that_no_model_reads_or_that_the_table_decides_are_refused(tmp_path):
    out = ["--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="--preset cannot be among the options of pretrain"):
        main(["table1", *out, "--", "--preset", "tiny"])
    with pytest.raises(SystemExit, match="must hold medmoe"):
        main(["table1", *out, "--models", "clip"])
    with pytest.raises(SystemExit, match=r"no model of the table reads this"):
        main(["table1", *out, "--models", "medmoe", "--", "--findings", "mass"])
    with pytest.raises(SystemExit, match=r"redo \(--redo\) must fit the name of a cell"):
        main(["table1", *out, "--redo", "nothing/*"])
    with pytest.raises(SystemExit, match=r"sets \(--sets\) must be phantom"):
        main(["table1", *out, "--sets", "unheard"])
    with pytest.raises(SystemExit, match="released"):
        main(["table1", *out, "--released", "mine=--model nothing:here"])
