"""``python -m benchmarks balance``: trains a small GPT on text that ships with Python, and draws its balance.

Trains with an auxiliary loss, with loss-free balancing at two rates, and with neither; about a minute for each method
and seed on one core. Writes a page with table and pictures, and the routing record and interactive page of each
training to ``--records``.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.balance.figures import WIDTH, figures_of
from benchmarks.balance.model import GPT, ModelConfig
from benchmarks.balance.table import write_page
from benchmarks.balance.text import read_text
from benchmarks.balance.train import METHODS, TrainConfig, train
from benchmarks.environment import environment
from benchmarks.options import OptionError, add_out

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "benchmarks" / "results" / "balance" / "README.md"
TINY = TrainConfig(
    ModelConfig(context=16, dim=16, num_layers=2, num_heads=2, num_experts=4, hidden_dim=8),
    steps=20,
    batch_size=4,
    warmup=2,
    validation_batches=1,
)
"""A rehearsal of a few seconds."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    parser.add_argument("--method", nargs="+", default=list(METHODS), choices=METHODS, help="ways to balance")
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2], help="one training each")
    parser.add_argument("--steps", type=int, help="of each training, by default 300")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal with a very small model")
    parser.add_argument(
        "--records", type=Path, default=Path("runs/balance"), help="folder of records and interactive pages"
    )
    parser.add_argument("--redraw", action="store_true", help="only write the page again, from the figures beside it")
    add_out(parser, "file of the page, in place of the committed one; pictures and figures go beside it")


def main(options: argparse.Namespace) -> int:
    """Trains, draws and writes."""
    path: Path = options.out or PAGE
    figures = path.with_name("runs.jsonl")
    if not options.redraw:
        runs = _train_all(options)
        path.parent.mkdir(parents=True, exist_ok=True)
        figures.write_text("".join(json.dumps(run, separators=(",", ":")) + "\n" for run in runs))
    write_page([json.loads(line) for line in figures.read_text().splitlines()], path)
    print(path.read_text())
    return 0


def _train_all(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Trains with each method and seed, and returns a line of figures for each."""
    config = TINY if options.tiny else TrainConfig()
    if options.steps is not None:
        if options.steps < WIDTH:
            raise OptionError(
                f"--steps must be at least {WIDTH}, over which figures are averaged, got {options.steps}."
            )
        config = dataclasses.replace(config, steps=options.steps)
    settings = {
        **dataclasses.asdict(config),
        "parameters": sum(parameter.numel() for parameter in GPT(config.model).parameters()),
        "bytes": sum(map(len, read_text())),
    }
    about = environment(torch.device("cpu"))  # of the code as it was when the trainings began
    folder: Path = options.records
    folder.mkdir(parents=True, exist_ok=True)
    runs = []
    for method in options.method:
        for seed in options.seed:
            training = train(method, seed, config)
            training.record.save(folder / f"{method}-{seed}.json.gz")
            training.record.write_page(folder / f"{method}-{seed}.html", title=f"{METHODS[method].title}, seed {seed}")
            runs.append({"environment": about, "config": settings, **figures_of(training)})
    print(f"Records and interactive pages: {folder}", file=sys.stderr)
    return runs
