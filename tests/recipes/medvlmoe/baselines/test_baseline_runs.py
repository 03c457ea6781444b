"""Each tiny preset trains and is read by the later stages."""

import json

import pandas as pd
import pytest

from recipes.medvlmoe import evaluate, train
from recipes.medvlmoe.baselines import BASELINES
from recipes.medvlmoe.report import write_report
from tests.recipes.medvlmoe.baselines.small import small_baseline


def history(run):
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", BASELINES)
def test_a_tiny_preset_trains_evaluates_predicts_and_reports(name, tmp_path):
    run = tmp_path / "run"
    config = small_baseline(name, run)
    train.main(config)
    stage = run / "contrastive"
    assert stage.is_dir() == (name not in ("biobert-vqa", "chexzero"))
    for folder in [run, *([stage] if stage.is_dir() else [])]:
        losses = [record["train_loss"] for record in history(folder)]
        assert losses[-1] < losses[0]
    metrics = evaluate.main(run, bootstrap=20)
    assert metrics["run"]["preset"] == f"{name}-tiny"
    assert 0 <= metrics["test"]["macro_auroc"] <= 1
    assert metrics["experts"] is None
    table = pd.read_csv(run / "predictions.csv")
    assert not any(column.startswith(("experts", "gates", "usage")) for column in table.columns)
    assert "no mixture of experts" in write_report(run).read_text()
