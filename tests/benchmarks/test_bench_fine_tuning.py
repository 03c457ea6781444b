"""Ways to fine-tune are one function at first, and what is measured of them is of the right size."""

import pytest
import torch

from benchmarks import fine_tuning as bench
from benchmarks.__main__ import main
from benchmarks.memory import allocated_peak
from benchmarks.records import read
from tests.oracles import relative_error

CPU = torch.device("cpu")
SMALL = bench.Sizes(tokens=8, dim=16, hidden=24, experts=8, top_k=2, rank=2)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")


@pytest.mark.parametrize("way", list(bench.WAYS))
def test_every_way_starts_from_the_same_output(way):
    x = bench.rows(SMALL, CPU, torch.float32)
    expected = bench.build("full", SMALL, CPU, torch.float32)(x)
    error = relative_error(bench.build(way, SMALL, CPU, torch.float32)(x), expected)
    assert error < 0.03 if "int8" in way else error < 1e-6


def test_peak_is_what_is_held_at_once():
    def step() -> None:
        kept = torch.ones(1000)
        torch.ones(3000).sum()
        torch.ones(2000).add_(kept.sum())

    assert 16_000 <= allocated_peak(step) < 16_500


def test_gradients_of_all_weights_are_in_the_peak_of_full_fine_tuning_alone():
    weights = 3 * SMALL.dim * SMALL.hidden * SMALL.experts * 4
    peaks = {
        way: bench.peak_of(bench.build(way, SMALL, CPU, torch.float32), bench.rows(SMALL, CPU, torch.float32))
        for way in bench.WAYS
    }
    assert peaks["full"] > weights
    assert peaks["peft"] > weights
    assert max(peaks["frozen"], peaks["moekit.lora"], peaks["moekit.lora, int8"]) < weights


def test_the_command_writes_records(tmp_path, capsys):
    options = [f"--{name}={value}" for name, value in SMALL._asdict().items()]
    out = tmp_path / "fine-tuning.jsonl"
    assert not main(["fine-tuning", *options, "--device=cpu", "--seconds=0.01", f"--out={out}"])
    records = list(read(out))
    assert [record.name for record in records] == [*bench.WAYS, *["float", "int8"] * 3]
    assert "| forward | T=16 D=16 F=24 E=8 K=2 r=2 | int8 |" in capsys.readouterr().out
    assert all(0 < record.errors["output"] < 0.03 for record in records if record.name == "int8")
