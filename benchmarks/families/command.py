"""``python -m benchmarks families``: every family of transformers with moekit's experts or blocks, compared to eager.

Writes the table of ``benchmarks/results/families/README.md``; takes about four minutes on one core.
"""

import argparse
import sys
from pathlib import Path

import torch
import transformers

from benchmarks.environment import environment
from benchmarks.families.blocks import compare_blocks
from benchmarks.families.build import all_families, families
from benchmarks.families.compare import compare
from benchmarks.families.table import write_table
from benchmarks.options import add_out
from moekit.interop import register_experts

PAGE = Path(__file__).parents[1] / "results" / "families" / "README.md"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    parser.add_argument(
        "--family", nargs="+", choices=all_families(), metavar="NAME", help="only these, by folder name"
    )
    add_out(parser, "file of the table, in place of the committed one")


def main(options: argparse.Namespace) -> int:
    """Compares and writes."""
    register_experts()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    comparisons = []
    for family in options.family or all_families():
        print(family, file=sys.stderr)
        experts = compare(family) if family in families() else None
        comparisons.append((family, experts, compare_blocks(family)))
    path: Path = options.out or PAGE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(comparisons, environment(torch.device("cpu")), path)
    print(path.read_text())
    return 0
