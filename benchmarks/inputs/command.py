"""``python -m benchmarks inputs``: large tables, and images per second of the input pipeline.

Writes the tables of ``benchmarks/results/inputs/README.md``; takes about three minutes on one core. Status 1 if a table
of 400,000 rows takes more than 3 s of processor time or 600 MB.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.environment import environment
from benchmarks.inputs.images import SIZE, ImageRate, image_rates
from benchmarks.inputs.tables import TableCost, table_costs
from benchmarks.options import add_out

PAGE = Path(__file__).parents[1] / "results" / "inputs" / "README.md"

MOST_SECONDS, MOST_MEGABYTES = 3.0, 600.0
"""What reading a table of 400,000 rows may cost; in proportion for another number."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    parser.add_argument("--rows", type=int, default=400_000, help="images that each set of tables lists")
    parser.add_argument("--images", type=int, default=64, help="files of each kind; 0 leaves the images out")
    parser.add_argument("--loader", type=int, nargs="+", default=[0, 2], metavar="N", help="processes that load")
    add_out(parser, "file of the tables, in place of the committed one")


def main(options: argparse.Namespace) -> int:
    """Measures and writes."""
    with tempfile.TemporaryDirectory() as folder:
        tables = list(table_costs(Path(folder) / "tables", options.rows))
        rates = []
        if options.images:
            rates = list(image_rates(Path(folder) / "images", options.images, tuple(options.loader)))
    path: Path = options.out or PAGE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(tables, rates))
    print(path.read_text())
    share = options.rows / 400_000
    over = [
        cost
        for cost in tables
        if cost.processor > MOST_SECONDS * share or cost.megabytes > MOST_MEGABYTES * max(share, 0.1)
    ]
    for cost in over:
        print(f"over {MOST_SECONDS * share:.2g} s or {MOST_MEGABYTES * share:.3g} MB: {cost}")
    return 1 if over else 0


def page(tables: Sequence[TableCost], rates: Sequence[ImageRate]) -> str:
    """Returns the page as markdown."""
    about = environment(torch.device("cpu"))
    lines = [
        "# Inputs",
        "",
        "How fast studies reach the model, on CPU. Written by `python -m benchmarks inputs`.",
        "",
        f"{about['device']}; python {about['versions']['python']}, torch {about['versions']['torch']}; commit "
        f"{about['commit']}, {about['date']}.",
        "",
        "## Tables",
        "",
        "Generated tables in the layouts of the sets, read whole: labels, patients, views and splits, without a look",
        "at the images; of `mimic-cxr` three compressed tables, which are joined. Each in a process of its own; memory",
        "is by how much its peak grew. Seconds by the clock hold what else the machine did.",
        "",
        "| set | images | tables, MB | seconds | processor seconds | memory, MB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {cost.name} | {cost.rows:,} | {cost.megabytes_on_disk:.1f} | {cost.wall:.2f} | {cost.processor:.2f} "
        f"| {cost.megabytes:.0f} |"
        for cost in tables
    ]
    if rates:
        lines += [
            "",
            "## Images",
            "",
            f"Drawn images, read, decoded, fitted to {SIZE} px, augmented and stacked by sixteen, in training order;",
            "the second of two passes, so files come from the system's memory. Caches hold fitted images.",
            "",
            "| files | kB | from | workers | images/s | images per processor second |",
            "|---|---:|---|---:|---:|---:|",
        ]
        lines += [
            f"| {rate.kind} | {rate.kilobytes:.0f} | {rate.source} | {rate.workers} | {rate.per_second:.0f} "
            f"| {'' if rate.per_processor_second is None else f'{rate.per_processor_second:.0f}'} |"
            for rate in rates
        ]
    return "\n".join(lines) + "\n"
