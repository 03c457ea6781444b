"""``python -m moekit.inspect PATH``: shows a record, or what a checkpoint tells."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from moekit.inspect.checkpoint import HOW_TO_RECORD, checkpoint_table, inspect_checkpoint
from moekit.inspect.expert_table import LAYER_TABLES
from moekit.inspect.files import read_document
from moekit.inspect.record import RoutingRecord


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m moekit.inspect", description=__doc__)
    parser.add_argument(
        "paths",
        nargs="+",
        type=Path,
        metavar="PATH",
        help="a record of record_routing; several are merged, in this order; or one checkpoint, a file or folder",
    )
    parser.add_argument("--parallel", action="store_true", help="the records were kept at the same time, by ranks")
    parser.add_argument("--csv", action="store_true", help="print all figures as comma-separated values")
    parser.add_argument("--page", type=Path, metavar="HTML", help="write the interactive page")
    parser.add_argument("--figure", type=Path, metavar="IMAGE", help="draw the record with matplotlib")
    parser.add_argument(
        "--layer", help="the layer to draw or print: its experts, or with --csv its figures over time; all by default"
    )
    parser.add_argument("--table", choices=LAYER_TABLES, help="with --csv and --layer: print these counts instead")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    options = parser().parse_args(arguments)
    try:
        print(_shown(options), flush=True)
    except (ValueError, ImportError) as error:
        print(f"moekit.inspect: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader, such as head, wants no more. Python flushes the output again when it exits: to nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _shown(options: argparse.Namespace) -> str:
    paths: list[Path] = options.paths
    if any(not path.exists() for path in paths):
        missing = ", ".join(str(path) for path in paths if not path.exists())
        raise ValueError(f"PATH must be a record or a checkpoint, got {missing}, which does not exist.")
    if options.table and not (options.csv and options.layer):
        raise ValueError(f"--table needs --csv and --layer, whose {options.table} it prints.")
    if len(paths) == 1 and (paths[0].is_dir() or read_document(paths[0]) is None):
        if options.page or options.figure or options.csv or options.layer or options.parallel:
            raise ValueError(
                "--csv, --layer, --parallel, --page and --figure need a record, got "
                f"{paths[0]}, which is none.\n\n{HOW_TO_RECORD}"
            )
        return f"{checkpoint_table(inspect_checkpoint(paths[0]))}\n\n{HOW_TO_RECORD}"
    record = RoutingRecord.load(paths[0])
    for path in paths[1:]:
        record = record.merged(RoutingRecord.load(path), parallel=options.parallel)
    if options.page:
        record.write_page(options.page, title=paths[0].name)
    if options.figure:
        record.figure(options.layer).savefig(options.figure)
    if options.csv:
        return record.csv(options.layer, options.table).rstrip("\n")
    return str(record) if options.layer is None else record.table(options.layer)


if __name__ == "__main__":
    sys.exit(main())
