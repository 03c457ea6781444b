"""How many kernels a step starts, ours and torch's, counted without a GPU and without compiling anything."""

import json
from unittest.mock import patch

import pytest
import torch

from moekit_kernels.availability import interpreting, triton_is_installed

if not triton_is_installed() or interpreting():
    pytest.skip("launches of Triton kernels are recorded, not interpreted", allow_module_level=True)

from benchmarks.host import command
from benchmarks.host.measure import CASES, Case, Counts, calls_of, count
from benchmarks.host.stub import as_on_a_gpu
from benchmarks.shapes import Shape
from moekit import SparseMoE
from moekit_kernels import runtime

SMALL, LARGE = Shape(32, 1024, 4096, 8, 2), Shape(4096, 1024, 1024, 16, 2)


def _started(case: Case) -> tuple[dict[str, Counts], dict[str, set[str]]]:
    """Counts, and the arguments of each kernel that it has not, or was not given."""
    names: list[str] = []
    others: dict[str, set[str]] = {}

    def start(kernel, grid, arguments, num_warps, num_stages):
        names.append(kernel.fn.__name__)
        others.setdefault(names[-1], set()).update(set(arguments) ^ set(kernel.arg_names))

    with as_on_a_gpu(), patch.object(runtime, "_prepared_start", lambda: start):
        return count(calls_of(case), lambda: names), others


@pytest.mark.parametrize(("shape", "forward", "backward"), [(SMALL, 5, 3), (LARGE, 5, 5)], ids=["small", "large"])
def test_a_step_of_the_layer_starts_few_kernels(shape, forward, backward):
    counts, _ = _started(Case("layer", shape))
    assert len(counts["inference"].launches) <= forward
    assert len(counts["forward"].launches) <= forward
    assert len(counts["backward"].launches) <= backward
    # torch's own: none but the sum of the two gradients of the tokens, of router and experts.
    assert not counts["inference"].operators
    assert not counts["forward"].operators
    assert counts["backward"].operators in ({"add": 1}, {"add_": 1})


def _num_guards() -> int:
    """Most guards of one entry of the compiled code of a layer: each is evaluated in every call."""
    entries = torch._dynamo.eval_frame._debug_get_cache_entry_list(SparseMoE.forward.__code__)
    assert entries
    return max(str(entry.guard_manager).count("GuardManager: source") for entry in entries)


def test_a_compiled_layer_starts_as_few_kernels_by_few_operators_under_few_guards():
    counts, _ = _started(Case("compiled layer", SMALL))
    assert len(counts["inference"].launches) <= 5
    assert len(counts["forward"].launches) <= 5
    assert len(counts["backward"].launches) <= 3
    assert not counts["inference"].operators
    assert not counts["forward"].operators
    # What has no gradient from outside gets one of zeros, for each of four statistics.
    assert sum(counts["backward"].operators.values()) <= 4
    assert _num_guards() <= 190  # 456 where it is traced part by part


@pytest.mark.parametrize(("shape", "forward", "backward"), [(SMALL, 4, 2), (LARGE, 4, 4)], ids=["small", "large"])
def test_a_step_of_the_experts_starts_few_kernels(shape, forward, backward):
    counts, _ = _started(Case("experts", shape))
    assert len(counts["inference"].launches) <= forward
    assert len(counts["forward"].launches) <= forward
    assert len(counts["backward"].launches) <= backward
    assert not counts["inference"].operators
    assert not counts["forward"].operators
    assert not counts["backward"].operators


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.name != "compiled layer"],
    ids=lambda case: f"{case.name}-{case.shape.tokens}",
)
def test_every_launch_gives_a_kernel_the_arguments_that_it_has(case):
    _, others = _started(case)
    assert others
    assert not any(others.values()), others


def test_small_widths_stand_for_large_ones():
    timed, large = (
        {case.name: case for case in CASES if case.shape.tokens == tokens and case.name != "compiled layer"}
        for tokens in (512, 4096)
    )
    assert timed.keys() == large.keys()
    for name, case in timed.items():
        assert case.is_timed
        assert not large[name].is_timed
        kinds = [{k: c.launches for k, c in _started(each)[0].items()} for each in (case, large[name])]
        assert kinds[0] == kinds[1]


def test_the_command_writes_records_and_the_table(tmp_path, monkeypatch, capsys):
    part = {"launches": ["a_kernel"], "operators": {"add": 2}}
    case = {
        "name": "layer",
        "shape": [32, 1024, 4096, 8, 2],
        "inference": {**part, "times": [2.0, 1.0, 3.0]},
        "forward": part,
        "backward": part,
        "step": {"times": [4.0, 5.0, 6.0]},
    }
    other = {**case, "inference": part, "step": {}, "shape": [4096, 1024, 1024, 16, 2]}
    other.pop("step")
    monkeypatch.setattr(command, "measure_in_a_process", lambda checkout, repeats: [case, other])
    path = tmp_path / "host" / "records.jsonl"
    options = command.argparse.Namespace(baseline=tmp_path, rounds=2, repeats=3, out=path)
    assert command.main(options) == 0
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [record["checkout"] for record in records] == ["now", "now", "baseline", "baseline"]
    assert records[0]["step"] == {"least_ms": 4.0, "p20_ms": 4.0, "median_ms": 5.0, "repeats": 6}
    table = path.with_name("README.md").read_text()
    assert "| layer, T=32 D=1024 F=4096 E=8 K=2 | inference | 1.0 | 2.0 | 1.0 | 2.0 | 1.00 |" in table
    assert "| layer, T=4096 D=1024 F=1024 E=16 K=2 | 1 + 2 | 1 + 2 | 1 + 2 | 2 + 4 | 2 + 4 |" in table
    assert table == capsys.readouterr().out.removesuffix("\n")


def test_a_checkout_that_fails_is_an_error_with_its_output(tmp_path):
    with pytest.raises(RuntimeError, match=r"(?s)measuring .*checkout must hold the package moekit"):
        command.measure_in_a_process(tmp_path / "absent", 1)


def test_nothing_is_left_patched():
    with as_on_a_gpu():
        pass
    with pytest.raises(ValueError, match="needs tensors on a GPU"):
        runtime.current_target(torch.device("cpu"))
