"""The page of host records: times beside the baseline's, and every kernel of a step."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.shapes import Shape

Records = Sequence[dict[str, Any]]

_TITLE = """# Host time and launches of a step

Written by `python -m benchmarks host`. No GPU: kernels are compiled for an H100, and a driver that starts nothing
stands in the place of CUDA's, so everything before the GPU runs: the layer, autograd, launchers, Triton. Times are
processor time of one thread; the machine was shared, so the least time says most. Freed memory is kept by the
allocator, as on a GPU. A step is forward and backward; "inference" is forward without gradients. Sizes with T = 512
stand for T = 4096: the same kernels, in widths whose arithmetic by torch costs a CPU nothing. A compiled layer is
`torch.compile(layer)` alone, with its guards; a further layer of one compiled model costs less.
"""


def write_table(records: Records, path: Path) -> None:
    """Writes the page."""
    now = [record for record in records if record["checkout"] == "now"]
    before = {_key(record): record for record in records if record["checkout"] == "baseline"}
    about = now[0]["environment"]
    versions = ", ".join(f"{name} {about['versions'][name]}" for name in ("python", "torch", "triton"))
    lines = [_TITLE, f"{about['device']}; {versions}; commit {about['commit']}, {about['date']}."]
    if before:
        earlier = next(iter(before.values()))["environment"]
        lines[-1] += f" Baseline: commit {earlier['commit']}, measured in turn."
    lines += ["", *_times(now, before), "", *_counts(now, before)]
    for record in now:
        lines += ["", *_kernels(record)]
    path.write_text("\n".join(lines) + "\n")


def _times(now: Records, before: dict[str, dict[str, Any]]) -> list[str]:
    lines = [
        "| case | direction | least ms | median ms | baseline least | baseline median | least / baseline |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for record in now:
        for direction in ("inference", "step"):
            times = record.get(direction, {})
            if "least_ms" not in times:
                continue
            old = before.get(_key(record), {}).get(direction)
            others = ["", "", ""]
            if old is not None:
                others = [old["least_ms"], old["median_ms"], f"{times['least_ms'] / old['least_ms']:.2f}"]
            cells = [_key(record), direction, times["least_ms"], times["median_ms"], *others]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def _counts(now: Records, before: dict[str, dict[str, Any]]) -> list[str]:
    lines = [
        "Kernels that are started, ours + torch's:",
        "",
        "| case | inference | forward | backward | step | step of the baseline |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for record in now:
        parts = [_count(record, direction) for direction in ("inference", "forward", "backward")]
        old = before.get(_key(record))
        step, baseline = (
            "" if each is None else _sum(_count(each, "forward"), _count(each, "backward")) for each in (record, old)
        )
        lines.append(f"| {_key(record)} | {' | '.join(f'{o} + {t}' for o, t in parts)} | {step} | {baseline} |")
    return lines


def _kernels(record: dict[str, Any]) -> list[str]:
    lines = [f"## {_key(record)}", "", "| direction | ours, in their order | torch's |", "|---|---|---|"]
    for direction in ("inference", "forward", "backward"):
        part = record[direction]
        ours = ", ".join(f"`{name}`" for name in part["launches"])
        torchs = ", ".join(
            f"`{name}`" + (f" x {count}" if count > 1 else "") for name, count in Counter(part["operators"]).items()
        )
        lines.append(f"| {direction} | {ours} | {torchs or 'none'} |")
    return lines


def _count(record: dict[str, Any], direction: str) -> tuple[int, int]:
    part = record[direction]
    return len(part["launches"]), sum(part["operators"].values())


def _sum(forward: tuple[int, int], backward: tuple[int, int]) -> str:
    return f"{forward[0] + backward[0]} + {forward[1] + backward[1]}"


def _key(record: dict[str, Any]) -> str:
    return f"{record['name']}, {Shape(*record['shape'])}"
