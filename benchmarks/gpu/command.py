"""``python -m benchmarks gpu --out FOLDER``: all measurements that need a GPU, in 5 minutes of a card.

First everything that the other sections launch is compiled, in 16 processes. Then: are the kernels right, the cases
of the criteria, wall time of eager steps, the compiled tests, where the time goes, other libraries, other dtypes and
routings. Each section is a process of its own with a limit of time, so that one that hangs or crashes does not stop the
others; --section runs some of them alone. Records are written as they come, to records.jsonl; those of a section that
runs again replace its earlier ones. At the end the criteria are judged, what had no time is named, and where time goes
is shown for what is missed.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.environment import HERE, commit_of
from benchmarks.gpu.criteria import judge
from benchmarks.gpu.precompile import settle_keys
from benchmarks.gpu.processes import Waiting, wait_for_seconds
from benchmarks.gpu.sections import SECTIONS
from benchmarks.gpu.setting import Setting, require_gpu
from benchmarks.gpu.verdict import verdict
from benchmarks.moe import line
from benchmarks.options import OptionError, add_budget, add_out
from benchmarks.records import Record, read, write
from benchmarks.runner import with_ratios
from moekit_kernels.availability import interpreting, triton_is_installed

BUDGET = 290.0
RESERVE = 3.0  # seconds for the verdict


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    add_out(parser, "folder; records go to records.jsonl in it", required=True)
    add_budget(parser, BUDGET)
    default = [name for name, section in SECTIONS.items() if section.by_default]
    listed = "; ".join(f"{name}: {section.summary}" for name, section in SECTIONS.items())
    parser.add_argument(
        "--section",
        nargs="+",
        default=default,
        choices=list(SECTIONS),
        metavar="NAME",
        help=f"sections to run, by default {' '.join(default)}. {listed}",
    )
    parser.add_argument("--sonicmoe", type=Path, metavar="PATH", help="checkout of SonicMoE to compare with")
    parser.add_argument("--commit", help="commit of this code, for the records; by default what git says")
    parser.add_argument("--rehearsal", action="store_true", help="tiny workloads on CPU: does the command work?")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # the one section, in this process


def run_section(name: str, options: argparse.Namespace, seconds: float) -> None:
    """Runs one section here; its records are appended as they come."""
    deadline = time.monotonic() + seconds
    if options.sonicmoe is not None:
        sys.path.insert(0, str(options.sonicmoe))
    setting = Setting.rehearsal() if options.rehearsal else Setting.real(options.sonicmoe, options.commit)
    about = setting.about | {"command": f"python -m benchmarks gpu --section {name}"}  # the folder means nothing later
    for record in SECTIONS[name].run(setting, lambda: deadline - time.monotonic()):
        record = dataclasses.replace(record, environment=about, section=name)
        write(options.out / "records.jsonl", [record], append=True)
        print(line(record), flush=True)


def section_command(name: str, options: argparse.Namespace) -> list[str]:
    """Returns the command line of the process that runs one section."""
    arguments = ["--out", str(options.out), "--section", name, "--here"]
    arguments += ["--rehearsal"] if options.rehearsal else []
    arguments += ["--sonicmoe", str(options.sonicmoe)] if options.sonicmoe else []
    arguments += ["--commit", options.commit] if options.commit else []
    return [sys.executable, "-m", "benchmarks", "gpu", *arguments]


def section_settings(name: str, options: argparse.Namespace) -> dict[str, str]:
    """Returns the environment variables of a section: in a rehearsal kernels are interpreted, or compiled, on CPU."""
    return {"TRITON_INTERPRET": "0" if name == "compile" else "1"} if options.rehearsal else {}


def run_all(options: argparse.Namespace) -> list[Record]:
    """Runs the sections within the budget; returns what went wrong or had no time."""
    end = time.monotonic() + options.budget
    waiting = {
        name: Waiting(section_command(name, options), section_settings(name, options)) for name in options.section
    }
    problems: list[Record] = []
    try:
        for name in options.section:
            section = Record("check", f"section {name}", section=name)
            left = end - time.monotonic() - RESERVE
            if left < SECTIONS[name].least:
                problems.append(section.because("absent", f"only {max(left, 0):.0f} s were left"))
                continue
            seconds = min(left, SECTIONS[name].most)
            print(f"== {name}: at most {seconds:.0f} s", flush=True)
            start = time.monotonic()
            code = waiting[name].run(seconds).code
            print(f"== {name}: {time.monotonic() - start:.0f} s", flush=True)
            drop_partial_line(options.out / "records.jsonl")
            if code is None:
                problems.append(section.because("absent", f"cut off after {seconds:.0f} s"))
            elif code:
                problems.append(section.because("failed", f"ended with status {code}"))
    finally:
        for process in waiting.values():
            process.end()
    return problems


def drop_partial_line(path: Path) -> None:
    """Removes what stands after the last end of a line: a record whose process ended while it wrote it."""
    text = path.read_bytes()
    path.write_bytes(text[: text.rfind(b"\n") + 1])


def earlier(path: Path, sections: Sequence[str], commit: str) -> list[Record]:
    """Returns the records of other sections that a file holds already.

    Raises:
        OptionError: If they are of another commit.
    """
    records = [r for r in read(path) if r.section not in sections and r.kind != "criterion"] if path.exists() else []
    others = {str(r.environment["commit"]) for r in records if "commit" in r.environment} - {commit}
    if others:
        raise OptionError(
            f"--out must be a new folder, or hold records of this commit, {commit}: {path} has some of "
            f"{', '.join(sorted(others))}."
        )
    return records


def main(options: argparse.Namespace) -> int:
    """Runs the sections, judges; 1 if a check is red or a criterion missed."""
    if options.here:
        if triton_is_installed() and not interpreting():
            settle_keys()  # while others run
        seconds = wait_for_seconds()
        if seconds is not None:
            run_section(options.section[0], options, seconds)
        return 0
    if not options.rehearsal:
        require_gpu()
    if options.sonicmoe is not None and not (options.sonicmoe / "sonicmoe").is_dir():
        raise OptionError(f"--sonicmoe must be a checkout that holds the folder sonicmoe, got {options.sonicmoe}.")
    options.section = [name for name in SECTIONS if name in options.section]  # correctness before speed
    path = options.out / "records.jsonl"
    write(path, earlier(path, options.section, options.commit or commit_of(HERE)[0]))
    problems = run_all(options)
    records = read(path)
    about = next((r.environment for r in records if r.environment), {})
    problems = [dataclasses.replace(problem, environment=about) for problem in problems]
    records = with_ratios([*records, *problems], [r for r in records if r.kind == "ceiling"])
    dtype = "fp32" if options.rehearsal else "bf16"
    records += [dataclasses.replace(record, environment=about) for record in judge(records, dtype)]
    write(path, records)
    print("\n".join(verdict(records)))
    if options.rehearsal:
        print("REHEARSAL: no time and no verdict above means anything.")
    return int(any(r.status in ("failed", "missed") for r in records if r.kind in ("check", "criterion")))
