"""The verdicts of the GPU command, on invented records."""

import dataclasses

import pytest

from benchmarks.gpu.criteria import (
    DECODE,
    DIFFERENT_BITS,
    MIXTRAL,
    OF_DENSE,
    OLMOE,
    QWEN,
    RECIPE,
    SONIC,
    STEP,
    STEP_4096,
    TESTS,
    judge,
)
from benchmarks.gpu.verdict import verdict
from benchmarks.records import Record
from benchmarks.shapes import PRESETS

COUNT = 21


def kept(preset, factor=1.005):
    """Bytes kept beside the input, so that both are ``factor`` times the floor."""
    shape = PRESETS[preset]
    return int(factor * shape.kept_floor(2)) - 2 * shape.tokens * shape.dim


@pytest.fixture
def invented(case):
    """A run in which everything is met, to be changed."""
    records = [Record("ceiling", "matmul", dtype="bf16", tflops=700.0), Record("ceiling", "copy", gbps=4000.0)]
    for preset, direction in [*OF_DENSE, (SONIC, "forward")]:
        ours = case("moekit-triton", 10.0, preset=preset, direction=direction, of_dense=0.98, kept_bytes=kept(preset))
        records.append(dataclasses.replace(ours, section="criteria", peak_step_bytes=2**30))
        layer = case("moekit-layer", 10.3, preset=preset, direction=direction, role="whole layer")
        records.append(dataclasses.replace(layer, section="criteria"))
    for section, name, preset, time in (
        ("criteria", "grouped_mm", QWEN, 17.0),
        ("criteria", "grouped_mm", MIXTRAL, 10.1),
        ("scattermoe", "scattermoe", QWEN, 16.0),
        ("scattermoe", "moekit-triton", QWEN, 10.0),
    ):
        records.append(dataclasses.replace(case(name, time, preset=preset), section=section))
    # 8 experts of 3 * 1024 * 4096 weights in bf16 at 4000 GB/s take 50.3 us.
    for name, time, preset, direction, section in (
        ("moekit-triton", 0.07, RECIPE, "forward", "criteria"),
        ("moekit-triton", 0.039, DECODE, "forward", "criteria"),
        ("moekit-layer", 0.89, RECIPE, STEP, "steps"),
        ("moekit-layer", 0.29, RECIPE, "forward", "steps"),
        ("moekit-layer", 0.99, STEP_4096, STEP, "steps"),
    ):
        record = case(name, time, preset=preset, direction=direction, graph=direction == "forward")
        records.append(dataclasses.replace(record, section=section))
    for changes, of_dense in (({}, 0.90), ({"skew": "zipf"}, 0.80), ({"dtype": "fp16"}, 0.90)):
        variant = case("moekit-triton", 10.0, preset=QWEN, of_dense=of_dense, **changes)
        records.append(dataclasses.replace(variant, section="variants"))
    records.append(Record("check", "odd sizes", errors={"output": 1e-3}, section="checks"))
    records.append(Record("check", TESTS, reason="341 passed", section="tests"))
    return records


def statuses(records: list[Record]) -> list[str]:
    """All verdicts in order."""
    return [record.status for record in judge(records)]


def changed(records, name, preset, section, direction=STEP, **changes) -> list[Record]:
    """The records with one of them changed."""
    hits = [r for r in records if (r.name, r.preset, r.section, r.direction) == (name, preset, section, direction)]
    assert hits
    return [dataclasses.replace(r, **changes) if r is hits[0] else r for r in records]


def test_everything_can_be_met(invented):
    """The invented run meets every criterion."""
    assert statuses(invented) == ["met"] * COUNT


@pytest.mark.parametrize(
    ("name", "preset", "section", "direction", "changes", "title"),
    [
        *(
            ("moekit-triton", preset, "criteria", direction, {"of_dense": least - 0.001}, f"{preset}, {direction}: at")
            for (preset, direction), least in OF_DENSE.items()
        ),
        ("grouped_mm", MIXTRAL, "criteria", STEP, {"median_ms": 10.0}, "mixtral, forward+backward: faster than"),
        ("grouped_mm", QWEN, "criteria", STEP, {"median_ms": 15.9}, "at least 1.6 times as fast as grouped_mm"),
        ("scattermoe", QWEN, "scattermoe", STEP, {"median_ms": 14.9}, "at least 1.5 times as fast as scattermoe"),
        ("moekit-triton", OLMOE, "criteria", STEP, {"kept_bytes": kept(OLMOE, 1.02)}, "kept for backward"),
        ("moekit-layer", RECIPE, "steps", STEP, {"median_ms": 0.91}, "at most 0.9 ms"),
        ("moekit-layer", RECIPE, "steps", "forward", {"median_ms": 0.31}, "at most 0.3 ms"),
        ("moekit-layer", STEP_4096, "steps", STEP, {"median_ms": 1.01}, "at most 1 ms"),
        ("moekit-triton", DECODE, "criteria", "forward", {"median_ms": 0.041}, "at most 0.04 ms"),
        ("moekit-triton", RECIPE, "criteria", "forward", {"median_ms": 0.076}, "reading the touched weights once"),
        ("moekit-layer", OLMOE, "criteria", "forward", {"median_ms": 10.5}, "the whole layer with its router"),
    ],
)
def test_each_criterion_is_missed_alone(invented, name, preset, section, direction, changes, title):
    """Just below the line, or just above."""
    judged = judge(changed(invented, name, preset, section, direction, **changes))
    (missed,) = [record for record in judged if record.status != "met"]
    assert missed.status == "missed"
    assert title in missed.name


