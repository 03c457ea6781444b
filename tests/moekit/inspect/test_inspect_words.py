"""Collapse is described in words, and figures come out as tables, scalars and pictures."""

import csv
import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from moekit.inspect import Finding, LayerRecord, RoutingRecord, Thresholds, record_routing
from moekit.observers import RoutingEvent
from tests.moekit.inspect.models import DIM, NUM_EXPERTS, collapsed, stack

ROOT = Path(__file__).parents[3]


def recorded(ids: torch.Tensor, experts: int, **fields: torch.Tensor) -> RoutingRecord:
    layer = LayerRecord(experts)
    layer.add(RoutingEvent(nn.Identity(), experts, expert_ids=ids, **fields))
    return RoutingRecord({"layer": layer})


def texts(record: RoutingRecord, thresholds: Thresholds | None = None) -> list[str]:
    return [f"{each.severity}: {each.text}" for each in record.findings(thresholds)]


def test_a_collapsed_layer_is_called_so() -> None:
    model = nn.ModuleDict({"good": stack(1), "bad": collapsed()})
    with record_routing(model) as record:
        for _ in range(20):
            x = torch.randn(10, DIM)
            model["bad"](x)
            model["good"](x)
    assert record.findings()[:2] == [
        Finding("bad", "collapse", "100 % of slots go to expert 1"),
        Finding("bad", "warning", "3 of 4 experts get none (0, 2, 3)"),
    ]
    assert str(record).startswith("bad: 100 % of slots go to expert 1; 3 of 4 experts get none (0, 2, 3)")


def test_the_words_of_98_percent() -> None:
    ids = torch.tensor([1] * 980 + [2] * 10 + [3] * 10).unsqueeze(-1)
    assert texts(recorded(ids, 8)) == [
        "collapse: 98 % of slots go to expert 1",
        "warning: 5 of 8 experts get none (0, 4, 5, 6, 7)",
    ]


def test_with_several_experts_per_token_the_busiest_of_them_are_the_collapse() -> None:
    ids = torch.tensor([[1, 4]] * 100)
    assert texts(recorded(ids, 8))[0] == "collapse: 100 % of slots go to experts 1, 4"


def test_a_layer_where_few_experts_are_left_out_has_not_collapsed() -> None:
    # Of 3 experts 2 are taken: an equal share of them would be 67 %.
    ids = torch.tensor([[0, 1]] * 70 + [[0, 2]] * 15 + [[1, 2]] * 15)
    assert [text for text in texts(recorded(ids, 3)) if text.startswith("collapse")] == []


def test_balanced_layers_have_no_finding() -> None:
    ids = torch.arange(400).remainder(4).unsqueeze(-1)
    assert str(recorded(ids, 4)).startswith("No layer shows collapse")


def test_thresholds_are_the_users() -> None:
    ids = torch.tensor([0] * 60 + [1] * 20 + [2] * 20).unsqueeze(-1)
    assert texts(recorded(ids, 3)) == []
    assert texts(recorded(ids, 3), Thresholds(max_violation=0.5)) == [
        "warning: expert 0 gets 1.8 times an equal share of the slots"
    ]


def test_of_several_experts_per_token_the_share_of_tokens_is_told_too() -> None:
    # All tokens take expert 0 beside another one: half of the slots, which is 4 times an equal share.
    ids = torch.stack([torch.zeros(140, dtype=torch.int64), 1 + torch.arange(140) % 7], dim=-1)
    assert texts(recorded(ids, 8)) == [
        "warning: expert 0 gets 4.0 times an equal share of the slots: 100 % of the tokens choose it"
    ]


def test_starved_experts_drops_and_unrouted_tokens_are_told() -> None:
    ids = torch.tensor([0] * 600 + [1] * 500 + [2] + [9] * 300).unsqueeze(-1)
    dropped = torch.tensor([200, 100, 0])
    assert texts(recorded(ids, 3, dropped_per_expert=dropped)) == [
        "warning: 1 of 3 experts gets less than 1 % of an equal share (2)",
        "warning: 21 % of tokens get no expert",
        "warning: 27 % of slots are dropped over capacity",
    ]


