"""``python -m benchmarks report``: the tables of ``README.md`` and the pictures, all from ``results/*.jsonl``."""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.pictures import draw_bars, draw_roofline
from benchmarks.records import Record, read

HERE = Path(__file__).parent
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
OURS = ("moekit-triton", "moekit-torch")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command: none."""


def main(options: argparse.Namespace) -> int:
    """Writes the tables and pictures of this folder."""
    write_tables(HERE)
    return 0


def write_tables(folder: Path) -> None:
    """Rewrites what lies between the markers of the README and every picture."""
    readme = folder / "README.md"
    text = readme.read_text()
    if BEGIN not in text or END not in text:
        raise ValueError(f"{readme} must hold the lines {BEGIN!r} and {END!r}, between which the tables go.")
    before, _, rest = text.partition(BEGIN)
    parts = [file_section(path) for path in sorted((folder / "results").glob("*.jsonl"))]
    readme.write_text(f"{before}{BEGIN}\n\n{chr(10).join(parts)}\n{END}{rest.partition(END)[2]}")


def file_section(path: Path) -> str:
    """Draws the pictures of one file of records beside it and returns its section of the page."""
    records = read(path)
    lines = [f"### {path.stem}", "", about(records), ""]
    pictures = [draw_bars(records, path.with_suffix(".svg")), draw_roofline(records, path.with_suffix(".roofline.svg"))]
    for picture in filter(None, pictures):
        lines += [f"![{picture.name}](results/{picture.name})", ""]
    lines += criteria_table(records)
    cases = [record for record in records if record.kind == "case"]
    for group in groups(cases):
        lines += case_table(group)
    lines += absent_list(cases)
    for group in groups(record for record in records if record.kind == "stage"):
        lines += stage_table(group)
    lines += check_table([record for record in records if record.kind == "check"])
    return "\n".join(lines)


def about(records: Sequence[Record]) -> str:
    """Returns a line on device, versions, commit, ceilings and command."""
    environment = records[0].environment
    versions = ", ".join(f"{name} {version}" for name, version in environment.get("versions", {}).items())
    dirty = " with changes" if environment.get("dirty") else ""
    ceilings = [r for r in records if r.kind == "ceiling"]
    limits = "; ".join(
        f"{r.name} ({r.remark}) {rate(r.tflops)}" if r.tflops else f"{r.name} ({r.remark}) {r.gbps:.3g} GB/s"
        for r in ceilings
        if r.tflops or r.gbps
    )
    return (
        f"{environment.get('device')}, {environment.get('threads')} threads; {versions}. Commit "
        f"{environment.get('commit')}{dirty}, {environment.get('date')}. Ceilings of the same run: {limits or 'none'}. "
        f"Made by `{environment.get('command')}`."
    )


def groups(records: Iterable[Record]) -> list[list[Record]]:
    """Returns measured records by workload and direction, in order of appearance."""
    by_workload: dict[tuple[object, ...], list[Record]] = {}
    for record in records:
        if record.median_ms is not None:
            direction = record.direction if record.kind == "case" else ""
            by_workload.setdefault((record.preset, record.shape, record.skew, record.dtype, direction), []).append(
                record
            )
    return list(by_workload.values())


def case_table(rows: Sequence[Record]) -> list[str]:
    """Peers on one workload in one direction."""
    by_name = {row.name: row.median_ms for row in rows}
    ours = next((by_name[name] for name in OURS if name in by_name), None)
    lines = [
        f"**{rows[0].direction}**, {rows[0].workload()}",
        "",
        "| layer | median ms | p20 | p80 | rate | of dense | time over moekit's | keeps | peak | remark |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for r in rows:
        assert r.median_ms is not None
        times = "" if ours is None else f"{r.median_ms / ours:.2f}"
        peak = r.peak_forward_bytes if r.direction == "forward" else r.peak_step_bytes
        remarks = "; ".join(filter(None, (r.remark, "CUDA graph" if r.graph else "", wrong(r))))
        lines.append(
            f"| {r.name} | {milliseconds(r)} | {rate(r.tflops)} | {number(r.of_dense)} | {times} "
            f"| {size(r.saved_bytes)} | {size(peak)} | {remarks} |"
        )
    return [*lines, ""]


def stage_table(rows: Sequence[Record]) -> list[str]:
    """Returns the table of our parts on one workload."""
    lines = [
        f"**Parts of moekit alone**, {rows[0].workload()}",
        "",
        "| part | direction | what | median ms | p20 | p80 | rate |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    lines += [f"| {r.name} | {r.direction} | {r.remark} | {milliseconds(r)} | {rate(r.tflops)} |" for r in rows]
    return [*lines, ""]


def absent_list(cases: Sequence[Record]) -> list[str]:
    """Peers that were not measured, each with its reasons."""
    reasons: dict[str, list[str]] = {}
    for record in cases:
        if record.status != "ok":
            reason = f"{record.status} on {record.preset}: {record.reason}"
            reasons.setdefault(record.name, []).append(reason)
    if not reasons:
        return []
    lines = ["Not measured:", ""]
    for name, own in reasons.items():
        plain = {reason.partition(": ")[2] for reason in own}
        lines.append(f"- {name}: {next(iter(plain)) if len(plain) == 1 else '; '.join(dict.fromkeys(own))}")
    return [*lines, ""]


def criteria_table(records: Sequence[Record]) -> list[str]:
    """Returns the table of the verdicts; empty where a run gave none."""
    rows = [record for record in records if record.kind == "criterion"]
    if not rows:
        return []
    lines = ["| criterion | verdict | numbers |", "|---|---|---|"]
    return [*lines, *(f"| {r.name} | {r.status} | {r.reason} |" for r in rows), ""]


def check_table(rows: Sequence[Record]) -> list[str]:
    """Comparisons of numbers, where a run made some."""
    if not rows:
        return []
    lines = ["| check | verdict | relative errors |", "|---|---|---|"]
    for r in rows:
        errors = ", ".join(f"{name} {error:.1e}" for name, error in r.errors.items())
        lines.append(f"| {r.name} | {r.status} | {errors or r.reason} |")
    return [*lines, ""]


def wrong(record: Record) -> str:
    """Returns the remark on a peer whose result is wrong, or was not compared."""
    if record.disagrees is not None:
        return f"**disagrees by {record.disagrees:.1e}**"
    return "a function of its own" if record.role == "whole layer" else ""


def milliseconds(record: Record) -> str:
    """Returns the median, 20th and 80th percentile as three cells."""
    return f"{record.median_ms:.4g} | {record.p20_ms:.4g} | {record.p80_ms:.4g}"


def rate(tflops: float | None) -> str:
    """Returns a rate of operations a second in a readable unit."""
    if tflops is None:
        return ""
    return f"{tflops:.3g} TFLOP/s" if tflops >= 1 else f"{1e3 * tflops:.3g} GFLOP/s"


def size(count: int | None) -> str:
    """Returns a number of bytes in MiB."""
    return "" if count is None else f"{count / 2**20:.4g} MiB"


def number(ratio: float | None) -> str:
    """Returns a ratio with two digits; empty for None."""
    return "" if ratio is None else f"{ratio:.2f}"
