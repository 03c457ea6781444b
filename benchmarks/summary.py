"""The few tables of GPU figures that the README and ``docs/benchmarks.md`` show, from one file of records."""

from collections.abc import Iterable, Sequence

from benchmarks.records import Record
from benchmarks.shapes import Shape

OURS = "moekit-triton"
MANY_SLOTS = 4096
"""Slots from which the dense network is the ceiling; with fewer, reading the weights is."""

OTHERS = ("scattermoe", "liger", "sonicmoe", "megablocks", "tutel", "transformers-grouped_mm")
FORWARD, STEP = "forward", "forward+backward"


def is_of_a_gpu(records: Sequence[Record]) -> bool:
    """Returns whether our kernels were timed: a rehearsal or a run on CPU is not."""
    return any(r.name == OURS and r.kind == "case" and r.median_ms for r in records)


def many_slots(records: Iterable[Record]) -> list[Record]:
    """Returns the cases that are large enough for the dense network to be the ceiling, without the wall times."""
    cases = [r for r in records if r.kind == "case" and r.shape and r.section != "steps"]
    return [r for r in cases if Shape(*r.shape).slots >= MANY_SLOTS]


def about(records: Sequence[Record]) -> str:
    """Returns a sentence on where and when."""
    environment = records[0].environment
    versions = environment.get("versions", {})
    limits = {r.name: r for r in records if r.kind == "ceiling"}
    ceilings = ""
    if {"matmul", "copy"} <= limits.keys():
        matmul, copy = limits["matmul"], limits["copy"]
        ceilings = (
            f" In the same run a product of {matmul.remark} reached {matmul.tflops:.0f} TFLOP/s and a copy "
            f"{(copy.gbps or 0) / 1e3:.2f} TB/s."
        )
    return (
        f"Measured on {environment.get('date')} on one {environment.get('device')} with torch {versions.get('torch')} "
        f"and Triton {versions.get('triton')}, in bfloat16, at commit {environment.get('commit')}.{ceilings}"
    )


def source(records: Sequence[Record]) -> str:
    """Returns device and commit."""
    environment = records[0].environment
    return f"one {environment.get('device')}, commit {environment.get('commit')}, {environment.get('date')}"


def has_other_libraries(records: Sequence[Record]) -> bool:
    """Returns whether other libraries were timed beside ours."""
    return any(r.kind == "case" and r.name in OTHERS and r.median_ms is not None for r in records)


def experts_table(records: Sequence[Record]) -> list[str]:
    """Returns the experts with many tokens: times, rates, and how many times as fast as each other layer."""
    lines = [
        "| workload | moekit, ms | TFLOP/s | of dense | times as fast as `grouped_mm` | as other libraries |",
        "|---|---:|---:|---:|---:|---|",
    ]
    cases = many_slots(records)
    for preset in _presets(r for r in cases if r.name == OURS and r.section == "criteria"):
        ours = {d: _find(cases, OURS, preset, d) for d in (FORWARD, STEP)}
        cells = [
            _pair(_digits(r and r.median_ms) for r in ours.values()),
            _pair(r and r.tflops and f"{r.tflops:.0f}" for r in ours.values()),
            _pair(r and r.of_dense and f"{r.of_dense:.2f}" for r in ours.values()),
            _pair(_times(cases, "grouped_mm", preset, d) for d in ours),
            "; ".join(_others(cases, preset)),
        ]
        lines.append(f"| {_workload(cases, preset)} | {' | '.join(cells)} |")
    return [*lines, ""] if len(lines) > 2 else []


def _others(cases: Sequence[Record], preset: str) -> list[str]:
    pairs = []
    for name in OTHERS:
        pair = _pair(_times(cases, name, preset, direction) for direction in (FORWARD, STEP))
        if pair.strip("– ·"):
            pairs.append(f"{name} {pair}")
    return pairs