def test_a_slow_variant_is_missed(invented):
    """0.76 of dense where uniform bf16 reaches 0.90."""
    slower = [dataclasses.replace(r, of_dense=0.76) if r.skew == "zipf" else r for r in invented]
    (missed,) = [record for record in judge(slower) if record.status != "met"]
    assert (
        missed.reason == "0.844 moekit-triton qwen3-30b-a3b zipf bf16, 1.000 moekit-triton qwen3-30b-a3b uniform fp16"
    )


def test_different_bits_and_failed_tests_are_missed(invented):
    """Each with its reason."""
    red = [Record("check", "even sizes", status="failed", reason=DIFFERENT_BITS, errors={"output": 1e-3})]
    tests = Record("check", TESTS, status="failed", reason="1 failed, 340 passed")
    judged = judge([*(r for r in invented if r.name != TESTS), *red, tests])
    assert [(r.status, r.reason) for r in judged[-2:]] == [("missed", "even sizes"), ("missed", "1 failed, 340 passed")]


def test_the_faster_of_two_libraries_counts_each_in_its_own_process(invented, case):
    """Being ahead of one is not enough, and the ratio is to our time beside that library."""
    beside = [
        dataclasses.replace(case(n, t, preset=QWEN), section="liger")
        for n, t in (("liger", 14.0), ("moekit-triton", 7))
    ]
    assert statuses([*invented, *beside]) == ["met"] * COUNT
    slower = judge(changed([*invented, *beside], "moekit-triton", QWEN, "liger", median_ms=10.0))
    (missed,) = [record for record in slower if record.status != "met"]
    assert "x1.60 against scattermoe (16 ms, ours 10)" in missed.reason
    assert "x1.40 against liger (14 ms, ours 10)" in missed.reason


def test_what_was_not_measured_is_neither_met_nor_missed(invented, case):
    """And the reason is the peer's."""
    absent = [r for r in invented if r.name != "scattermoe"]
    reason = case("liger", None, preset=QWEN, status="absent", reason="liger-kernel is not installed")
    absent.append(dataclasses.replace(reason, section="liger"))
    (unmeasured,) = [record for record in judge(absent) if record.status != "met"]
    assert unmeasured.status == "unmeasured"
    assert "liger: liger-kernel is not installed" in unmeasured.reason
    assert "scattermoe was not run" in unmeasured.reason
    assert statuses([]) == ["unmeasured"] * COUNT
    other_sizes = [dataclasses.replace(r, shape=(1, 2, 3, 4, 1)) for r in invented if r.kind == "case"]
    assert statuses(other_sizes) == ["unmeasured"] * COUNT
    other_section = [dataclasses.replace(r, section="breadth") for r in invented if r.kind == "case"]
    assert statuses(other_section) == ["unmeasured"] * COUNT
    unlimited = [record for record in judge([r for r in invented if r.kind != "ceiling"]) if record.status != "met"]
    assert [record.reason for record in unlimited] == ["the ceilings were not measured"]
    no_graph = judge(changed(invented, "moekit-triton", DECODE, "criteria", "forward", graph=False))
    assert [r.reason for r in no_graph if r.status != "met"] == ["no graph was captured; 0.039 ms without"]
    cut = [dataclasses.replace(r, status="absent", reason="cut off") if r.name == TESTS else r for r in invented]
    assert [r.status for r in judge(cut) if r.status != "met"] == ["unmeasured"]


def test_a_wrong_result_meets_nothing(invented):
    """However fast it is."""
    wrong = judge(changed(invented, "moekit-triton", MIXTRAL, "criteria", disagrees=0.5))
    missed = [record for record in wrong if record.status == "missed"]
    assert len(missed) == 2  # of dense, and against grouped_mm
    assert all("disagrees with the reference by 5.0e-01" in record.reason for record in missed)


def test_the_verdict_shows_where_time_goes_and_what_is_red(invented, case):
    """Shares of the kernels of a missed workload; a red check before all; two devices are named."""
    missed = changed(invented, "moekit-triton", MIXTRAL, "criteria", of_dense=0.1)
    stages = [
        dataclasses.replace(case(name, time, preset=MIXTRAL, direction="forward"), kind="stage", remark="kernel")
        for name, time in (("1. some_kernel", 3.0), ("2. other_kernel", 1.0))
    ]
    red = Record("check", "odd sizes", status="failed", reason="relative error 1.0e+00", environment={"device": "b"})
    late = Record("check", "section tests", status="absent", reason="cut off after 9 s")
    lines = verdict([*missed, *stages, red, late, *judge(missed)])
    assert "RED: odd sizes: relative error 1.0e+00" in lines
    assert "INCOMPLETE: section tests: cut off after 9 s" in lines
    assert "No speed below counts while a check is red." in lines
    assert "MIXED: the records are of b, invented: only ratios within a section count." in lines
    assert f"{COUNT - 1} met, 1 missed, 0 unmeasured" in lines
    assert " 75.0 %  3 ms  forward 1. some_kernel, 10 TFLOP/s" in lines
    assert " 25.0 %  1 ms  forward 2. other_kernel, 10 TFLOP/s" in lines
