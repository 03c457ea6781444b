"""What the tables make of their cells: means, differences, what is missing; cells are drawn, not run."""

import csv
import json

import numpy as np
import pytest

from recipes.medmoe.__main__ import main
from recipes.medmoe.tables import sweep
from recipes.medmoe.tables.printed import AVERAGES_1, COLUMN, OURS, SETS, TABLE_1, TABLE_2, notes_1, notes_2, table_2
from tests.recipes.medmoe.tables.fake_cells import fake_sweep

SHARES = {"medmoe": 0.8, "gloria": 0.6, "clip": 0.8, "mine-released": 0.3}
SETS_GIVEN = ["--sets", "a=--set phantom-ct", "b=--set phantom-mri"]
MODELS = ["--models", "medmoe", "gloria", "clip", "--bootstrap", "100"]


def rows(path):
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.fixture
def swept(tmp_path, monkeypatch):
    """Runs a command with drawn cells and returns its folder."""

    def run(name, *options, shares=SHARES, failing=()):
        monkeypatch.setattr(sweep, "run_sweep", fake_sweep(shares, failing))
        main([name, "--out", str(tmp_path), *MODELS, *options])
        return tmp_path

    return run


def test_a_better_model_is_ahead_beyond_its_interval_and_an_equal_one_is_not(swept):
    folder = swept("table1", *SETS_GIVEN)
    table = {(row["set"], row["model"]): row for row in rows(folder / "table1.csv")}
    mean = table["mean of the drawn sets", "gloria"]
    assert float(mean["difference"]) == pytest.approx(
        np.mean([float(table[s, "gloria"]["accuracy"]) - float(table[s, "medmoe"]["accuracy"]) for s in ("a", "b")])
    )
    assert float(mean["difference_high"]) < 0
    assert float(mean["p"]) < float(mean["p_holm"]) < 0.05
    assert (
        float(mean["difference_over_seeds_low"]) < float(mean["difference"]) < float(mean["difference_over_seeds_high"])
    )
    by_seed = [
        float(row["accuracy"])
        for row in rows(folder / "table1-seeds.csv")
        if (row["set"], row["model"]) == ("a", "gloria")
    ]
    assert len(by_seed) == 3
    assert float(table["a", "gloria"]["accuracy"]) == pytest.approx(np.mean(by_seed))
    assert float(table["a", "gloria"]["sd_over_seeds"]) == pytest.approx(np.std(by_seed, ddof=1))
    assert float(table["a", "gloria"]["balanced_accuracy"]) == pytest.approx(SHARES["gloria"])
    assert float(mean["balanced_accuracy"]) == pytest.approx(SHARES["gloria"])
    assert float(table["a", "gloria"]["sd_over_prompts"]) == pytest.approx(0.01)  # mean of 0, 0.01 and 0.02
    assert mean["sd_over_prompts"] == ""
    assert "| 1 of 60 images |" in (folder / "table1.md").read_text()
    equal = table["mean of the drawn sets", "clip"]  # drawn with the same numbers as MedMoE
    assert float(equal["difference"]) == 0
    assert float(equal["p"]) == 1


def test_released_weights_are_a_row_without_seeds(swept, tmp_path):
    (tmp_path / "weights.pt").touch()
    folder = swept("table1", *SETS_GIVEN, "--released", f"mine=--model unimed:{tmp_path / 'weights.pt'}",
                   "biomedclip=--model biovil:nowhere.pt")  # fmt: skip
    table = {(row["set"], row["model"]): row for row in rows(folder / "table1.csv")}
    assert float(table["a", "mine-released"]["difference"]) == pytest.approx(
        float(table["a", "mine-released"]["accuracy"]) - float(table["a", "medmoe"]["accuracy"])
    )
    assert table["a", "mine-released"]["seeds"] == "1"
    assert "no weights at nowhere.pt" in table["rsna", "biomedclip-released"]["notes"]
    assert "| model | biomedclip-released | no weights at nowhere.pt |" in (folder / "table1.md").read_text()
    settings = json.loads((folder / "table1.json").read_text())
    assert settings["data"] == "phantom"
    cells = {row["cell"] for row in rows(folder / "table1-cells.csv")}
    assert "zero-shot/a/mine-released/released" in cells


def test_what_failed_is_a_row_that_says_so(swept):
    folder = swept("table1", *SETS_GIVEN, failing=("pretrain/gloria/seed-1", "zero-shot/b/clip/seed-2"))
    table = {(row["set"], row["model"]): row for row in rows(folder / "table1.csv")}
    assert "seed 1: pretraining failed: ValueError: broken" in table["a", "gloria"]["notes"]
    assert table["a", "gloria"]["seeds"] == "2"
    assert "seed 2: failed: ValueError: broken" in table["b", "clip"]["notes"]
    assert "failed: ValueError: broken" in (folder / "table1.md").read_text()


def test_hit_rates_have_a_mean_over_seeds(swept):
    text = (swept("table1", *SETS_GIVEN) / "table1.md").read_text()
    assert "| mean ± sd of 3 seeds, all findings | 0.400 ± 0.000 |" in text
    text = (swept("table1", *SETS_GIVEN, "--no-maps") / "table1.md").read_text()
    assert "Not played (--no-maps)." in text


def test_weights_that_were_trained_anew_are_evaluated_anew(swept):
    folder = swept("table1", *SETS_GIVEN)
    record = folder / "cells/zero-shot/a/clip/seed-0/record.json"
    assert json.loads(record.read_text())["attempt"] == "1"
    (folder / "runs/pretrain/clip/seed-0/checkpoints/best.ckpt").write_text("other weights")
    swept("table1", *SETS_GIVEN)
    assert json.loads(record.read_text())["attempt"] == "2"
    assert json.loads((folder / "cells/zero-shot/a/medmoe/seed-0/record.json").read_text())["attempt"] == "1"


def test_probes_are_paired_by_seed_and_subset(swept):
    folder = swept("table2", *SETS_GIVEN, "--subsets", "3", "--fractions", "0.1", "1")
    table = {(row["set"], row["model"], row["fraction"]): row for row in rows(folder / "table2.csv")}
    row = table["a", "gloria", "0.1"]
    assert (row["values"], row["studies_from"], row["studies_to"]) == ("9", "6", "8")
    assert float(row["accuracy"]) == pytest.approx(0.6 - 0.1 - 0.01)
    assert float(row["difference"]) == pytest.approx(-0.2)
    assert float(row["difference_low"]) == pytest.approx(-0.2)  # the same for every seed and subset
    assert "fitted on nothing" in (folder / "table2.md").read_text()


def test_the_papers_figures_are_the_papers():
    assert all(len(values) == len(SETS) for values in TABLE_1.values())
    assert all(abs(sum(values) / 9 - AVERAGES_1[model]) < 0.02 for model, values in TABLE_1.items())
    assert all(len(values) == 4 for values in TABLE_2.values())
    assert table_2(OURS, "acl", 0.01) == 85.89
    first, *_ = notes_1()
    assert "6/9" in first
    assert "best on 4: " in first
    assert "unimed-clip has 89.61" in notes_2()[0]
    assert "best in 4 of its 12 cells" in notes_2()[1]
    assert COLUMN.endswith("not reproduced here")