def few_table(records: Sequence[Record]) -> list[str]:
    """Returns few tokens: forward from a CUDA graph in microseconds, a step started from Python in milliseconds."""
    lines = [
        "| workload | moekit, µs | whole layer | `grouped_mm` | dense | moekit, a step, ms | `grouped_mm`, a step |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    cases = [r for r in records if r.kind == "case" and r.section == "criteria" and r.median_ms]
    for preset in _presets(r for r in cases if r.name == OURS and r.graph):
        forward = [_find(cases, name, preset, FORWARD) for name in (OURS, "moekit-layer", "grouped_mm", "dense")]
        steps = [_find(cases, name, preset, STEP) for name in (OURS, "grouped_mm")]
        cells = [_digits(r and 1e3 * (r.median_ms or 0)) for r in forward] + [_digits(r and r.median_ms) for r in steps]
        lines.append(f"| {_workload(cases, preset)} | {' | '.join(cells)} |")
    return [*lines, ""] if len(lines) > 2 else []


def steps_table(records: Sequence[Record]) -> list[str]:
    """Returns the wall times of eager steps, in milliseconds."""
    cases = [r for r in records if r.kind == "case" and r.section == "steps" and r.median_ms]
    names = list(dict.fromkeys(r.name for r in cases))
    columns = [(n, d) for n in names for d in (FORWARD, STEP) if any((r.name, r.direction) == (n, d) for r in cases)]
    columns.sort(key=lambda column: not column[0].startswith("moekit"))
    if not columns:
        return []
    labels = [f"{name}, {'forward without gradients' if d == FORWARD else 'a step'}" for name, d in columns]
    lines = [f"| workload | {' | '.join(labels)} |", f"|---|{'---:|' * len(labels)}"]
    for preset in _presets(cases):
        row = [_find(cases, name, preset, direction, "steps") for name, direction in columns]
        cells = [_digits(r and r.median_ms) for r in row]
        lines.append(f"| {_workload(cases, preset)} | {' | '.join(cells)} |")
    return [*lines, ""]


def kernels_table(records: Sequence[Record]) -> list[str]:
    """Returns each kernel alone, in milliseconds and TFLOP/s, one column a workload."""
    stages = [r for r in records if r.kind == "stage" and r.remark == "kernel" and r.median_ms]
    stages = [r for r in stages if r.direction in ("forward", "backward")]
    presets = [preset for preset in _presets(stages) if any(r.direction == "backward" for r in stages)]
    presets = [p for p in presets if Shape(*next(r.shape for r in stages if r.preset == p)).slots >= MANY_SLOTS]
    rows = list(dict.fromkeys((r.direction, r.name) for r in stages if r.preset in presets))
    rows.sort(key=lambda row: (row[0] == "backward", row[1]))  # names begin with the number of the launch
    if not rows:
        return []
    lines = [f"| kernel | {' | '.join(presets)} |", f"|---|{'---:|' * len(presets)}"]
    for direction, name in rows:
        own = [
            next((r for r in stages if (r.direction, r.name, r.preset) == (direction, name, p)), None) for p in presets
        ]
        lines.append(f"| {direction} {name} | {' | '.join(_stage(r) for r in own)} |")
    return [*lines, ""]


def _stage(record: Record | None) -> str:
    if record is None:
        return "–"
    return _digits(record.median_ms) + (f", {record.tflops:.0f}" if record.tflops else "")


def _digits(value: float | None) -> str:
    """Returns three digits, and all before the point; a dash where there is no figure."""
    if not value:
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def _presets(records: Iterable[Record]) -> list[str]:
    return list(dict.fromkeys(r.preset for r in records))


def _workload(records: Sequence[Record], preset: str) -> str:
    shape = next(r.shape for r in records if r.preset == preset)
    return f"{preset}: {Shape(*shape)}"


def _find(
    records: Sequence[Record], name: str, preset: str, direction: str, section: str = "criteria"
) -> Record | None:
    key = (name, preset, direction, section, "uniform")
    same = (r for r in records if (r.name, r.preset, r.direction, r.section, r.skew) == key)
    return next((r for r in same if r.median_ms is not None), None)


def _times(records: Sequence[Record], name: str, preset: str, direction: str) -> str | None:
    """Returns how many times as fast as another layer ours is, timed beside it or in the section of the criteria."""
    section = "criteria" if name == "grouped_mm" else name
    other = _find(records, name, preset, direction, section)
    ours = _find(records, OURS, preset, direction, section) or _find(records, OURS, preset, direction)
    if other is None or ours is None or not ours.median_ms or not other.median_ms:
        return None
    return f"{other.median_ms / ours.median_ms:.2f}"


def _pair(cells: Iterable[str | float | None]) -> str:
    return " · ".join(str(cell) if cell else "–" for cell in cells)