def test_few_slots_are_not_judged() -> None:
    assert texts(recorded(torch.zeros(5, 1, dtype=torch.int64), 8)) == [
        "note: 5 slots for 8 experts are too few to judge the load"
    ]


def test_undecided_routers_and_tokens_that_are_not_finite_are_told() -> None:
    ids, probs = torch.arange(40).remainder(4).unsqueeze(-1), torch.full((40, 4), 0.25)
    valid = torch.arange(40) > 0
    assert texts(recorded(ids, 4, probs=probs, valid=valid)) == [
        "warning: 1 tokens have router logits that are not finite",
        "note: the router is undecided: the entropy of its probabilities is 100 % of ln E",
        "note: 39 slots for 4 experts are too few to judge the load",
    ]
    assert texts(recorded(ids, 4, valid=torch.zeros(40, dtype=torch.bool))) == [
        "collapse: all 40 tokens have router logits that are not finite"
    ]


def test_experts_that_are_chosen_together_are_named() -> None:
    ids = torch.tensor([[0, 1]] * 96 + [[0, 2]] * 2 + [[1, 3]] * 2 + [[2, 3]] * 100)
    assert texts(recorded(ids, 4)) == [
        "note: experts 0 and 1 are chosen together by 96 % of their tokens",
        "note: experts 2 and 3 are chosen together by 96 % of their tokens",
    ]


def test_a_growing_imbalance_is_told() -> None:
    layer = LayerRecord(4)
    for call in range(8):
        ids = torch.arange(40).remainder(4) if call < 6 else torch.arange(40).remainder(4).clamp(max=1)
        layer.add(RoutingEvent(nn.Identity(), 4, expert_ids=ids.unsqueeze(-1)))
    assert texts(RoutingRecord({"layer": layer})) == ["warning: the imbalance grows: max/mean went from 1.0 to 3.0"]


def test_calls_of_few_slots_show_no_growth_by_chance() -> None:
    layer = LayerRecord(4)
    for call in range(16):
        expert = 0 if call in (12, 13) else call % 4
        layer.add(RoutingEvent(nn.Identity(), 4, expert_ids=torch.full((3, 1), expert)))
    assert texts(RoutingRecord({"layer": layer})) == []


def test_tables_and_scalars_hold_the_figures() -> None:
    model = stack(2, capacity_factor=0.5)
    with record_routing(model) as record:
        for _ in range(4):
            model(torch.randn(9, DIM))
    first, second = record.summaries()
    rows = list(csv.DictReader(io.StringIO(record.csv())))
    assert [row["name"] for row in rows] == ["0.moe", "1.moe"]
    assert [float(row["max_violation"]) for row in rows] == [first.max_violation, second.max_violation]
    scalars = record.scalars()
    assert scalars["moe/1.moe/dropped"] == second.dropped
    assert all(type(value) is float for value in scalars.values())
    assert set(record.scalars("x/", latest=True)) == {name.replace("moe/", "x/", 1) for name in scalars}
    lines = record.table().splitlines()
    assert [line.split()[0] for line in lines] == ["layer", "0.moe", "1.moe"]
    assert f"{first.max_violation:.3f}" in lines[1]


def test_figures_over_time_add_up_to_those_of_the_record() -> None:
    model = stack(1, capacity_factor=0.5)
    with record_routing(model, max_windows=4) as record:
        for _ in range(10):
            model(torch.randn(9, DIM))
    over_time = record.over_time("0.moe")
    (total,) = record.summaries()
    assert [each.calls for each in over_time] == [4, 4, 2]
    assert sum(each.slots for each in over_time) == total.slots
    dropped = [each.slots * (each.dropped or 0.0) for each in over_time]
    assert sum(dropped) == pytest.approx(total.slots * (total.dropped or 0.0))
    assert [row["calls"] for row in csv.DictReader(io.StringIO(record.csv("0.moe")))] == ["4", "4", "2"]
    with pytest.raises(ValueError, match=r"layer must be one of 0.moe, got 'x'"):
        record.over_time("x")


