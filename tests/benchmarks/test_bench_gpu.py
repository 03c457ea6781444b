"""The verdicts of the GPU command, on invented records; and that the command works, on CPU with tiny sizes."""

import dataclasses
import sys

import pytest

from benchmarks import gpu
from benchmarks.__main__ import main
from benchmarks.criteria import judge
from benchmarks.gpu_sections import LARGE, SECTIONS, Setting, too_large
from benchmarks.records import Record, read
from benchmarks.shapes import PRESETS

GOOD = {"qwen3-30b-a3b": 0.7, "mixtral": 0.9, "sonic-30b-512": 0.7}


@pytest.fixture
def invented(case):
    """A run in which everything is met, to be changed."""
    records = [Record("ceiling", "matmul", dtype="bf16", tflops=700.0), Record("ceiling", "copy", gbps=4000.0)]
    for preset, of_dense in GOOD.items():
        floor = PRESETS[preset].kept_floor(2)
        kept = int(1.1 * floor) - 2 * PRESETS[preset].tokens * PRESETS[preset].dim
        records.append(case("moekit-triton", 10.0, preset=preset, of_dense=of_dense, kept_bytes=kept))
    records += [case(name, 17.0, preset="qwen3-30b-a3b") for name in ("grouped_mm", "scattermoe")]
    # 8 experts of 3 * 1024 * 4096 weights in bf16 at 4000 GB/s take 50.3 us.
    recipe = case("moekit-triton", 0.07, preset="medvlmoe-paper", direction="forward")
    return [*records, recipe]


def verdicts(records: list[Record]) -> list[str]:
    """The seven verdicts in order."""
    return [record.status for record in judge(records)]


def changed(records: list[Record], name: str, preset: str, **changes: object) -> list[Record]:
    """The records with one of them changed."""
    return [dataclasses.replace(r, **changes) if (r.name, r.preset) == (name, preset) else r for r in records]


def test_everything_can_be_met(invented):
    """The invented run meets every criterion."""
    assert verdicts(invented) == ["met"] * 7


@pytest.mark.parametrize(
    ("place", "name", "preset", "changes"),
    [
        (0, "grouped_mm", "qwen3-30b-a3b", {"median_ms": 15.9}),
        (1, "scattermoe", "qwen3-30b-a3b", {"median_ms": 14.9}),
        (2, "moekit-triton", "qwen3-30b-a3b", {"of_dense": 0.59}),
        (3, "moekit-triton", "mixtral", {"of_dense": 0.79}),
        (4, "moekit-triton", "sonic-30b-512", {"of_dense": 0.64}),
        (5, "moekit-triton", "mixtral", {"kept_bytes": 10**10}),
        (6, "moekit-triton", "medvlmoe-paper", {"median_ms": 0.076}),
    ],
)
def test_each_criterion_is_missed_alone(invented, place, name, preset, changes):
    """Just below the line."""
    expected = ["met"] * 7
    expected[place] = "missed"
    assert verdicts(changed(invented, name, preset, **changes)) == expected


def test_the_faster_of_two_libraries_counts(invented, case):
    """Being ahead of one is not enough when both are there."""
    slower = [*invented, case("liger", 12.0, preset="qwen3-30b-a3b")]
    verdict = judge(slower)[1]
    assert verdict.status == "missed"
    assert "x1.70 against scattermoe" in verdict.reason
    assert "x1.20 against liger" in verdict.reason


def test_what_was_not_measured_is_neither_met_nor_missed(invented, case):
    """And the reason is the peer's."""
    absent = [r for r in invented if r.name != "scattermoe"]
    absent += [case("liger", None, preset="qwen3-30b-a3b", status="absent", reason="liger-kernel is not installed")]
    verdict = judge(absent)[1]
    assert verdict.status == "unmeasured"
    assert "liger: liger-kernel is not installed" in verdict.reason
    assert "scattermoe was not run" in verdict.reason
    assert verdicts([]) == ["unmeasured"] * 7
    small = [dataclasses.replace(r, shape=(1, 2, 3, 4, 1)) for r in invented]
    assert verdicts(small) == ["unmeasured"] * 7
    unlimited = [r for r in invented if r.kind != "ceiling"]
    assert verdicts(unlimited) == ["met"] * 6 + ["unmeasured"]


def test_a_wrong_result_meets_nothing(invented):
    """However fast it is."""
    wrong = changed(invented, "moekit-triton", "mixtral", disagrees=0.5)
    verdict = judge(wrong)[3]
    assert verdict.status == "missed"
    assert "disagrees with the reference by 5.0e-01" in verdict.reason


