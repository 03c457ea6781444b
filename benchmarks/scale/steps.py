"""``python -m benchmarks scale-steps``: steps of ``examples/lm_pretrain.py`` on one, two and four processes.

All divisions take the same batches in the same order, each rank its part. Every process has one thread. On processors
that processes share this shows what dividing costs, not what it gains; on a machine with several GPUs each process has
one. Each division is started several times, in turn with the others. Writes ``records.jsonl`` and a page beside it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import environment
from benchmarks.options import OptionError, add_out

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parents[1] / "results" / "scale-steps"
SCRIPT = """
import json, sys, warnings
warnings.simplefilter("ignore")
from examples import lm_pretrain
history = lm_pretrain.main(sys.argv[2:])
if lm_pretrain.os.environ["RANK"] == "0":
    open(sys.argv[1], "w").write(json.dumps(history))
"""
Division = tuple[int, int]
"""Processes, and among how many of them the experts are divided."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    parser.add_argument("--process-count", type=int, nargs="+", default=[1, 2, 4], help="processes that train")
    parser.add_argument("--steps", type=int, default=40, help="timed steps of a start")
    parser.add_argument("--warm-up", type=int, default=10, help="steps before")
    parser.add_argument("--starts", type=int, default=3, help="how often each division is started")
    parser.add_argument("--batch", type=int, default=16, help="sequences of all processes together in a step")
    parser.add_argument("--length", type=int, default=128, help="tokens of a sequence")
    add_out(parser, "folder of records and page, in place of the committed one")


def main(options: argparse.Namespace) -> int:
    """Measures and writes."""
    for name in ("steps", "starts"):
        if getattr(options, name) < 1:
            raise OptionError(f"--{name} must be at least 1, got {getattr(options, name)}.")
    if options.warm_up < 0:
        raise OptionError(f"--warm-up must be at least 0, got {options.warm_up}.")
    divisions = divisions_of(options.process_count)
    if any(options.batch % processes for processes, _ in divisions):
        raise OptionError(f"--batch must be a multiple of every --process-count, got {options.batch}.")
    seconds: dict[Division, list[float]] = {division: [] for division in divisions}
    load = [os.getloadavg()[0]]
    for start in range(options.starts):
        for division in divisions:
            print(f"start {start + 1} of {options.starts}: {division[0]} processes, experts over {division[1]}")
            seconds[division] += time_steps(division, options)
            load.append(os.getloadavg()[0])
    common = {
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "processors": os.cpu_count(),
        "load": [min(load), max(load)],
        "batch": options.batch,
        "length": options.length,
        "environment": environment(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
    }
    records = [
        {"processes": processes, "experts_over": over, "seconds": taken, **common}
        for (processes, over), taken in seconds.items()
    ]
    folder: Path = options.out or FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "README.md").write_text(page(records))
    print((folder / "README.md").read_text())
    return 0


def divisions_of(process_counts: Sequence[int]) -> list[Division]:
    """Returns every number of processes with every power of two that divides it and the eight experts."""
    return [(count, over) for count in process_counts for over in (1, 2, 4, 8) if count % over == 0]


def time_steps(division: Division, options: argparse.Namespace) -> list[float]:
    """Starts the processes of a division; returns the seconds of each step on the first of them."""
    processes, over = division
    steps = options.warm_up + options.steps
    arguments = {"experts-over": over, "steps": steps, "batch": options.batch, "length": options.length}
    words = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
    paths = [str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
    with tempfile.TemporaryDirectory() as folder:
        script, out = Path(folder) / "run.py", Path(folder) / "history.json"
        script.write_text(SCRIPT)
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        done = subprocess.run(
            [*launcher, str(script), str(out), *words],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{processes} processes, experts over {over}: {done.stderr[-3000:]}")
        return json.loads(out.read_text())["seconds"][options.warm_up :]


def page(records: Sequence[Mapping[str, Any]]) -> str:
    """Returns the page as markdown: one row for each division."""
    first = records[0]
    about, (least, most) = first["environment"], first["load"]
    tokens = first["batch"] * first["length"]
    where = f"{first['processors']} processors" if first["device"] == "cpu" else "one GPU for each process"
    lines = [
        "# Steps on several processes",
        "",
        f"Steps of `examples/lm_pretrain.py` of {tokens} tokens, which all processes share, on {about['device']},",
        f"{where}. Written by `python -m benchmarks scale-steps`.",
        "",
        *rows(records),
        "",
    ]
    if first["device"] == "cpu":
        lines += ["Processes share the processors: the rows show what dividing costs, not what it gains.", ""]
    lines.append(
        f"`{about['command']}`, torch {about['versions']['torch']}, commit {about['commit']}, {about['date']}; load of "
        f"the machine over a minute {least:.1f} to {most:.1f}."
    )
    return "\n".join(lines) + "\n"


def rows(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the table, its heading first."""
    alone = statistics.median(records[0]["seconds"])
    lines = [
        "| processes | experts over | tokens of each | ms a step, median (p20 to p80) | of one process |",
        "|---:|---:|---:|---:|---:|",
    ]
    for record in records:
        seconds = record["seconds"]
        low, *_, high = statistics.quantiles(seconds, n=5) if len(seconds) > 1 else seconds * 2
        median = statistics.median(seconds)
        tokens = record["batch"] * record["length"] // record["processes"]
        lines.append(
            f"| {record['processes']} | {record['experts_over']} | {tokens} | {median * 1e3:.0f} ({low * 1e3:.0f} to "
            f"{high * 1e3:.0f}) | {median / alone:.2f} |"
        )
    return lines
