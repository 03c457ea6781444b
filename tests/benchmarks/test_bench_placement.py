"""Placements on loads over time: what the simulation counts, and its command."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.__main__ import main
from benchmarks.placement.loads import Drawn, zipf_loads
from benchmarks.placement.simulate import Scheme, moved_share, simulate
from moekit.distributed import ExpertPlacement
from moekit.inspect import RoutingRecord, record_routing
from moekit.layer import SparseMoE

DRAWN = Drawn(experts=16, windows=8, slots=2000, exponent=1.0, drift=0.2, seed=0)


@given(st.integers(2, 30), st.integers(1, 500), st.floats(0, 2), st.floats(0, 1), st.integers(0, 9))
def test_drawn_loads_are_slots_and_the_same_again(experts, slots, exponent, drift, seed) -> None:
    drawn = Drawn(experts, 3, slots, exponent, drift, seed)
    loads = zipf_loads(drawn)
    assert loads.sum(1).tolist() == [slots] * 3
    assert torch.equal(loads, zipf_loads(drawn))


def test_shares_follow_the_law_and_drift_moves_them() -> None:
    loads = zipf_loads(DRAWN._replace(slots=1_000_000, drift=0.0))
    shares = (loads / loads.sum(1, keepdim=True)).sort(descending=True).values
    expected = 1 / torch.arange(1, 17, dtype=torch.float64)
    torch.testing.assert_close(shares.mean(0), expected / expected.sum(), rtol=0.02, atol=0)
    assert len({tuple(row.argsort().tolist()[-3:]) for row in loads}) == 1
    moved = zipf_loads(DRAWN._replace(slots=1_000_000, drift=1.0))
    assert len({tuple(row.argsort().tolist()[-3:]) for row in moved}) > 1


def test_a_placement_is_made_from_the_windows_before() -> None:
    first, second = torch.tensor([3.0, 1, 1, 3]), torch.tensor([1.0, 3, 3, 1])
    loads = torch.stack([first, second, first])
    placed = simulate(loads, (2,), Scheme("placed", 0))
    assert placed.ratios == [1.0, 1.0]  # a pair of a heavy and a light expert is one in both
    skewed = torch.tensor([[8.0, 1, 1, 1], [1.0, 1, 8, 1], [1.0, 1, 8, 1]])
    one, two = (simulate(skewed, (2,), Scheme("", 2), every=every) for every in (1, 2))
    assert one.known == two.known
    assert one.ratios[1] < two.ratios[1] == one.ratios[0]  # the second placement knows of the second window
    assert one.moved[1] > 0 == two.moved[1]
    assert simulate(skewed, (2,), Scheme("", None)).ratios == [18 / 11, 18 / 11]


def test_replicas_make_ranks_more_even_than_placing_does() -> None:
    loads = zipf_loads(DRAWN)
    schemes = [Scheme("", count) for count in (None, 0, 8)]
    means = [sum(simulate(loads, (4,), scheme).known) / 7 for scheme in schemes]
    assert means == sorted(means, reverse=True)
    assert means[-1] < 1.05


def test_windows_without_load_are_even() -> None:
    assert simulate(torch.zeros(3, 4), (2,), Scheme("", 0)).ratios == [1.0, 1.0]


def test_moved_share() -> None:
    before, after = ExpertPlacement(((0, 1), (2, 3))), ExpertPlacement(((1, 2), (3, 0)))
    assert moved_share(before, after) == 0.5
    assert moved_share(before, before) == 0


def test_the_command_prints_and_writes_the_table(tmp_path, capsys) -> None:
    page = tmp_path / "made" / "page.md"
    arguments = "placement --experts 16 --windows 6 --ranks 4 --nodes 2 --replica-count 4 8 --slots 1000"
    assert main([*arguments.split(), "--out", str(page)]) == 0
    output = capsys.readouterr().out
    rows = [line for line in output.splitlines() if line.startswith("| ")]
    assert [row.split("|")[1].strip() for row in rows] == ["", "contiguous", "placed", "4 replicas", "8 replicas"]
    assert [row.split("|")[2].strip() for row in rows[1:]] == ["4", "4", "5", "6"]
    assert all(float(row.split("|")[3]) >= 1 for row in rows[1:])
    assert rows[-1] in page.read_text()
    assert "svg" in page.with_suffix(".svg").read_text()


def test_loads_of_a_record_and_of_lines(tmp_path, capsys) -> None:
    torch.manual_seed(0)
    moe = SparseMoE.ffn(8, 6, num_experts=4, top_k=2)
    with record_routing(moe, max_windows=4) as record:
        for _ in range(4):
            moe(torch.randn(32, 8))
    record.save(tmp_path / "record.json.gz")
    loads = next(iter(RoutingRecord.load(tmp_path / "record.json.gz").layers.values())).load
    lines = tmp_path / "runs.jsonl"
    lines.write_text("{}\n" + json.dumps({"load": {"first": [[1, 1]] * 4, "last": loads.T.tolist()}}) + "\n")
    tables = []
    for options in ([str(tmp_path / "record.json.gz")], [str(lines), "--line", "1"]):
        assert main(["placement", "--ranks", "2", "--loads", *options]) == 0
        tables.append(capsys.readouterr().out.partition("\n\n")[2])
    assert tables[0] == tables[1]
    assert main(["placement", "--ranks", "2", "--loads", str(lines), "--line", "1", "--layer", "first"]) == 0
    assert "4 experts of first" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--loads nowhere.json.gz", "nowhere.json.gz, which does not exist"),
        ("--loads {page}", "routing record or a .jsonl file"),
        ("--loads {lines} --line 7", "--line must be from 0 to 1"),
        ("--loads {lines}", 'loads of layers under "load", got none: see --line'),
        ("--loads {lines} --line 1 --layer b", "--layer must be one of a, got b"),
        ("--drift 2", "--drift must be from 0 to 1, got 2.0"),
        ("--windows 1", "--windows must be at least 2, got 1"),
        ("--every 0", "--every must be at least 1"),
        ("--nodes 3", "--nodes must divide the 8 ranks, got 3"),
        (
            "--experts 12",
            "--ranks, --replica-count and the loads do not fit: num_experts must be a multiple of the 8 ranks",
        ),
        ("--replica-count 3 --windows 2 --slots 9", "Use 8 replicas"),
        ("--loads {lines} --line 1 --ranks 1", "two windows or more, got 1"),
    ],
)
def test_errors_name_the_option(options, message, tmp_path, capsys) -> None:
    page, lines = tmp_path / "page.md", tmp_path / "runs.jsonl"
    page.write_text("text")
    lines.write_text('{"loss": 1}\n{"load": {"a": [[1]]}}\n')
    assert main(["placement", *options.format(page=page, lines=lines).split()]) == 2
    assert message in capsys.readouterr().err