def test_the_verdict_shows_where_time_goes_and_what_is_red(invented, case):
    """Shares of the kernels of a missed workload; a red check before all."""
    missed = changed(invented, "moekit-triton", "mixtral", of_dense=0.1)
    stages = [
        dataclasses.replace(case(name, time, preset="mixtral", direction="forward"), kind="stage", remark="kernel")
        for name, time in (("1. some_kernel", 3.0), ("2. other_kernel", 1.0))
    ]
    red = Record("check", "odd sizes", status="failed", reason="relative error 1.0e+00")
    late = Record("check", "section tests", status="absent", reason="cut off after 9 s")
    lines = gpu.verdict([*missed, *stages, red, late, *judge(missed)])
    assert "RED: odd sizes: relative error 1.0e+00" in lines
    assert "INCOMPLETE: section tests: cut off after 9 s" in lines
    assert "No speed below counts while a check is red." in lines
    assert " 75.0 %  3 ms  forward 1. some_kernel, 10 TFLOP/s" in lines
    assert " 25.0 %  1 ms  forward 2. other_kernel, 10 TFLOP/s" in lines


def test_without_a_gpu_the_command_names_the_rehearsal(tmp_path, monkeypatch):
    """Nothing is written."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="needs a GPU; --rehearsal"):
        main(["gpu", "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())
    with pytest.raises(SystemExit, match="needs a GPU; --rehearsal"):
        Setting.real()


@pytest.mark.parametrize("name", ["checks", pytest.param("criteria", marks=pytest.mark.slow), "libraries", "kernels"])
def test_every_section_runs_in_a_rehearsal(name):
    """All it gives are records, and nothing fails."""
    records = list(SECTIONS[name].run(Setting.rehearsal(), lambda: 100.0))
    assert records
    assert not [record for record in records if record.status == "failed"]
    if name == "criteria":
        measured = {(r.preset, r.direction) for r in records if r.name == "grouped_mm"}
        assert ("qwen3-30b-a3b", "forward+backward") in measured


def test_a_comparison_that_does_not_fit_the_memory_is_absent():
    """The largest fits an H200's 141 GB and not an H100's 80; all others fit both."""
    reasons = {name: too_large(shape, 2, 80 * 10**9) for name, (shape, _, _) in LARGE.items()}
    assert {name: reason for name, reason in reasons.items() if reason} == {
        "weights of 2^32.8 elements, bf16": "needs more than 105 GiB, there are 75"
    }
    assert not any(too_large(shape, 2, 141 * 10**9) for shape, _, _ in LARGE.values())
    setting = Setting.rehearsal()._replace(memory=0)
    records = list(SECTIONS["checks"].run(setting, lambda: 100.0))
    assert {record.status for record in records} == {"absent"}
    assert all("there are 0" in record.reason for record in records)


def test_a_section_without_time_left_gives_the_reason():
    """Instead of beginning."""
    records = list(SECTIONS["checks"].run(Setting.rehearsal(), lambda: 1.0))
    assert {record.reason for record in records} == {"no time was left"}


def test_the_command_judges_and_cuts_off(tmp_path, capsys, monkeypatch):
    """One section in its own process, one that has no time, and one that is cut off."""
    limits = {"tests": SECTIONS["tests"]._replace(least=0), "checks": SECTIONS["checks"]._replace(least=1000)}
    limits["breadth"] = SECTIONS["breadth"]._replace(least=0, most=0.05)
    for name, section in limits.items():
        monkeypatch.setitem(SECTIONS, name, section)
    arguments = ["--out", str(tmp_path), "--budget", "100", "--rehearsal", "--section", "tests", "checks", "breadth"]
    assert main(["gpu", *arguments]) == 0
    output = capsys.readouterr().out
    assert "UNMEASURED" in output
    assert "INCOMPLETE: section checks: only" in output
    assert "INCOMPLETE: section breadth: cut off after 0 s" in output
    records = read(tmp_path / "records.jsonl")
    assert [r.reason for r in records if r.name.startswith("tests/triton")] == ["rehearsal"]
    assert sum(r.kind == "criterion" for r in records) == 7
    assert all(r.environment for r in records if r.kind == "criterion")


def test_a_section_that_aborts_does_not_stop_the_others(tmp_path, capsys, monkeypatch):
    """Its process aborts, as after an illegal address; what it had written stays, and the next section runs."""
    command_of = gpu.section_command
    aborting = "import os; open({path!r}, 'a').write('{line}\\n'); os.abort()"
    line = '{"kind": "check", "name": "before the end"}'

    def command(name, options, seconds):
        if name != "kernels":
            return command_of(name, options, seconds)
        return [sys.executable, "-c", aborting.format(path=str(options.out / "records.jsonl"), line=line)]

    monkeypatch.setattr(gpu, "section_command", command)
    monkeypatch.setitem(SECTIONS, "tests", SECTIONS["tests"]._replace(least=0))
    monkeypatch.setitem(SECTIONS, "kernels", SECTIONS["kernels"]._replace(least=0))
    monkeypatch.setattr(gpu, "RESERVE", 0)
    assert main(["gpu", "--out", str(tmp_path), "--budget", "100", "--rehearsal", "--section", "kernels", "tests"]) == 1
    assert "RED: section kernels: ended with status -6" in capsys.readouterr().out
    names = [record.name for record in read(tmp_path / "records.jsonl")]
    assert "before the end" in names
    assert any(name.startswith("tests/triton") for name in names)
