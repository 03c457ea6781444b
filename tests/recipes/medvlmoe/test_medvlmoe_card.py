"""The model card of a run: filled from its files, and safe Markdown whatever the names are."""

import contextlib
import json
import re
import shutil
import sys

import pytest

from recipes.data import __main__ as data_cli
from recipes.data.terms import terms_of
from recipes.medvlmoe.card import CARD, write_card
from tests.recipes.json_files import change_json
from tests.recipes.medvlmoe.report_runs import write_run

pytestmark = pytest.mark.slow


def test_evaluation_writes_a_card_with_the_figures_of_the_run(trained_run):
    text, metrics = (trained_run / CARD).read_text(), json.loads((trained_run / "metrics.json").read_text())
    head, _, body = text.removeprefix("---\n").partition("\n---\n")
    assert "library_name: moekit" in head
    assert f"value: {round(metrics['test']['macro_auroc'], 4)}" in head
    assert "not-a-medical-device" in head
    assert "**Not a medical device.**" in body
    assert "drawn by a program" in body
    low, high = metrics["test"]["macro_auroc_ci95"]
    assert f"| {metrics['test']['macro_auroc']:.3f} | {low:.3f} to {high:.3f} |" in body
    for kind in ("uncalibrated", "calibrated"):
        assert f"| {kind} | {metrics['calibration'][kind]['nll']:.3f} |" in body
    data = json.loads((trained_run / "data.json").read_text())
    assert data["test"]["ids"][:8] in body
    assert "no patient is in two of them" in body
    assert "Images: not checked." in body
    assert not re.search("{{|{%|None|undefined_", body)


def test_the_outcome_of_the_leakage_check_is_in_the_card(trained_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    sizes = ["--train-studies", "48", "--val-studies", "32", "--test-studies", "40"]
    with contextlib.suppress(SystemExit):  # status 1 if two drawn images are nearly equal
        data_cli.main(["check", *sizes, "--workers", "0", "--run", str(run)])
    counts = json.loads((run / "leakage.json").read_text())["counts"]
    assert counts["patient"] == 0
    text = write_card(run).read_text()
    assert f"{counts['pixels']} pairs of equal and {counts['twins']} of nearly equal images" in text
    with pytest.raises(SystemExit, match="is not as it was when"):
        data_cli.main(["check", "--train-studies", "20", "--run", str(run)])


def test_names_cannot_break_the_page(tmp_path):
    run = write_run(tmp_path / "run")
    text = write_card(run).read_text()
    assert "Mass &lt;b&gt;" in text
    assert "<b>" not in text

    def change(metrics):
        metrics["run"]["notes"] = ["a | b\n# c"]

    change_json(run / "metrics.json", change)
    assert "- a \\| b \\# c" in write_card(run).read_text()


def test_the_card_is_plain_markdown_without_the_hub(trained_run, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert write_card(run).read_text().startswith("# small\n")


def test_a_damaged_run_is_named(trained_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    change_json(run / "metrics.json", lambda metrics: metrics["test"].pop("per_class"))
    with pytest.raises(ValueError, match=r"metrics\.json"):
        write_card(run)
    (run / "metrics.json").unlink()
    with pytest.raises(ValueError, match=r"metrics\.json does not exist"):
        write_card(run)


@pytest.mark.parametrize(
    ("name", "terms"),
    [
        ("mimic-cxr", "PhysioNet"),
        ("breastmnist_64", "CC BY 4.0"),
        ("dermamnist_64", "CC BY-NC"),
        ("phantom", "Apache"),
        ("my_set", "not known here"),
    ],
)
def test_terms_of_public_sets(name, terms):
    assert terms in terms_of(name)
