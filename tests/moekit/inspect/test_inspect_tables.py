"""Tables of one layer: experts, load over time, co-activation and labels."""

import csv
import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from moekit import FFNExperts, SoftMoE
from moekit.inspect import LayerRecord, RoutingRecord, record_routing
from moekit.inspect.__main__ import main
from moekit.observers import RoutingEvent
from tests.moekit.inspect.models import DIM, stack


@pytest.fixture
def record() -> RoutingRecord:
    """Of 4 tokens and 3 experts; the last token has no label, and expert 2 is over capacity once."""
    layer = LayerRecord(3, num_labels=2, max_windows=2)
    ids = torch.tensor([[0, 1], [0, 1], [0, 2], [1, 2]])
    probs = torch.tensor([[0.6, 0.3, 0.1]] * 4)
    labels = torch.tensor([0, 1, 1, 2])
    for _ in range(2):
        event = RoutingEvent(nn.Identity(), 3, expert_ids=ids, probs=probs, dropped_per_expert=torch.tensor([0, 0, 1]))
        layer.add(event, labels)
    return RoutingRecord({"layer": layer}, ("noun", "verb"))


def rows(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text)))


def test_the_experts_of_a_layer_as_text(record: RoutingRecord) -> None:
    header, *lines = (line.split() for line in record.table("layer").replace(" %", "%").splitlines())
    assert " ".join(header) == "expert slots share x equal dropped mean prob most with of its tokens noun verb"
    assert lines == [
        ["0", "6", "37.5%", "1.12", "0.0%", "0.600", "1", "66.7%", "50.0%", "50.0%"],
        ["1", "6", "37.5%", "1.12", "0.0%", "0.300", "0", "66.7%", "50.0%", "25.0%"],
        ["2", "4", "25.0%", "0.75", "50.0%", "0.100", "0", "50.0%", "0.0%", "25.0%"],
    ]


def test_counts_of_a_layer_as_comma_separated_values(record: RoutingRecord) -> None:
    experts = rows(record.csv("layer", "experts"))
    assert [row[:3] for row in experts] == [
        ["expert", "slots", "dropped"],
        *(["0", "6", "0"], ["1", "6", "0"], ["2", "4", "2"]),
    ]
    assert [float(row[3]) for row in experts[1:]] == pytest.approx([0.6, 0.3, 0.1])
    assert rows(record.csv("layer", "load")) == [["calls", "0", "1", "2"], ["1", "3", "3", "2"], ["1", "3", "3", "2"]]
    assert rows(record.csv("layer", "coactivation")) == [
        ["expert", "0", "1", "2"],
        *(["0", "6", "4", "2"], ["1", "4", "6", "2"], ["2", "2", "2", "4"]),
    ]
    assert rows(record.csv("layer", "labels")) == [
        ["label", "0", "1", "2"],
        *(["noun", "2", "2", "0"], ["verb", "4", "2", "2"], ["(no label)", "0", "2", "2"]),
    ]


def test_tables_of_layers_without_tokens_probabilities_or_decisions() -> None:
    layers = {"empty": LayerRecord(2), "ids": LayerRecord(2)}
    layers["ids"].add(RoutingEvent(nn.Identity(), 2, expert_ids=torch.tensor([[1], [1]])))
    record = RoutingRecord(layers)
    assert record.table("empty").splitlines()[1].split() == ["0", "0", "-", "-", "-", "-", "-", "-"]
    assert record.table("ids").replace(" %", "%").splitlines()[2].split() == [
        "1",
        "2",
        "100.0%",
        "2.00",
        "0.0%",
        *"---",
    ]
    assert rows(record.csv("ids", "experts"))[1] == ["0", "0", "0", ""]
    soft = SoftMoE(DIM, FFNExperts(DIM, DIM, 2), slots_per_expert=2)
    with record_routing(soft, label_names=("a",)) as record:
        record.label(["a"])
        soft(torch.randn(1, 6, DIM))
    (label, *weights), _ = rows(record.csv("SoftMoE", "labels"))[1:]
    assert label == "a"
    assert sum(map(float, weights)) == pytest.approx(6, rel=1e-5)


def test_a_table_that_does_not_exist_or_has_no_layer_is_refused(record: RoutingRecord) -> None:
    with pytest.raises(
        ValueError, match="table must be one of 'experts', 'load', 'coactivation', 'labels', got 'loads'"
    ):
        record.csv("layer", "loads")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="table='load' is of one layer, got layer=None: name one of layer"):
        record.csv(table="load")
    with pytest.raises(ValueError, match="layer must be one of layer, got 'other'"):
        record.table("other")


def test_the_command_prints_the_tables(
    record: RoutingRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "record.json.gz"
    record.save(path)
    assert main([str(path), "--layer", "layer"]) == 0
    assert capsys.readouterr().out == f"{record.table('layer')}\n"
    assert main([str(path), "--layer", "layer", "--csv", "--table", "labels"]) == 0
    assert capsys.readouterr().out == record.csv("layer", "labels")
    for options in (["--table", "load"], ["--table", "load", "--csv"], ["--table", "load", "--layer", "layer"]):
        assert main([str(path), *options]) == 1
        assert "--table needs --csv and --layer, whose load it prints" in capsys.readouterr().err
    assert main([str(path), "--layer", "other"]) == 1
    assert "layer must be one of layer, got 'other'" in capsys.readouterr().err


def test_a_reader_that_wants_no_more_ends_the_command_in_silence(tmp_path: Path) -> None:
    model = stack(2)
    with record_routing(model) as record:
        model(torch.randn(6, DIM))
    record.save(tmp_path / "record.json.gz")
    command = [sys.executable, "-m", "moekit.inspect", str(tmp_path / "record.json.gz")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()  # as head does, but before the first line
    assert process.stderr is not None
    assert (process.stderr.read(), process.wait(timeout=60)) == ("", 0)
    process.stderr.close()
