"""The paired comparison over seeds, and the page, of `python -m benchmarks experts-alive`."""

import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks.__main__ import main
from benchmarks.experts_alive.command import PAGE
from benchmarks.experts_alive.inferiority import pooled_difference
from benchmarks.experts_alive.table import write_page


def predictions(signal: float, seed: int, studies: int = 400) -> dict:
    labels = (np.arange(studies) % 2).astype(np.float32)[:, None]
    noise = np.random.default_rng(seed).normal(size=(studies, 1))
    return {"probs": labels * signal + noise, "labels": labels, "groups": [str(i // 2) for i in range(studies)]}


def test_the_difference_is_that_of_the_mean_aurocs_over_seeds():
    before, after = ([predictions(signal, seed) for seed in range(3)] for signal in (1.0, 2.0))
    result = pooled_difference(before, after, resamples=200)
    means = [np.mean([roc_auc_score(run["labels"], run["probs"]) for run in runs]) for runs in (before, after)]
    assert result["difference"] == pytest.approx(means[1] - means[0])
    assert result["ci95"][0] < result["difference"] < result["ci95"][1]
    assert (result["verdict"], result["patients"]) == ("not inferior", 200)
    assert pooled_difference(after, before, resamples=200)["verdict"] == "inferior"


def test_few_patients_leave_it_undecided_and_undefined_classes_are_left_out():
    before, after = [predictions(1.0, 0, 12)], [predictions(1.0, 1, 12)]
    for run in (*before, *after):
        run["labels"] = np.hstack([run["labels"], np.zeros((12, 1)), np.full((12, 1), np.nan)])
        run["probs"] = np.hstack([run["probs"]] * 3)
    assert pooled_difference(before, after, resamples=200)["verdict"] == "undecided"


def test_the_committed_page_is_that_of_its_figures(tmp_path):
    lines = [json.loads(line) for line in PAGE.with_name("runs.jsonl").read_text().splitlines()]
    write_page(lines, tmp_path / "page.md")
    assert (tmp_path / "page.md").read_text() == PAGE.read_text()


def test_a_missing_folder_of_sets_is_named(capsys):
    assert main(["experts-alive"]) == 2
    assert "--data-root must name the folder of the sets" in capsys.readouterr().err
