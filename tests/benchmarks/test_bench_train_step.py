"""A training step as a benchmark, at a small size."""

import json

import pytest

from benchmarks import __main__ as cli
from benchmarks.train_step.command import page


@pytest.mark.parametrize("recipe", ["medvlmoe", "medmoe"])
def test_a_step_is_measured_and_written(tmp_path, recipe):
    options = ["train-step", "--recipe", recipe, "--preset", "tiny", "--device", "cpu", "--batch-size", "4"]
    options += ["--out", str(tmp_path)]
    for _ in range(2):
        assert cli.main(options) == 0
    first, second = (json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines())
    assert first["loss"] == pytest.approx(second["loss"])
    assert len(first["seconds"]) == 1
    assert first["peak_bytes"] > 1e8
    assert 0 < first["moe_seconds"] < first["seconds"][0]
    assert first["activation_checkpointing"]
    text = (tmp_path / "README.md").read_text()
    assert text.count(f"| {recipe} | tiny | ") == 2
    assert "Not measured on a GPU." in text


def test_a_record_of_a_gpu_is_no_longer_unmeasured():
    record = {
        "preset": "paper", "device": "cuda", "batch_size": 32, "precision": "16-mixed", "compile": False,
        "activation_checkpointing": False, "parameters": 722_000_000, "seconds": [0.5, 0.4, 0.6],
        "peak_bytes": 40e9, "moe_seconds": 0.05, "loss": 0.7,
        "environment": {
            "device": "a GPU", "threads": 1, "command": "c", "commit": "a", "date": "d", "versions": {"torch": "2.14"},
        },
    }  # fmt: skip
    text = page([record])
    assert "| a GPU | medvlmoe | paper | 722.0 | 32 | 16-mixed | no | no | 0.5 | 64 | 10.0% | 40.00 |" in text
    assert "Not measured" not in text


@pytest.mark.parametrize("option", ["--batch-size", "--steps"])
def test_a_step_of_nothing_is_refused(tmp_path, capsys, option):
    assert cli.main(["train-step", "--device", "cpu", option, "0", "--out", str(tmp_path)]) == 2
    assert f"{option} must be at least 1, got 0" in capsys.readouterr().err
