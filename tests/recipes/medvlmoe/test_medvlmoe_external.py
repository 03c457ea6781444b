"""A trained run on another data set: a csv with classes of other names."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from recipes.data.phantom import phantom_source
from recipes.medvlmoe import __main__ as cli
from recipes.medvlmoe import external
from recipes.medvlmoe.config import DataConfig, PhantomConfig
from recipes.shared.scores.metrics import auroc
from tests.recipes.json_files import change_json

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A csv of the small run's own test phantoms, with two of their classes under other names, and patients' sexes."""
    folder = tmp_path_factory.mktemp("elsewhere")
    source = phantom_source(train=48, val=32, test=40, size=64)
    rows = []
    for i, study in enumerate(source.test):
        Image.fromarray(study.image).save(folder / f"{i}.png")
        split, patient = ("test", 100 + i // 2) if i >= 4 else (("train", "val")[i % 2], i)
        rows.append(
            {"image": f"{i}.png", "report": study.text, "First": study.labels[0], "Second": study.labels[1],
             "sex": "FM"[i % 2], "split": split, "patient": patient}
        )  # fmt: skip
    pd.DataFrame(rows).to_csv(folder / "set.csv", index=False)
    return folder / "set.csv", source.classes


def options(elsewhere):
    csv, classes = elsewhere
    return [
        "--data", str(csv), "--text-column", "report", "--group-column", "patient",
        "--label-columns", "First", "Second", "--subgroup-columns", "sex",
        "--label-map", f"{classes[0]}=First", f"{classes[1]}=Second",
    ]  # fmt: skip


def test_weights_temperatures_and_thresholds_are_the_run_s(trained_run, elsewhere, capsys):
    arguments = [*options(elsewhere), "--split", "all", "--bootstrap", "20", "--name", "clinic"]
    cli.main(["external", str(trained_run), *arguments])
    assert "not mapped: " in capsys.readouterr().out
    folder = trained_run / "external" / "clinic"
    metrics = json.loads((folder / "metrics.json").read_text())
    names = list(metrics["label_map"])
    table, own = pd.read_csv(folder / "predictions.csv"), pd.read_csv(trained_run / "predictions.csv")
    own = own[own["split"] == "test"].set_index("id")
    order = [f"test-{int(name.removesuffix('.png')):05d}" for name in table["id"]]
    assert len(table) == 40
    for kind in ("prob", "calibrated", "label"):
        columns = [f"{kind}:{name}" for name in names]
        np.testing.assert_allclose(table[columns], own.loc[order, columns], atol=1e-4)
    scores = metrics["scores"]["per_class"][names[0]]
    assert scores["auroc"] == pytest.approx(auroc(table[f"prob:{names[0]}"], table[f"label:{names[0]}"]))
    own_points = json.loads((trained_run / "metrics.json").read_text())["operating_points"][names[0]]
    point = metrics["operating_points"][names[0]]["youden"]
    assert point["threshold"] == pytest.approx(own_points["youden"]["threshold"], abs=1e-6)
    assert metrics["subgroups"]["sex"]["values"]["F"]["studies"] == 20
    assert set(metrics["not_mapped"]).isdisjoint(names)


def test_the_test_split_alone_by_default(trained_run):
    data = DataConfig(phantom=PhantomConfig(train_studies=8, val_studies=8, test_studies=24), verify_images=True)
    metrics = external.main(trained_run, data, bootstrap=0)
    assert (metrics["scores"]["studies"], metrics["not_mapped"]) == (24, [])
    assert (trained_run / "external" / metrics["data"] / "predictions.csv").is_file()


def test_the_page_shows_scores_and_which_classes_stand_for_which(trained_run, elsewhere):
    cli.main(
        ["external", str(trained_run), *options(elsewhere), "--split", "all", "--bootstrap", "20", "--name", "page"]
    )
    folder = trained_run / "external" / "page"
    metrics, text = json.loads((folder / "metrics.json").read_text()), (folder / "report.html").read_text()
    first, second = metrics["label_map"]
    assert f"{first} = First; {second} = Second" in text
    macro, (low, high) = metrics["scores"]["macro_auroc"], metrics["scores"]["macro_auroc_ci95"]
    assert f"<dd>{macro:.3f}<small>95% CI {low:.3f} to {high:.3f}</small>" in text
    for title in ("Calibration", "Operating points", "Subgroups: sex", "ROC curves"):
        assert f"<h2>{title}</h2>" in text
    own = json.loads((trained_run / "metrics.json").read_text())["calibration"]
    assert metrics["calibration"]["temperature"] == {name: own["temperature"][name] for name in (first, second)}
    assert "not a medical device" in text


def test_every_seed_is_evaluated_and_their_mean_written(trained_run, elsewhere, tmp_path, capsys):
    run = tmp_path / "run"
    for seed in (0, 1):
        shutil.copytree(trained_run, run / f"seed-{seed}", ignore=shutil.ignore_patterns("external"))
        change_json(run / f"seed-{seed}" / "config.json", lambda config, seed=seed: config.update(seeds=[seed]))
    cli.main(["external", str(run), *options(elsewhere), "--bootstrap", "0", "--name", "clinic"])
    assert "over 2 seeds" in capsys.readouterr().out
    folder = run / "external" / "clinic"
    metrics = json.loads((folder / "metrics.json").read_text())
    values = [
        json.loads((run / f"seed-{seed}" / "external" / "clinic" / "metrics.json").read_text())["scores"]["macro_auroc"]
        for seed in (0, 1)
    ]
    assert metrics["scores"]["macro_auroc"]["values"] == values
    text = (folder / "report.html").read_text()
    for seed in (0, 1):
        link = f"../../seed-{seed}/external/clinic/report.html"
        assert f'href="{link}"' in text
        assert (folder / link).is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../out"}, r"name \(--name\) must be the name of a folder, got '\.\./out'"),
        ({"bootstrap": -1}, "bootstrap .* got -1"),
        ({"label_map": ["Nonsense=First"]}, "'Nonsense' in 'Nonsense=First' is no trained class"),
    ],
)
def test_external_validation_refuses(trained_run, change, message):
    with pytest.raises(ValueError, match=message):
        external.main(trained_run, DataConfig(), **change)


def test_a_run_that_was_not_evaluated_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"metrics\.json"):
        external.main(tmp_path, DataConfig())
