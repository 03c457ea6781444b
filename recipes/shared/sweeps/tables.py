"""Tables of a sweep as markdown and csv, written in one step each."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Writes a text in one step, so that a killed process leaves the old file or the new one.

    Args:
        path: The file; its folder must exist.
        text: Its content.
    """
    # Two processes may write the same table.
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows as csv, with the columns of all of them in the order in which they first occur; ``None`` is blank.

    Args:
        path: The file.
        rows: Column to value, of each row.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in markdown; columns of figures are aligned to the right.

    Args:
        columns: Their titles.
        rows: The cells of each row, as many as there are columns.

    Raises:
        ValueError: If a row has another number of cells.
    """
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"every row must have {len(columns)} cells, one per column, got {len(row)}: {list(row)}.")
    marks = ["---:" if rows and all(_is_figure(row[c]) for row in rows) else "---" for c in range(len(columns))]
    lines = [list(columns), marks, *map(list, rows)]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def markdown_list(lines: Sequence[str]) -> str:
    """Returns a list in markdown."""
    return "\n".join(f"- {line}" for line in lines)


def _is_figure(text: str) -> bool:
    """Tells whether a cell begins as a number does, or holds a dash for one."""
    return text[:1] in set("0123456789+-<>–")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
