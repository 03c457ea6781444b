"""``python -m benchmarks experts-help``: MedVLMoE with and without experts, by the number of conflicting circumstances.

Trains the preset tiny on phantom-hard with eight experts and with one dense network of equal active FLOPs in their
place (``no-moe``), for each number of circumstances and seed, and writes a page with the curve. The cells are those of
``table2``, so that a folder of that command is shared; finished cells are not trained again.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.experts_help.page import write_page
from benchmarks.options import OptionError, add_out

PAGE = Path(__file__).parents[1] / "results" / "experts-help" / "README.md"
TRAIN = (
    "--image-size", "64", "--epochs", "5", "--no-augment", "--image-positions", "sine", "--residual-init", "zero",
    "--lr-encoder", "1e-3", "--lr-head", "1e-3",
)  # fmt: skip
"""Options of ``train`` for all cells."""
MOST_CONTEXTS = 4


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    parser.add_argument("--context-count", type=int, nargs="+", default=[1, 2, 4], help="circumstances, from 1 to 4")
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2], help="one training each")
    parser.add_argument("--runs", type=Path, default=Path("runs/experts-help"), help="folder of the trainings")
    parser.add_argument("--workers", type=int, default=1, help="trainings at a time")
    parser.add_argument("--bootstrap", type=int, default=1000, help="resamples of patients")
    parser.add_argument("--collect", action="store_true", help="train nothing; take what is finished")
    parser.add_argument("--redraw", action="store_true", help="only write the page again, from the figures beside it")
    add_out(parser, "file of the page, in place of the committed one; figures and picture go beside it")


def main(options: argparse.Namespace) -> int:
    """Trains, compares and writes."""
    path: Path = options.out or PAGE
    figures = path.with_name("points.json")
    contexts = options.context_count
    if len(set(contexts)) < len(contexts) or not set(contexts) <= set(range(1, MOST_CONTEXTS + 1)):
        given = " ".join(map(str, contexts))
        raise OptionError(f"--context-count must be different numbers from 1 to {MOST_CONTEXTS}, got {given}.")
    if not options.redraw:
        path.parent.mkdir(parents=True, exist_ok=True)
        figures.write_text(json.dumps(_measure(options), indent=1) + "\n")
    write_page(json.loads(figures.read_text()), path)
    print(path.read_text())
    return 0


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from benchmarks.environment import environment
    from benchmarks.experts_help.measure import measure_points

    points = measure_points(
        options.context_count,
        tuple(options.seed),
        options.runs,
        train=TRAIN,
        workers=options.workers,
        bootstrap=options.bootstrap,
        collect=options.collect,
    )
    return {"train": list(TRAIN), "environment": environment(torch.device("cpu")), "points": points}
