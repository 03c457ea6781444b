"""``python -m benchmarks report``: tables and pictures, all from ``results/*.jsonl``.

``benchmarks/README.md`` gets every table. The repository's README and ``docs/benchmarks.md`` get the few of the newest
records of a GPU.
"""

import argparse
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks import summary
from benchmarks.curve_tables import curve_tables
from benchmarks.pictures import draw_bars, draw_curves, draw_roofline
from benchmarks.records import Record, read

HERE = Path(__file__).parent
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
BRIEFLY: dict[str, tuple[Callable[[Sequence[Record]], list[str]], ...]] = {
    "experts": (summary.experts_table,),
    "few tokens": (summary.few_table,),
    "steps": (summary.steps_table,),
    "kernels": (summary.kernels_table,),
}
"""What other pages may show of the newest records of a GPU, between ``<!-- gpu NAME: begin -->`` and its end."""
OURS = ("moekit-triton", "moekit-torch")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command: none."""


def main(options: argparse.Namespace) -> int:
    """Writes the tables and pictures of this folder, and what the other pages show of them."""
    write_tables(HERE)
    for page in (HERE.parent / "README.md", HERE.parent / "docs" / "benchmarks.md"):
        write_briefly(page, HERE / "results")
    return 0


def write_tables(folder: Path) -> None:
    """Rewrites what lies between the markers of the README and every picture.

    Raises:
        ValueError: If the markers are missing.
    """
    readme = folder / "README.md"
    parts = [file_section(path) for path in sorted((folder / "results").glob("*.jsonl"))]
    readme.write_text(between(readme, BEGIN, END, "\n".join(parts)))


def between(page: Path, begin: str, end: str, text: str) -> str:
    """Returns a page with ``text`` between two of its lines.

    Raises:
        ValueError: If the page does not hold them.
    """
    before, first, rest = page.read_text().partition(begin)
    _, last, after = rest.partition(end)
    if not first or not last:
        raise ValueError(f"{page} must hold the lines {begin!r} and {end!r}, between which the tables go.")
    return f"{before}{begin}\n\n{text}\n{end}{after}"


def write_briefly(page: Path, results: Path) -> None:
    """Rewrites the tables of the newest records of a GPU on another page, where it has their markers.

    A table that these have no records for is made of the newest ones that do, and says of which.
    """
    paths = of_a_gpu(results)
    if not paths:
        return
    runs = [read(path) for path in paths]
    texts = {name: "\n".join(_newest(tables, runs)) for name, tables in BRIEFLY.items()}
    texts["about"] = f"{summary.about(runs[0])}\n"
    picture = draw_bars(summary.many_slots(runs[0]), paths[0].with_suffix(".many.svg"))
    if picture is not None:
        place = Path(os.path.relpath(picture, page.parent)).as_posix()
        texts["picture"] = f"![Speed relative to a dense network of as many operations.]({place})\n"
    for name, text in texts.items():
        begin, end = f"<!-- gpu {name}: begin -->", f"<!-- gpu {name}: end -->"
        if begin in page.read_text():
            page.write_text(between(page, begin, end, text))


def _newest(
    tables: Sequence[Callable[[Sequence[Record]], list[str]]], runs: Sequence[Sequence[Record]]
) -> Iterable[str]:
    """Yields the lines of tables, each of the first run that has records for it."""
    for table in tables:
        lines = next(((run, lines) for run in runs if (lines := table(run))), None)
        if lines is not None:
            run, text = lines
            yield from text if run is runs[0] else [*text, f"These are of {summary.source(run)}.", ""]


def newest_of_a_gpu(results: Path) -> Path | None:
    """Returns the file of records in which our kernels were timed last; None if there is none."""
    return next(iter(of_a_gpu(results)), None)


def of_a_gpu(results: Path) -> list[Path]:
    """Returns the files of records in which our kernels were timed.

    Runs that have other libraries come first, the newest of them first, then runs of some sections only; of one day the
    last by name.
    """
    files = [(path, read(path)) for path in results.glob("*.jsonl")]
    keys = [
        (summary.has_other_libraries(records), str(records[0].environment.get("date")), path)
        for path, records in files
        if summary.is_of_a_gpu(records)
    ]
    return [path for *_, path in sorted(keys, reverse=True)]


def file_section(path: Path) -> str:
    """Draws the pictures of one file of records beside it and returns its section of the page."""
    records = read(path)
    lines = [f"### {path.stem}", "", about(records), ""]
    pictures = [draw_bars(records, path.with_suffix(".svg")), draw_roofline(records, path.with_suffix(".roofline.svg"))]
    pictures += draw_curves(records, path)
    for picture in filter(None, pictures):
        lines += [f"![{picture.name}](results/{picture.name})", ""]
    lines += criteria_table(records)
    cases = [record for record in records if record.kind == "case"]
    for group in groups(cases):
        lines += case_table(group)
    lines += absent_list(cases)
    lines += curve_tables([record for record in records if record.kind == "curve"])
    for group in groups(record for record in records if record.kind == "stage"):
        lines += stage_table(group)
    lines += check_table([record for record in records if record.kind == "check"])
    return "\n".join(lines)


def about(records: Sequence[Record]) -> str:
    """Returns a line on device, versions, commit, ceilings and command."""
    environment = records[0].environment
    versions = ", ".join(f"{name} {version}" for name, version in environment.get("versions", {}).items())
    dirty = " with changes" if environment.get("dirty") else ""
    commands = list(dict.fromkeys(r.environment["command"] for r in records if r.environment.get("command")))
    ceilings = [r for r in records if r.kind == "ceiling"]
    limits = "; ".join(
        f"{r.name} ({r.remark}) {rate(r.tflops)}" if r.tflops else f"{r.name} ({r.remark}) {r.gbps:.3g} GB/s"
        for r in ceilings
        if r.tflops or r.gbps
    )
    return (
        f"{environment.get('device')}, {environment.get('threads')} threads; {versions}. Commit "
        f"{environment.get('commit')}{dirty}, {environment.get('date')}. Ceilings of the same run: {limits or 'none'}. "
        f"Made by {', '.join(f'`{c}`' for c in commands) or 'hand, from printed figures'}."
    )


def groups(records: Iterable[Record]) -> list[list[Record]]:
    """Returns measured records by workload and direction, in order of appearance."""
    by_workload: dict[tuple[object, ...], list[Record]] = {}
    for record in records:
        if record.median_ms is not None:
            direction = record.direction if record.kind == "case" else ""
            key = (record.preset, record.shape, record.skew, record.dtype, direction, record.section)
            by_workload.setdefault(key, []).append(record)
    return list(by_workload.values())


def case_table(rows: Sequence[Record]) -> list[str]:
    """Peers on one workload in one direction."""
    by_name = {row.name: row.median_ms for row in rows}
    ours = next((by_name[name] for name in OURS if name in by_name), None)
    lines = [
        f"**{rows[0].direction}**, {title(rows[0])}",
        "",
        "| layer | median ms | p20 | p80 | rate | of dense | time over moekit's | keeps | peak | remark |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for r in rows:
        assert r.median_ms is not None
        times = "" if ours is None else f"{r.median_ms / ours:.2f}"
        peak = r.peak_forward_bytes if r.direction == "forward" else r.peak_step_bytes
        remarks = "; ".join(filter(None, (r.remark, "CUDA graph" if r.graph else "", wrong(r), r.source)))
        lines.append(
            f"| {r.name} | {milliseconds(r)} | {rate(r.tflops)} | {number(r.of_dense)} | {times} "
            f"| {size(r.saved_bytes)} | {size(peak)} | {remarks} |"
        )
    return [*lines, ""]


def stage_table(rows: Sequence[Record]) -> list[str]:
    """Returns the table of our parts on one workload."""
    lines = [
        f"**Parts of moekit alone**, {title(rows[0])}",
        "",
        "| part | direction | what | median ms | p20 | p80 | rate |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    lines += [f"| {r.name} | {r.direction} | {r.remark} | {milliseconds(r)} | {rate(r.tflops)} |" for r in rows]
    return [*lines, ""]


def title(record: Record) -> str:
    """Returns the workload in words, with the section of the GPU command where there is one."""
    return f"{record.workload()}, section {record.section}" if record.section else record.workload()


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
    sources = sorted({r.source for r in rows if r.source})
    rows_of = [f"| {r.name} | {r.status} | {r.reason} |" for r in rows]
    return [*lines, *rows_of, "", *(f"The verdicts were {source}.\n" for source in sources)]


def check_table(rows: Sequence[Record]) -> list[str]:
    """Comparisons of numbers, where a run made some."""
    if not rows:
        return []
    lines = ["| check | verdict | relative errors, remarks |", "|---|---|---|"]
    for r in rows:
        errors = ", ".join(f"{name} {error:.1e}" for name, error in r.errors.items())
        words = "; ".join(filter(None, (errors, r.reason, r.source)))
        lines.append(f"| {r.name} | {r.status} | {words} |")
    return [*lines, ""]


def wrong(record: Record) -> str:
    """Returns the remark on a peer whose result is wrong, or was not compared."""
    if record.disagrees is not None:
        return f"**disagrees by {record.disagrees:.1e}**"
    return "a function of its own" if record.role == "whole layer" else ""


def milliseconds(record: Record) -> str:
    """Returns the median, 20th and 80th percentile as three cells; empty where a figure is missing."""
    times = (record.median_ms, record.p20_ms, record.p80_ms)
    return " | ".join("" if ms is None else f"{ms:.4g}" for ms in times)


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