def test_latest_figures_are_those_of_the_last_window() -> None:
    layer = LayerRecord(4, max_windows=2)
    for expert in (0, 0, 1, 2, 3):
        layer.add(RoutingEvent(nn.Identity(), 4, expert_ids=torch.full((6, 1), expert)))
    (latest,) = RoutingRecord({"layer": layer}).summaries(latest=True)
    assert (latest.calls, latest.busiest) == (1, 3)


def test_labels_of_samples_and_tokens_are_counted_by_expert() -> None:
    model = stack(1, top_k=1)
    moe, x = model[0].moe, torch.randn(3, 4, DIM)
    chosen = moe.route(x).expert_ids.view(3, 4)
    by_sample, by_token = ["a", "", "b"], torch.arange(12).view(3, 4) % 2
    with record_routing(model, label_names=("a", "b")) as record:
        record.label(by_sample)
        model(x)
        record.label(by_token)
        model(x)
        record.label(None)
        model(x)
    expected = torch.zeros(3, NUM_EXPERTS, dtype=torch.float64)
    for sample in range(3):
        for token in range(4):
            expert = chosen[sample, token]
            expected[[0, 2, 1][sample], expert] += 1
            expected[by_token[sample, token], expert] += 1
            expected[2, expert] += 1
    layer = record.layers["0.moe"]
    assert torch.equal(layer.by_label, expected)
    assert torch.equal(layer.by_label.sum(0), layer.load.sum(0))


def test_labels_are_checked() -> None:
    with pytest.raises(ValueError, match=r"label_names must differ, got \('a', 'a'\)"):
        RoutingRecord({}, ("a", "a"))
    model = stack(1)
    with record_routing(model, label_names=("a", "b")) as record:
        with pytest.raises(ValueError, match="indices of the 2 label_names of record_routing, or -100 for none, got 2"):
            record.label(torch.tensor([0, 2]))
        with pytest.raises(ValueError, match=r"labels must be among the label_names.*got 'c'"):
            record.label(["c"])
        with pytest.raises(ValueError, match=r"labels must be of an integer dtype, got torch.float32"):
            record.label(torch.zeros(2))
        record.label([0, 1])
        with pytest.raises(ValueError, match=r"got 2 labels for the 3 tokens of layer '0.moe': call record.label"):
            model(torch.randn(3, DIM))
        record.label(None)
        model(torch.randn(3, DIM))


def test_pictures_are_drawn(tmp_path: Path) -> None:
    model = stack(2)
    with record_routing(model, label_names=("a", "b")) as record:
        for _ in range(3):
            record.label([0, 1, 0])
            model(torch.randn(3, 2, DIM))
    for layer in (None, "0.moe"):
        figure = record.figure(layer)
        figure.savefig(tmp_path / "figure.png")
        assert (tmp_path / "figure.png").stat().st_size > 5000
    load = record.layers["0.moe"].load.sum(0)
    bars = record.figure("0.moe").axes[0].patches
    assert [bar.get_height() for bar in bars] == pytest.approx((load / load.sum()).tolist())
    with pytest.raises(ValueError, match=r"layer must be one of 0.moe, 1.moe, got 'x'"):
        record.figure("x")


def test_without_matplotlib_all_but_the_pictures_work() -> None:
    code = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "kernels")!r}]
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in ('matplotlib', 'safetensors', 'transformers'):
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)
sys.meta_path.insert(0, Absent())
import pathlib, tempfile, torch, moekit
from moekit.inspect import RoutingRecord, record_routing
layer = moekit.SparseMoE.ffn(8, 8, 4, 2)
with record_routing(layer) as record:
    layer(torch.randn(50, 8))
folder = pathlib.Path(tempfile.mkdtemp())
record.save(folder / 'record')
loaded = RoutingRecord.load(folder / 'record')
loaded.write_page(folder / 'page.html')
print(loaded.summaries() == record.summaries(), len(str(loaded)) > 50)
try:
    record.figure()
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "True True"
    assert "pip install matplotlib" in second
