"""The verdicts, the page and the cells of `python -m benchmarks experts-help`."""

import pytest

from benchmarks.__main__ import main
from benchmarks.experts_help.command import TRAIN
from benchmarks.experts_help.measure import measure_points
from benchmarks.experts_help.page import verdict, write_page
from recipes.medvlmoe.__main__ import parse_train
from recipes.medvlmoe.tables.options import TableOptions
from recipes.medvlmoe.tables.table2 import run_table2
from recipes.shared.sweeps.provenance import checksum


def model(*values):
    kinds = {"signs": 0.9, "diseases E to H": 0.7}
    return {"auroc": sum(values) / len(values), "seeds": {str(i): v for i, v in enumerate(values)}, "kinds": kinds}


POINT = {
    "contexts": 2,
    "commits": ["abc"],
    "models": {"full": model(0.9, 0.92), "no-moe": model(0.88, 0.86)},
    "difference": 0.04,
    "over_patients": [0.01, 0.07],
    "over_seeds": [0.005, 0.075],
    "by_seed": {"0": 0.02, "1": 0.06},
}
FIGURES = {
    "train": list(TRAIN),
    "environment": {"device": "a processor", "versions": {"torch": "2.14"}, "date": "2026-01-01"},
    "points": [POINT, {"contexts": 4, "commits": [], "models": {}}],
}


def test_experts_are_higher_only_where_both_intervals_say_so():
    assert verdict(POINT) == "experts higher"
    assert verdict(POINT | {"over_seeds": [-0.01, 0.09]}) == "undecided"
    assert verdict(POINT | {"over_seeds": None}) == "undecided"
    assert verdict(POINT | {"over_patients": [-0.07, -0.01], "over_seeds": [-0.08, -0.01]}) == "experts lower"
    assert verdict(POINT | {"over_patients": [-0.07, -0.01]}) == "undecided"


def test_the_page_tells_what_is_finished_and_draws_it(tmp_path):
    path = tmp_path / "README.md"
    write_page(FIGURES, path)
    text = path.read_text()
    assert "| 2 | 0.910 | 0.870 | +0.040 | +0.010 to +0.070 | +0.005 to +0.075 | experts higher |" in text
    assert "| 4 | – | – | – | – | – | not finished |" in text
    assert "| 2 | 1 | 0.920 | 0.860 | +0.060 |" in text
    assert "| 2 | full | 0.900 | 0.700 |" in text
    assert "experts less dense" in (tmp_path / "curve.svg").read_text()


def test_cells_are_shared_with_table2(tmp_path, monkeypatch):
    seen = {}

    def listed(cells, *_, **__):
        seen[len(seen)] = {cell.name: checksum(cell.settings) for cell in cells}
        return {}

    monkeypatch.setattr("recipes.medvlmoe.tables.options.run_sweep", listed)
    points = measure_points([4, 2], (0, 1), tmp_path / "a", train=TRAIN, workers=1, bootstrap=100)
    assert [(point["contexts"], point["models"]) for point in points] == [(2, {}), (4, {})]
    assert len(seen[0]) == 8
    options = TableOptions(out=tmp_path / "a", data_sets=("phantom-hard",), seeds=(0, 1), bootstrap=100, train=TRAIN)
    run_table2(options, ("core",), "tiny", parse_train)
    shared = {name for name in seen[0] if name.startswith("phantom-hard/")}
    assert len(shared) == 4
    assert {name: seen[0][name] for name in shared}.items() <= seen[1].items()


@pytest.mark.parametrize("given", [["0"], ["5"], ["2", "2"]])
def test_circumstances_that_there_are_not_are_refused(given, capsys):
    assert main(["experts-help", "--context-count", *given]) == 2
    assert f"from 1 to 4, got {' '.join(given)}." in capsys.readouterr().err
