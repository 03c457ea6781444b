"""``python -m benchmarks compiled``: compiles every kernel for every target and writes a table.

The table is ``results/compiled/triton-VERSION.json``. Nothing needs a GPU. With a filter (``--kernel``, ``--target``,
``--dtype``, ``--case``) nothing is written, and every piece of code is printed on its own: the way to look for tiles,
together with ``--configs``.
"""

import argparse
import contextlib
import os
from pathlib import Path

from benchmarks.compiled import cases, table
from benchmarks.compiled.survey import broken_by, survey
from benchmarks.options import OptionError, add_out
from moekit_kernels import configs


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    parser.add_argument("--kernel", nargs="+", help="only kernels of these names")
    parser.add_argument("--target", nargs="+", choices=cases.TARGET_NAMES)
    parser.add_argument("--dtype", nargs="+", choices=list(cases.DTYPES))
    parser.add_argument("--case", nargs="+", help="only cases whose name contains one of these")
    parser.add_argument("--configs", type=Path, help="a table of tiles (json) to try instead of the committed one")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes that compile")
    parser.add_argument("--check", action="store_true", help="compare with the committed table and write nothing")
    add_out(parser, "file of the table, in place of the committed one")


def main(options: argparse.Namespace) -> int:
    """Returns the exit status: 1 if a law is broken, or with ``--check`` if the table is another.

    A version of Triton whose code was not read gives a report with ``--check``, and status 0.
    """
    filtered = bool(options.kernel or options.target or options.dtype or options.case or options.configs)
    if options.check and filtered:
        raise OptionError("--check compares the whole table: leave out --kernel, --target, --dtype, --case, --configs.")
    with configs.override(configs.load(options.configs)) if options.configs else contextlib.nullcontext():
        recorded = cases.record_all(
            options.target or cases.TARGET_NAMES, options.dtype or list(cases.DTYPES), options.case or [""]
        )
    if options.kernel:
        recorded = [one for one in recorded if one.specialization.name in options.kernel]
    entries = survey(recorded, options.workers)
    print(table.detail(entries) if filtered else table.markdown(entries))
    broken = [f"{table.title(entry)}: {law}" for entry in entries for law in broken_by(entry)]
    print(f"\n{len(entries)} pieces of code, {len(broken)} broken laws.")
    if not filtered:
        print("\n".join(broken))
    if options.check and (report := table.not_read()):
        print(report)
        return 0
    changes = table.differences(table.read(table.path_of())["entries"], entries) if options.check else []
    if changes:
        print("\n".join(["The committed table is another; write it with python -m benchmarks compiled:", *changes]))
    if options.out or not (filtered or options.check):
        table.write(entries, options.out or table.path_of())
    return bool(broken or changes)
