"""Each tiny preset trains and is read by the later stages."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from recipes.medvlmoe import evaluate, external, predict, train
from recipes.medvlmoe.baselines import BASELINES
from recipes.medvlmoe.config import DataConfig, ManifestConfig
from recipes.medvlmoe.report import write_report
from recipes.shared.compare import compare_runs
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
    if name in ("convirt", "chexzero", "biobert-vqa"):  # one of each kind of model
        check_later_stages(name, run, tmp_path)


def check_later_stages(name, run, folder):
    """``predict``, ``external`` and ``compare`` of a run without experts."""
    rows = ["image,report,sick,split"]
    for i, split in enumerate(("train", "train", "val", "val", "test", "test")):
        Image.fromarray(np.full((64, 64), 30 * i, np.uint8)).save(folder / f"{i}.png")
        rows.append(f"{i}.png,fever and a cough,{i % 2},{split}")
    (folder / "set.csv").write_text("\n".join(rows) + "\n")
    image, note = [folder / "3.png"], "fever and a cough"
    table = predict.main(run, images=image)
    assert table.filter(like="calibrated:").notna().to_numpy().all()
    if name == "biobert-vqa":
        with pytest.warns(UserWarning, match="have no image, and .* was trained without --drop-image"):
            alone = predict.main(run, text=note)
        both = predict.main(run, images=image, text=note)
        probs = [one.filter(like="prob:").to_numpy() for one in (table, alone, both)]
        assert not np.allclose(probs[0], probs[2], atol=1e-6)
        assert not np.allclose(probs[1], probs[2], atol=1e-6)
    else:
        option = "--classifier zero-shot" if name == "chexzero" else "--variant vision-only"
        with pytest.raises(
            ValueError, match=rf"diagnoses from the image alone \({option}\).*leave it out \(--text\)\.$"
        ):
            predict.main(run, images=image, text=note)
    with pytest.raises(ValueError, match=r"overlays \(--overlays\): .* has no attention map"):
        predict.main(run, images=image, overlays=folder / "overlays")
    trained_class = evaluated_classes(run)[0]
    manifest = ManifestConfig(label_columns=("sick",), text_column="report")
    data = DataConfig(data=str(folder / "set.csv"), manifest=manifest)
    scores = external.main(run, data, label_map=(f"{trained_class}=sick",), split="all", bootstrap=10)
    assert scores["scores"]["studies"] == 6
    with pytest.raises(ValueError, match=r"bootstrap \(--bootstrap\) must be at least 100"):
        compare_runs(run, run, bootstrap=10)
    same = compare_runs(run, shutil.copytree(run, folder / "copy"), bootstrap=100)
    assert same["macro"]["difference"] == 0


def evaluated_classes(run):
    return json.loads((run / "metrics.json").read_text())["run"]["classes"]
