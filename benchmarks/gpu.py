"""``python -m benchmarks gpu --out FOLDER``: all measurements that need a GPU, in one command of under 9 minutes.

Sections, each a process of its own with a limit of time, so that one that hangs or crashes does not stop the
others: large comparisons with the reference; the cases of the criteria; other libraries; the time of every kernel;
the compiled tests of the kernels; other workloads. Records are written as they come. At the end the criteria are
judged, and where time goes is shown for those that are missed.
"""

import argparse
import dataclasses
import subprocess
import sys
import time
from collections.abc import Sequence

from benchmarks.criteria import judge
from benchmarks.gpu_sections import SECTIONS, Setting, require_gpu
from benchmarks.moe import line
from benchmarks.options import add_budget, add_out
from benchmarks.records import Record, read, write
from benchmarks.runner import with_ratios

RESERVE = 5.0  # seconds for the verdict


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    add_out(parser, "folder; records go to records.jsonl in it", required=True)
    add_budget(parser, 510.0)
    parser.add_argument("--section", nargs="+", default=list(SECTIONS), choices=list(SECTIONS))
    parser.add_argument("--rehearsal", action="store_true", help="tiny workloads on CPU: does the command work?")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # the one section, in this process


def run_section(name: str, options: argparse.Namespace, seconds: float) -> None:
    """Runs one section here; its records are appended as they come."""
    setting = Setting.rehearsal() if options.rehearsal else Setting.real()
    deadline = time.monotonic() + seconds
    for record in SECTIONS[name].run(setting, lambda: deadline - time.monotonic()):
        record = dataclasses.replace(record, environment=setting.about)
        write(options.out / "records.jsonl", [record], append=True)
        print(line(record), flush=True)


def section_command(name: str, options: argparse.Namespace, seconds: float) -> list[str]:
    """Returns the command line of the process that runs one section."""
    arguments = ["--out", str(options.out), "--section", name, "--here", "--budget", str(seconds)]
    arguments += ["--rehearsal"] if options.rehearsal else []
    return [sys.executable, "-m", "benchmarks", "gpu", *arguments]


def start_section(name: str, options: argparse.Namespace, seconds: float) -> Record | None:
    """Runs one section in a process of its own; returns a record of what went wrong, if anything did."""
    print(f"== {name}: at most {seconds:.0f} s", flush=True)
    start = time.monotonic()
    try:
        code = subprocess.run(section_command(name, options, seconds), check=False, timeout=seconds).returncode
    except subprocess.TimeoutExpired:
        return Record("check", f"section {name}", status="absent", reason=f"cut off after {seconds:.0f} s")
    print(f"== {name}: {time.monotonic() - start:.0f} s", flush=True)
    if code:
        return Record("check", f"section {name}", status="failed", reason=f"ended with status {code}")
    return None


def verdict(records: Sequence[Record]) -> list[str]:
    """Returns the lines of the verdict: red checks, every criterion, and where time goes for what is missed."""
    red = [r for r in records if r.kind == "check" and r.status == "failed"]
    lines = ["", "== verdict"]
    lines += [f"RED: {r.name}: {r.reason}" for r in red]
    lines += [f"INCOMPLETE: {r.name}: {r.reason}" for r in records if r.kind == "check" and r.status == "absent"]
    if red:
        lines.append("No speed below counts while a check is red.")
    criteria = [r for r in records if r.kind == "criterion"]
    lines += [f"{r.status.upper():10} {r.name}: {r.reason}" for r in criteria]
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


def main(options: argparse.Namespace) -> int:
    """Runs the sections, judges; 1 if a check is red or a criterion missed."""
    if options.here:
        run_section(options.section[0], options, options.budget)
        return 0
    if not options.rehearsal:
        require_gpu()
    path = options.out / "records.jsonl"
    write(path, [])
    end = time.monotonic() + options.budget
    problems: list[Record] = []
    for name in options.section:
        left = end - time.monotonic() - RESERVE
        if left < SECTIONS[name].least:
            problems.append(Record("check", f"section {name}", status="absent", reason=f"only {left:.0f} s were left"))
            continue
        problem = start_section(name, options, min(left, SECTIONS[name].most))
        problems += [] if problem is None else [problem]
    records = read(path)
    records = with_ratios([*records, *problems], [r for r in records if r.kind == "ceiling"])
    dtype = next((r.dtype for r in records if r.kind == "case"), "bf16")
    about = next((r.environment for r in records if r.environment), {})
    records += [dataclasses.replace(record, environment=about) for record in judge(records, dtype)]
    write(path, records)
    print("\n".join(verdict(records)))
    return int(any(r.status in ("failed", "missed") for r in records if r.kind in ("check", "criterion")))
