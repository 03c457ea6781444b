"""The recipe on real images with texts of five modalities, where there are some."""

import json
import os
from pathlib import Path

import pytest

from recipes.medmoe.__main__ import parse_pretrain
from recipes.medmoe.pretrain import stage as pretrain
from recipes.medmoe.pretrain.summary import summarise
from recipes.medmoe.probe import stage as probe
from recipes.medmoe.zero_shot import stage as zero_shot

REAL = os.environ.get("MOEKIT_REAL_DATA")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(REAL is None, reason="MOEKIT_REAL_DATA is not set: no real data sets here"),
]


@pytest.fixture(scope="module")
def manifest() -> Path:
    return Path(str(REAL)) / "multimodal_manifest.csv"


@pytest.fixture(scope="module")
def run(manifest, tmp_path_factory) -> Path:
    """The tiny preset, for a few epochs."""
    out = tmp_path_factory.mktemp("real") / "run"
    options = ["--group-column", "group", "--epochs", "5", "--accelerator", "cpu"]
    pretrain.main(parse_pretrain(["--data", str(manifest), "--out", str(out), *options]))
    summarise(out)
    return out


def test_the_router_tells_held_out_modalities(run):
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["routing"]["modalities"] == ["xray", "ct", "ultrasound", "pathology", "fundus"]
    assert sum(metrics["routing"]["counts"]) == 184
    assert metrics["routing"]["accuracy"] >= 0.90


def test_training_learns(run):
    epochs = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert epochs[-1]["train_loss"] < 0.9 * epochs[0]["train_loss"]


def test_zero_shot_classification_runs(run, manifest):
    """Four kinds of lung on ultrasound, by prompts; five epochs promise no accuracy."""
    zero_shot.main(
        run,
        csv=manifest,
        prompts="pocus_lung_us",
        options=("label_column=label", "only=source=pocus_lung_us,split=test", "group_column=group"),
        bootstrap=20,
    )
    (result,) = [json.loads(path.read_text()) for path in (run / "zero_shot").glob("*.json")]
    assert result["studies"] == 76
    assert sum(map(sum, result["confusion"]["matrix"])) == 76
    assert 0 <= result["accuracy_ci95"][0] <= result["accuracy"] <= result["accuracy_ci95"][1] <= 1
    assert result["route_on"] == "image"


def test_a_probe_tells_the_modalities(run, manifest):
    options = ("label_column=modality", "split_column=split", "group_column=group")
    result = probe.main(run, csv=manifest, options=options, fractions=(0.1, 1.0), subsets=2)
    (probed,) = result.values()
    assert [entry["fraction"] for entry in probed["fractions"]] == [0.1, 1.0]
    assert probed["fractions"][1]["accuracy"]["mean"] >= 0.90
