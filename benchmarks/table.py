"""``python -m benchmarks.table BENCHMARK.json``: records and the table of ``benchmarks/README.md`` from one run.

``BENCHMARK.json`` is what ``pytest benchmarks --benchmark-only`` writes with ``--benchmark-json``.
"""

import importlib.metadata
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
PACKAGES = ("moekit", "torch", "transformers", "st-moe-pytorch", "pytest-benchmark")


def records(report: dict[str, Any]) -> list[dict[str, Any]]:
    """One record per layer and direction: times in milliseconds, rates in GFLOP/s."""
    found = []
    for one in report["benchmarks"]:
        times = sorted(1e3 * seconds for seconds in one["stats"]["data"])
        median = statistics.median(times)
        tenths = statistics.quantiles(times, n=10, method="inclusive")
        found.append(
            {
                **one["extra_info"],
                "median_ms": median,
                "p20_ms": tenths[1],
                "p80_ms": tenths[7],
                "rounds": len(times),
                "gflops_per_second": one["extra_info"]["flops"] / median / 1e6,
                "machine": machine(),
                "versions": versions(),
                "commit": commit(),
                "date": report["datetime"][:10],
            }
        )
    return found


def table(found: list[dict[str, Any]]) -> str:
    """The records as markdown, with each layer's speed relative to ours."""
    lines = []
    for direction in dict.fromkeys(record["direction"] for record in found):
        rows = [record for record in found if record["direction"] == direction]
        ours = next(record["median_ms"] for record in rows if record["layer"] == "moekit")
        lines += [
            f"\n**{direction}**, {rows[0]['shape']}, float32\n",
            "| layer | median ms | p20 | p80 | GFLOP/s | moekit is this many times as fast | remark |",
            "|---|---:|---:|---:|---:|---:|---|",
        ]
        lines += [
            f"| {r['layer']} | {r['median_ms']:.1f} | {r['p20_ms']:.1f} | {r['p80_ms']:.1f} "
            f"| {r['gflops_per_second']:.0f} | {r['median_ms'] / ours:.2f} | {r['remark']} |"
            for r in rows
        ]
    first = found[0]
    about = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    lines += [f"\nMachine: {first['machine']}. {about}. Commit {first['commit']}, {first['date']}.\n"]
    return "\n".join(lines)


def machine() -> str:
    """Processor and threads."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, {torch.get_num_threads()} threads, CPU only"


def versions() -> dict[str, str]:
    """Versions of all that was measured."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def commit() -> str:
    """The commit that was measured, marked if the tree differed from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()

    measured = ["moekit", "kernels", "benchmarks/*.py"]
    dirty = git("status", "--porcelain", "--", *(f":/{path}" for path in measured))
    return git("rev-parse", "--short", "HEAD") + ("+changes" if dirty else "")


def main(path: Path) -> None:
    """Writes ``results/cpu.jsonl`` and the table."""
    found = records(json.loads(path.read_text()))
    lines = "".join(json.dumps(record) + "\n" for record in found)
    (HERE / "results" / "cpu.jsonl").write_text(lines)
    readme = HERE / "README.md"
    before, _, rest = readme.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    readme.write_text(f"{before}{BEGIN}\n{table(found)}\n{END}{after}")
    print(table(found))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
