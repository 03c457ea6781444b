"""The trainings that show balance: a short one runs, and the committed page is that of its figures."""

import json
from pathlib import Path
from statistics import mean, stdev

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.balance.command import PAGE, ROOT, TINY
from benchmarks.balance.figures import FIGURES, WIDTH
from benchmarks.balance.model import GPT
from benchmarks.balance.table import write_page
from benchmarks.balance.text import random_starts, read_text, windows
from benchmarks.balance.train import METHODS, train
from moekit.inspect import RoutingRecord


def _runs(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("balance")
    arguments = [
        "--tiny",
        "--seed",
        "0",
        "1",
        "--out",
        str(folder / "README.md"),
        "--records",
        str(folder / "records"),
    ]
    assert main(["balance", *arguments]) == 0
    return folder


def test_every_method_and_seed_is_in_the_figures_the_page_and_the_pictures(written: Path) -> None:
    runs = _runs(written / "runs.jsonl")
    assert [(run["method"], run["seed"]) for run in runs] == [(method, seed) for method in METHODS for seed in (0, 1)]
    for run in runs:
        assert len(run["loss"]) == TINY.steps // WIDTH
        assert run["layers"].keys() == {"blocks.0.moe", "blocks.1.moe"}
        assert run["layers"]["blocks.0.moe"].keys() == set(FIGURES)
    page = (written / "README.md").read_text()
    for title, *_ in METHODS.values():
        assert f"| {title} | " in page
        for picture in ("figures.svg", "loads.svg"):
            assert title in (written / picture).read_text()


def test_the_records_are_those_of_the_figures(written: Path) -> None:
    for run in _runs(written / "runs.jsonl"):
        name = f"{run['method']}-{run['seed']}"
        record = RoutingRecord.load(written / "records" / f"{name}.json.gz")
        for layer, loads in run["load"].items():
            assert record.layers[layer].load.sum(0).tolist() == [sum(row) for row in loads]
            assert record.summaries()[0].calls == TINY.steps
        assert (written / "records" / f"{name}.html").stat().st_size > 0


def test_the_page_is_written_again_from_the_figures(written: Path) -> None:
    before = {name: (written / name).read_bytes() for name in ("README.md", "figures.svg", "loads.svg")}
    assert main(["balance", "--redraw", "--out", str(written / "README.md")]) == 0
    assert {name: (written / name).read_bytes() for name in before} == before


def test_methods_start_alike_and_differ_only_in_how_they_balance() -> None:
    first = {method: train(method, 0, TINY).losses for method in METHODS}
    assert len({losses[0] for losses in first.values()}) == 1
    assert len({losses[-1] for losses in first.values()}) == len(METHODS)
    assert train("loss", 0, TINY).losses == first["loss"]


def test_a_byte_depends_on_those_before_it_alone() -> None:
    model = GPT(TINY.model)
    tokens = torch.randint(256, (2, 8))
    changed = tokens.clone()
    changed[:, 5:] = 0
    torch.testing.assert_close(model(tokens)[0][:, :5], model(changed)[0][:, :5])


def test_the_text_is_whole_and_what_is_held_out_is_not_trained_on() -> None:
    text, held_out = read_text()
    assert len(held_out) == pytest.approx(len(text) / 9, rel=1e-3)
    assert b"assignment" in bytes(text.tolist())
    starts = random_starts(text, 1000, 20, torch.Generator().manual_seed(0))
    tokens, targets = windows(text, starts, 20)
    assert torch.equal(tokens[:, 1:], targets[:, :-1])
    assert int(starts.max()) + 20 < len(text)


def test_too_few_steps_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["balance", "--steps", "5", "--out", str(tmp_path / "README.md")]) == 2
    assert "--steps must be at least 10, over which figures are averaged, got 5" in capsys.readouterr().err


def test_the_committed_page_is_that_of_its_figures(tmp_path: Path) -> None:
    write_page(_runs(PAGE.with_name("runs.jsonl")), tmp_path / "README.md")
    assert (tmp_path / "README.md").read_text() == PAGE.read_text()


def test_the_committed_figures_are_those_of_the_text() -> None:
    text = (ROOT / "docs" / "debugging-collapse.md").read_text()
    at_end: dict[str, list[float]] = {method: [] for method in METHODS}
    worst: dict[str, list[float]] = {method: [] for method in METHODS}
    validation: dict[str, list[float]] = {method: [] for method in METHODS}
    for run in _runs(PAGE.with_name("runs.jsonl")):
        layers = [each["max_violation"][-1] + 1 for each in run["layers"].values()]
        at_end[run["method"]].append(sum(layers) / len(layers))
        worst[run["method"]].append(max(layers))
        validation[run["method"]].append(run["validation_loss"])
    for method in ("loss", "bias"):
        assert f"{mean(at_end[method]):.2f} ± {stdev(at_end[method]):.2f}" in text
    assert f"{mean(at_end['slow-bias']):.1f} after 300" in text
    assert f"{min(worst['neither']) / 8:.0%} to {max(worst['neither']) / 8:.0%}".replace("% to ", " to ")[:-1] in text
    means = [mean(values) for values in validation.values()]
    assert f"{min(means):.2f} to {max(means):.2f} nats per byte" in text
