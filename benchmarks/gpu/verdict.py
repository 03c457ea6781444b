"""The lines with which ``python -m benchmarks gpu`` ends."""

from collections.abc import Sequence

from benchmarks.records import Record


def verdict(records: Sequence[Record]) -> list[str]:
    """Returns red checks, what was not run, every criterion, and where time goes for what is missed."""
    checks = [r for r in records if r.kind == "check"]
    red = [r for r in checks if r.status == "failed"]
    lines = ["", "== verdict"]
    lines += [f"RED: {r.name}: {r.reason}" for r in red]
    lines += [f"INCOMPLETE: {r.name}: {r.reason}" for r in checks if r.status == "absent"]
    if red:
        lines.append("No speed below counts while a check is red.")
    devices = sorted({str(r.environment["device"]) for r in records if "device" in r.environment})
    if len(devices) > 1:
        lines.append(f"MIXED: the records are of {', '.join(devices)}: only ratios within a section count.")
    criteria = [r for r in records if r.kind == "criterion"]
    lines += [f"{r.status.upper():10} {r.name}: {r.reason}" for r in criteria]
    counts = {status: sum(r.status == status for r in criteria) for status in ("met", "missed", "unmeasured")}
    lines.append(", ".join(f"{count} {status}" for status, count in counts.items()))
    for preset in dict.fromkeys(r.preset for r in criteria if r.status == "missed" and r.preset):
        lines += profile(records, preset)
    return lines


def profile(records: Sequence[Record], preset: str) -> list[str]:
    """Returns where the time of one workload goes, kernel by kernel."""
    stages = [
        r
        for r in records
        if (r.kind, r.remark, r.preset) == ("stage", "kernel", preset) and r.direction in ("forward", "backward")
    ]
    total = sum(r.median_ms or 0 for r in stages)
    lines = [f"-- {preset}: {total:.4g} ms in the kernels of forward and backward, each timed alone"]
    for r in stages:
        share = 100 * (r.median_ms or 0) / total if total else 0.0
        rate = "" if r.tflops is None else f", {r.tflops:.4g} TFLOP/s"
        lines.append(f"{share:5.1f} %  {r.median_ms or 0:.4g} ms  {r.direction} {r.name}{rate}")
    return lines
