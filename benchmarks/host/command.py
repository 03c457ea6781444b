"""``python -m benchmarks host``: launches, torch's operators and host time of a step, without a GPU.

Kernels are compiled for sm_90 but not started (:mod:`benchmarks.host.stub`), so all of Python runs: layers, autograd,
launchers, Triton's binder and cache keys. What a real driver, a real allocator and the threads of autograd on a GPU
cost is not in the times. Records and a table of every kernel go to ``benchmarks/results/host``;
``--baseline CHECKOUT`` measures another checkout too, in turn with this one.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import commit_of, environment
from benchmarks.host.table import write_table
from benchmarks.options import add_out

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "benchmarks" / "results" / "host" / "records.jsonl"


# Freed memory is used again, as a GPU's allocator does: large blocks are not mapped and unmapped on each step.
_MALLOC = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 36),
    "MALLOC_TOP_PAD_": str(1 << 28),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    parser.add_argument("--baseline", type=Path, help="another checkout, measured in turn with this one")
    parser.add_argument("--rounds", type=int, default=3, help="processes for each checkout")
    parser.add_argument("--repeats", type=int, default=300, help="steps of each process")
    add_out(parser, "file of the records, in place of the committed one; the table goes beside it")


def main(options: argparse.Namespace) -> int:
    """Measures and writes."""
    checkouts = {"now": ROOT, **({} if options.baseline is None else {"baseline": options.baseline.resolve()})}
    rounds: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in checkouts}
    for _ in range(options.rounds):
        for name, checkout in checkouts.items():
            rounds[name].append(measure_in_a_process(checkout, options.repeats))
    records = [record for name, checkout in checkouts.items() for record in summary(name, checkout, rounds[name])]
    path: Path = options.out or RECORDS
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    table = path.with_name("README.md")
    write_table(records, table)
    print(table.read_text())
    return 0


def measure_in_a_process(checkout: Path, repeats: int) -> list[dict[str, Any]]:
    """Returns what :mod:`benchmarks.host.measure` prints for a checkout; this one's benchmarks measure it."""
    variables = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.host.measure", str(checkout), str(repeats)],
        cwd=ROOT,
        # What the compiler kept may be of another checkout's operations.
        env={**variables, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1", **_MALLOC},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"measuring {checkout} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def summary(name: str, checkout: Path, rounds: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Returns one record for each case: counts, and the least and the median time of all rounds."""
    about = environment(torch.device("cpu"))
    about["commit"], about["dirty"] = commit_of(checkout)
    records = []
    for parts in zip(*rounds, strict=True):
        record: dict[str, Any] = {"checkout": name, "environment": about, **parts[0]}
        for direction in ("inference", "step"):
            times = [time for part in parts for time in part.get(direction, {}).get("times", [])]
            if times:
                record[direction] = {
                    **{k: v for k, v in parts[0][direction].items() if k != "times"},
                    "least_ms": round(min(times), 4),
                    "p20_ms": round(statistics.quantiles(times, n=5)[0], 4),
                    "median_ms": round(statistics.median(times), 4),
                    "repeats": len(times),
                }
        records.append(record)
    return records
