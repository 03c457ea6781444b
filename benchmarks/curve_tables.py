"""Tables of how the cost of a layer grows, from the records of ``python -m benchmarks curves``."""

from collections.abc import Callable, Sequence

from benchmarks.records import Record
from benchmarks.shapes import Shape
from benchmarks.workload import exponent_of

STEP = "forward+backward"
PROCESSOR_TIME = "time of the processor, not of the clock"
"""In the remark of a record whose times are not the clock's."""


def timed_by(remark: str, processor_time: bool) -> str:
    """Returns a remark that says so where the times are the processor's."""
    return f"{remark}; {PROCESSOR_TIME}" if processor_time else remark


GROWS: dict[str, Callable[[Record], float]] = {
    "tokens": lambda record: Shape(*record.shape).tokens,
    "experts": lambda record: Shape(*record.shape).num_experts,
    "top-k": lambda record: Shape(*record.shape).top_k,
    "skew": lambda record: exponent_of(record.skew),
}
"""What grows along a curve, by its name, from a record."""

LABELS = {
    "tokens": "tokens",
    "experts": "experts, K times F unchanged",
    "top-k": "experts per token",
    "skew": "exponent of Zipf's law",
}


def measured(records: Sequence[Record], curve: str) -> list[Record]:
    """Returns the measured points of a curve, in the order in which it grows."""
    return sorted((r for r in records if r.preset == curve and r.median_ms is not None), key=GROWS[curve])


def memory_of(record: Record) -> int | None:
    """Returns the peak of a step where the allocator counts it (GPU), else what is kept for backward."""
    return record.saved_bytes if record.peak_step_bytes is None else record.peak_step_bytes


def memory_label(records: Sequence[Record]) -> str:
    """Returns what :func:`memory_of` means for these records."""
    on_gpu = any(r.peak_step_bytes is not None for r in records)
    return "peak of a step" if on_gpu else "kept for backward"


def curve_tables(records: Sequence[Record]) -> list[str]:
    """Returns a table for each curve: milliseconds of a step and MiB, a row for each point, a column for each layer."""
    lines: list[str] = []
    for curve in GROWS:
        points = [r for r in measured(records, curve) if r.direction == STEP]
        if not points:
            continue
        names = list(dict.fromkeys(r.name for r in points))
        first = points[0]
        lines += [
            f"**{STEP}, growing {LABELS[curve]}**: ms{_clock(first)}, MiB {memory_label(points)}; {first.dtype}",
            "",
            f"| {curve} | sizes | {' | '.join(names)} |",
            f"|---:|---|{'---:|' * len(names)}",
        ]
        by_point = {(GROWS[curve](r), r.name): r for r in points}
        for value in dict.fromkeys(GROWS[curve](r) for r in points):
            row = [by_point.get((value, name)) for name in names]
            sizes = next(Shape(*r.shape) for r in row if r is not None)
            lines.append(f"| {value:g} | {sizes} | {' | '.join(map(_cell, row))} |")
        lines.append("")
    return lines


def _clock(record: Record) -> str:
    return f" ({PROCESSOR_TIME})" if PROCESSOR_TIME in record.remark else ""


def _cell(record: Record | None) -> str:
    if record is None:
        return "–"
    memory = memory_of(record)
    return f"{record.median_ms:.3g}" + ("" if memory is None else f", {memory / 2**20:.3g}")
