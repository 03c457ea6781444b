"""``python -m benchmarks scale-steps``: steps of ``examples/lm_pretrain.py`` on one, two and four processes.

All divisions take the same batches in the same order, each rank its part. Every process has one thread. On processors
that processes share this shows what dividing costs, not what it gains; on a machine with several GPUs each process has
one. Each division is started several times, in turn with the others. Beside the clock's time that of the processor is
counted, of all processes together, which other work on the machine changes little. Writes ``records.jsonl`` and a page
beside it.
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
from typing import Any, NamedTuple

import torch

from benchmarks.environment import environment
from benchmarks.options import OptionError, add_out

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parents[1] / "results" / "scale-steps"
SCRIPT = """
import json, os, sys, time, warnings
warnings.simplefilter("ignore")
from examples import lm_pretrain
began, make_batch = [], lm_pretrain.batch
def batch(*arguments):
    began.append(time.process_time())
    return make_batch(*arguments)
lm_pretrain.batch = batch
seconds = lm_pretrain.main(sys.argv[2:])["seconds"]
written = {"seconds": seconds, "processor": [end - start for start, end in zip(began, began[1:])]}
open(sys.argv[1] + os.environ["RANK"], "w").write(json.dumps(written))
"""
"""Runs the example on a rank, and writes the time of each step and, but for the last, of its processor."""
Division = tuple[int, int]
"""Processes, and among how many of them the experts are divided."""


class StepTimes(NamedTuple):
    """Seconds of steps.

    Attributes:
        seconds: By the clock, on the first process.
        processor: Of the processor, of all processes together.
    """

    seconds: list[float]
    processor: list[float]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    parser.add_argument("--process-count", type=int, nargs="+", default=[1, 2, 4], help="processes that train")
    parser.add_argument("--steps", type=int, default=40, help="timed steps of a start, at least 2")
    parser.add_argument("--warm-up", type=int, default=10, help="steps before")
    parser.add_argument("--starts", type=int, default=3, help="how often each division is started")
    parser.add_argument("--batch", type=int, default=16, help="sequences of all processes together in a step")
    parser.add_argument("--length", type=int, default=128, help="tokens of a sequence")
    add_out(parser, "folder of records and page, in place of the committed one")


def main(options: argparse.Namespace) -> int:
    """Measures and writes."""
    for name, least in (("steps", 2), ("starts", 1)):
        if getattr(options, name) < least:
            raise OptionError(f"--{name} must be at least {least}, got {getattr(options, name)}.")
    if options.warm_up < 0:
        raise OptionError(f"--warm-up must be at least 0, got {options.warm_up}.")
    divisions = divisions_of(options.process_count)
    if any(options.batch % processes for processes, _ in divisions):
        raise OptionError(f"--batch must be a multiple of every --process-count, got {options.batch}.")
    times = {division: StepTimes([], []) for division in divisions}
    load = [os.getloadavg()[0]]
    for start in range(options.starts):
        for division in divisions:
            print(f"start {start + 1} of {options.starts}: {division[0]} processes, experts over {division[1]}")
            for all_of, taken in zip(times[division], time_steps(division, options), strict=True):
                all_of += taken
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
        {"processes": processes, "experts_over": over, **taken._asdict(), **common}
        for (processes, over), taken in times.items()
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


def time_steps(division: Division, options: argparse.Namespace) -> StepTimes:
    """Starts the processes of a division, and returns the times of the steps after the first ones."""
    processes, over = division
    steps = options.warm_up + options.steps
    arguments = {"experts-over": over, "steps": steps, "batch": options.batch, "length": options.length}
    words = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
    paths = [str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
    with tempfile.TemporaryDirectory() as folder:
        script, out = Path(folder) / "run.py", Path(folder) / "times"
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
        ranks = [json.loads(out.with_name(f"{out.name}{rank}").read_text()) for rank in range(processes)]
    processor = [sum(step) for step in zip(*(rank["processor"] for rank in ranks), strict=True)]
    return StepTimes(ranks[0]["seconds"][options.warm_up :], processor[options.warm_up :])


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
    """Returns the table, its heading first; times are medians, the last column compares those of the processor."""
    alone = statistics.median(records[0]["processor"])
    lines = [
        "| processes | experts over | tokens of each | ms a step (p20 to p80) | processor ms of all | of one process |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for record in records:
        seconds = record["seconds"]
        low, *_, high = statistics.quantiles(seconds, n=5) if len(seconds) > 1 else seconds * 2
        median, processor = statistics.median(seconds), statistics.median(record["processor"])
        tokens = record["batch"] * record["length"] // record["processes"]
        lines.append(
            f"| {record['processes']} | {record['experts_over']} | {tokens} | {median * 1e3:.0f} ({low * 1e3:.0f} to "
            f"{high * 1e3:.0f}) | {processor * 1e3:.0f} | {processor / alone:.2f} |"
        )
    return lines
