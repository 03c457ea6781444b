"""The page of all seeds: its figures are those of the files, and it links to the page of every seed."""

import json

import pytest

from recipes.medvlmoe import __main__ as cli
from recipes.medvlmoe.report import write_seeds_report
from recipes.shared.scores.seeds import aggregate_seeds
from tests.recipes.json_files import change_json, write_json
from tests.recipes.medvlmoe.report_runs import Elements, write_run


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """Two fabricated runs that differ in their seed, summed up."""
    out = tmp_path_factory.mktemp("seeds") / "run"
    out.mkdir()
    each = []
    for seed in (0, 1):
        run = write_run(out / f"seed-{seed}", seed=seed)
        change_json(run / "metrics.json", lambda value, seed=seed: value["run"].update(seed=seed, name=f"seed-{seed}"))
        each.append(json.loads((run / "metrics.json").read_text()))
    write_json(out / "metrics.json", {"runs": ["seed-0", "seed-1"], "test": aggregate_seeds(each)})
    return out


def test_one_page_shows_all_seeds(seeds, capsys):
    cli.main(["report", str(seeds)])
    assert f"open {seeds / 'report.html'}" in capsys.readouterr().out
    text = (seeds / "report.html").read_text(encoding="utf-8")
    elements = Elements(text).seen
    links = [attributes["href"] for name, attributes in elements if name == "a"]
    assert links == ["seed-0/report.html", "seed-1/report.html"]
    assert all((seeds / link).is_file() for link in links)
    macro = json.loads((seeds / "metrics.json").read_text())["test"]["macro_auroc"]
    low, high = macro["ci95"]
    assert f"<dd>{macro['mean']:.3f}<small>95% t-interval {low:.3f} to {high:.3f}</small>" in text
    for value in macro["values"]:
        assert text.count(f"{value:.3f}</td>") >= 2  # in the table of classes and in that of seeds
    assert "Mass &lt;b&gt;" in text
    assert "No AUROC in every seed: Hernia" in text
    assert [attributes["aria-label"] for name, attributes in elements if attributes.get("role") == "img"] == [
        "Validation macro AUROC", "Validation loss", "Training loss",
    ]  # fmt: skip
    assert "seed-1</span>" in text


def test_a_seed_without_its_files_is_named(seeds, tmp_path):
    write_json(tmp_path / "metrics.json", json.loads((seeds / "metrics.json").read_text()))
    with pytest.raises(ValueError, match=r"seed-0/config\.json: the file is missing"):
        write_seeds_report(tmp_path)
    write_json(tmp_path / "metrics.json", {"runs": [], "test": {"n": 0}})
    with pytest.raises(ValueError, match=r'metrics\.json: "test" lacks the field "seeds"'):
        write_seeds_report(tmp_path)


def test_the_page_shows_calibration_and_means_over_sets_of_classes(tmp_path):
    out, each = tmp_path, []
    for seed, nll in ((0, 0.5), (1, 0.3)):
        run = write_run(out / f"seed-{seed}", seed=seed)
        metrics = json.loads((run / "metrics.json").read_text())
        metrics["run"]["seed"] = seed
        scores = {"nll": nll, "brier": 0.2, "ece": 0.1, "ece_floor": 0.04}
        after = scores | {"nll": nll / 2, "ece": None if seed else 0.05}
        temperatures = {name: 1.5 + 0.25 * place * seed for place, name in enumerate(metrics["run"]["classes"])}
        metrics["calibration"] = {"temperature": temperatures, "uncalibrated": scores, "calibrated": after}
        metrics["test"]["class_sets"] = {"competition": {"classes": ["a", "b"], "macro_auroc": 0.6 + seed / 10}}
        write_json(run / "metrics.json", metrics)
        each.append(metrics)
    write_json(out / "metrics.json", {"runs": ["seed-0", "seed-1"], "test": aggregate_seeds(each)})
    text = write_seeds_report(out).read_text(encoding="utf-8")
    assert "0.400 → 0.200" in text  # the mean NLL
    assert "0.500 → 0.250" in text
    assert ">1.50</td>" in text
    assert ">1.50 to 2" in text
    assert "Mean of the 2 competition classes" in text
    assert "0.650" in text
