"""Recorded launches are started again from what their tensors held at first, on invented kernels."""

import pytest
import torch
from torch import Tensor

from benchmarks.replay import replay, tensors_of
from benchmarks.stages import kernel_stages
from benchmarks.timing import time_steps
from moekit_kernels import runtime, targets

CPU = torch.device("cpu")


def scan(counts: Tensor) -> None:
    """Works in place, as a scan of counts to offsets may."""
    counts.copy_(counts.cumsum(0))


def add(total: Tensor, values: Tensor) -> None:
    """Adds to what is there."""
    total += values


def gather(output: Tensor, values: Tensor, offsets: Tensor) -> None:
    """Reads at offsets, which must be right."""
    output.copy_(values[offsets])


@pytest.fixture(autouse=True)
def _python_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are functions, and CPU tensors have a target."""
    monkeypatch.setattr(runtime, "_prepared_start", lambda: lambda kernel, grid, arguments, *_: kernel(**arguments))
    monkeypatch.setattr(targets, "target_of", lambda device: targets.INTERPRETER)


def test_what_a_kernel_changes_is_restored_before_each_start():
    """Any number of starts leave what one leaves."""
    counts = torch.tensor([3, 1, 2])
    step = replay([runtime.Launch(scan, (1,), {"counts": counts}, 4, 2)])
    assert counts.tolist() == [3, 4, 6]
    timing = time_steps([step], CPU, seconds=0.0, least=7)
    assert timing.repeats == 7
    assert counts.tolist() == [3, 4, 6]
    step.prepare()
    assert counts.tolist() == [3, 1, 2]


def test_launches_in_a_row_are_restored_together():
    """The second reads what the first made."""
    counts, total = torch.tensor([1, 1]), torch.zeros(2, dtype=torch.int64)
    launches = [
        runtime.Launch(scan, (1,), {"counts": counts}, 4, 2),
        runtime.Launch(add, (1,), {"total": total, "values": counts}, 4, 2),
    ]
    seen = []
    step = replay(launches, lambda one: (seen.append(one.kernel), runtime.launch(one.kernel, one.grid, one.arguments)))
    assert seen == [scan, add]
    for _ in range(3):
        step.body(step.prepare())
    assert counts.tolist() == [1, 2]
    assert total.tolist() == [1, 2]
    assert len(tensors_of(launches)) == 2


def test_each_stage_of_a_call_may_be_timed_many_times_before_the_next():
    """A scan of its own output would send the gather beyond its values."""
    offsets, values, output = torch.tensor([0, 2, 1]), torch.arange(10, 14), torch.zeros(3, dtype=torch.int64)

    def call() -> None:
        runtime.launch(scan, (1,), {"counts": offsets})
        runtime.launch(gather, (1,), {"output": output, "values": values, "offsets": offsets})

    names = []
    for stage in kernel_stages("plan", call, CPU):
        names.append(stage.name)
        time_steps([stage.step], CPU, seconds=0.0, least=5)
    assert names == ["1. scan", "2. gather"]
    assert output.tolist() == [10, 12, 13]
