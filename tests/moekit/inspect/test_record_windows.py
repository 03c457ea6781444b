"""A record is of bounded size over time; records add up."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from moekit.inspect import LayerRecord, RoutingRecord, record_routing
from moekit.observers import RoutingEvent
from tests.moekit.inspect.models import DIM, NUM_EXPERTS, stack


def recorded(calls: int, *, experts: int = 4, max_windows: int = 4, seed: int = 0, first: int = 0) -> LayerRecord:
    """Records calls ``first`` and on of a sequence that the seed fixes."""
    generator = torch.Generator().manual_seed(seed)
    layer = LayerRecord(experts, max_windows=max_windows)
    for call in range(first + calls):
        ids = torch.rand(6, experts, generator=generator).argsort(-1)[:, :2]
        if call >= first:
            layer.add(RoutingEvent(nn.Identity(), experts, expert_ids=ids))
    return layer


@given(st.integers(0, 40))
def test_windows_stay_few_and_lose_nothing(calls: int) -> None:
    layer, wide = recorded(calls), recorded(calls, max_windows=64)
    assert len(layer.windows) <= 4
    assert torch.equal(layer.windows.sum(0), wide.windows.sum(0))
    assert layer.column("calls").sum() == calls
    assert all(width == layer.width for width in layer.column("calls")[:-1])


@given(st.integers(0, 20), st.integers(0, 20))
def test_merging_two_records_is_recording_both(first: int, second: int) -> None:
    whole = recorded(first + second)
    merged = recorded(first).merged(recorded(second, first=first))
    assert len(merged.windows) <= 4
    assert torch.equal(merged.windows.sum(0), whole.windows.sum(0))
    assert torch.equal(merged.coactivation, whole.coactivation)
    assert torch.equal(merged.by_label, whole.by_label)


def test_a_merged_record_goes_on() -> None:
    model = stack(1)
    records: list[RoutingRecord] = []
    for _ in range(2):
        with record_routing(model, max_windows=4) as record:
            for _ in range(5):
                model(torch.randn(6, DIM))
        records.append(record)
    merged = records[0].merged(records[1])
    layer = merged.layers["0.moe"]
    layer.add(RoutingEvent(nn.Identity(), NUM_EXPERTS, expert_ids=torch.tensor([[0, 1]])))
    assert layer.column("calls").sum() == 11
    assert len(layer.windows) <= 4
    assert merged.summaries()[0].slots == 122


def test_ranks_are_merged_call_by_call() -> None:
    first, second = recorded(9, seed=1), recorded(9, seed=2)
    merged = first.merged(second, parallel=True)
    assert torch.equal(merged.column("calls"), first.column("calls"))
    assert torch.equal(merged.load, first.load + second.load)
    with pytest.raises(ValueError, match=r"merged in parallel must have as many calls.*9 and 8 calls"):
        first.merged(recorded(8), parallel=True)


def test_records_of_other_experts_or_labels_do_not_merge() -> None:
    with pytest.raises(ValueError, match="one number of experts and labels, got 4 and 6"):
        recorded(1).merged(recorded(1, experts=6))
    with pytest.raises(ValueError, match=r"label_names must be those of both, got \('a',\) and \(\)"):
        RoutingRecord({}, ("a",)).merged(RoutingRecord({}))


def test_layers_that_one_record_lacks_are_kept() -> None:
    merged = RoutingRecord({"a": recorded(1)}).merged(RoutingRecord({"b": recorded(2)}))
    assert [(each.name, each.calls) for each in merged.summaries()] == [("a", 1), ("b", 2)]


def test_a_file_holds_the_record(tmp_path: Path) -> None:
    model = stack(capacity_factor=0.5)
    with record_routing(model, label_names=("a", "b"), max_windows=6) as record:
        for _ in range(15):
            record.label(torch.tensor([0, 1, -100])[torch.randperm(3)])
            model(torch.randn(3, 5, DIM))
    record.save(tmp_path / "record.json.gz")
    loaded = RoutingRecord.load(tmp_path / "record.json.gz")
    assert loaded.label_names == ("a", "b")
    assert loaded.summaries() == record.summaries()
    for name, layer in record.layers.items():
        other = loaded.layers[name]
        for one, two in (
            (layer.windows, other.windows),
            (layer.coactivation, other.coactivation),
            (layer.by_label, other.by_label),
            (layer.prob_sum, other.prob_sum),
        ):
            assert torch.equal(one, two)
        assert (layer.width, layer.top_k, layer.max_windows) == (other.width, other.top_k, other.max_windows)


def test_files_that_are_no_record_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"", b"text", gzip.compress(b"text"), gzip.compress(b"[]"), gzip.compress(b"{}")[:-4]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"path must be a record that RoutingRecord.save\(\) wrote"):
            RoutingRecord.load(path)


def test_a_later_version_and_a_damaged_record_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "record.json.gz"
    RoutingRecord({"a": recorded(3)}).save(path)
    document = json.loads(gzip.decompress(path.read_bytes()))
    path.write_bytes(gzip.compress(json.dumps({**document, "version": 2}).encode()))
    with pytest.raises(ValueError, match="record of version 1, got version 2"):
        RoutingRecord.load(path)
    changes = {"num_experts": 10**9, "load": [[1.0]], "coactivation": [[1]] * 4, "width": "x"}
    for name, value in changes.items():
        layer = {**document["layers"][0], name: value}
        path.write_bytes(gzip.compress(json.dumps({**document, "layers": [layer]}).encode()))
        with pytest.raises(ValueError, match="path must be an undamaged record"):
            RoutingRecord.load(path)
