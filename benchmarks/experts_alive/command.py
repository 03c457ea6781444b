"""``python -m benchmarks experts-alive``: which experts of MedVLMoE live on small real sets.

Trains the preset tiny with a Switch loss and with a fitted selection bias on each set and seed, and measures the
weights that are kept: an expert lives if at least 1/32 of the slots are its own in eval mode. Writes a page with the
table. The runs stay in a folder; finished ones are not trained again.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import environment
from benchmarks.experts_alive.sets import METHODS, SETS
from benchmarks.experts_alive.table import write_page
from benchmarks.options import OptionError, add_out

PAGE = Path(__file__).parents[1] / "results" / "experts-alive" / "README.md"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    parser.add_argument("--data-root", type=Path, help="folder that holds medmnist_layout and covid_cxr")
    parser.add_argument("--data", nargs="+", default=list(SETS), choices=SETS, help="sets")
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="one training each")
    parser.add_argument("--runs", type=Path, default=Path("runs/experts-alive"), help="folder of the trainings")
    parser.add_argument("--redraw", action="store_true", help="only write the page again, from the figures beside it")
    add_out(parser, "file of the page, in place of the committed one; figures go beside it")


def main(options: argparse.Namespace) -> int:
    """Trains, measures and writes."""
    path: Path = options.out or PAGE
    figures = path.with_name("runs.jsonl")
    if not options.redraw:
        if options.data_root is None:
            raise OptionError("--data-root must name the folder of the sets; it is needed unless --redraw.")
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = _measure_all(options)
        figures.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))
    write_page([json.loads(line) for line in figures.read_text().splitlines()], path)
    print(path.read_text())
    return 0


def _measure_all(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns a line for each run, and one for each set with the comparison of the methods."""
    from benchmarks.experts_alive.inferiority import pooled_difference
    from benchmarks.experts_alive.measure import measure

    about = environment(torch.device("cpu"))
    lines: list[dict[str, Any]] = []
    for name in options.data:
        tests: dict[str, list[dict[str, Any]]] = {method: [] for method in METHODS}
        for seed in options.seed:
            for method in METHODS:
                out = options.runs / f"{name}-{method}-{seed}"
                record, test = measure(SETS[name], method, seed, options.data_root, out)
                tests[method].append(test)
                lines.append({"set": name, **record, "environment": about})
                live = [record[split]["live_experts"] for split in ("train", "val_and_test")]
                print(f"{name} {method} seed {seed}: live {live}, AUROC {record['macro_auroc']:.3f}", flush=True)
        before, after = (tests[method] for method in METHODS)
        lines.append({"set": name, "comparison": pooled_difference(before, after)})
    return lines
