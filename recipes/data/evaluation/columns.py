"""Tables of path and label whose columns are called differently from place to place."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.data.arguments import argument
from recipes.data.tables.columns import filled
from recipes.data.tables.csv_file import read_header, read_table

IMAGE_COLUMNS = ("filename", "img_dir", "path", "image", "imgpath", "img_path")
"""Names under which public tables keep the path of the image."""


def column_named(csv: Path, column: str | None, known: Sequence[str], what: str) -> str:
    """Finds a column by any of its usual names.

    Args:
        csv: The table.
        column: Its name, taken as it is; ``None`` looks for a usual one.
        known: Usual names, the first that occurs is taken.
        what: The argument that names the column, for the message.

    Raises:
        ValueError: If the file is missing, or has none of the columns.
    """
    if column is not None:
        return column
    header = read_header(csv)
    for name in known:
        if name in header:
            return name
    raise ValueError(
        f"{csv}: lacks a column of {what.removesuffix('_column')}s: expected one of {list(known)}, it has {header}. "
        f"Name the column with {argument(what)}"
    )


def read_paths_and_labels(
    csv: Path,
    *,
    image_column: str | None,
    label_column: str | None,
    label_columns: Sequence[str],
    words: Mapping[str, int],
) -> tuple[tuple[str, ...], list[int]]:
    """Reads a table of one path and one word per row.

    Args:
        csv: The table.
        image_column: Column of paths; ``None`` takes the first of `IMAGE_COLUMNS` that occurs.
        label_column: Column of words; ``None`` takes the first of ``label_columns`` that occurs.
        label_columns: Usual names.
        words: Class of each word, in lower case.

    Returns:
        Paths as written, and class numbers.

    Raises:
        ValueError: If the file, a column or a cell is missing, or a word is unknown.
    """
    image_column = column_named(csv, image_column, IMAGE_COLUMNS, "image_column")
    label_column = column_named(csv, label_column, label_columns, "label_column")
    named = {image_column: "image_column", label_column: "label_column"}
    table = read_table(csv, list(named), arguments=named)
    paths = filled(table[image_column], image_column, str(csv))
    cells = filled(table[label_column], label_column, str(csv))
    return paths, [
        class_of(cell, words, f"{csv}: column {label_column!r}, row {row}") for row, cell in enumerate(cells, 1)
    ]


def refuse_options(layout: str, **options: tuple[Any, Any]) -> None:
    """Refuses options that a layout has no use for.

    Args:
        layout: What the folder is, for the message.
        **options: Value and default of each option.

    Raises:
        ValueError: Naming those that differ from their default.
    """
    unused = [name for name, (value, default) in options.items() if value != default]
    if unused:
        raise ValueError(f"{', '.join(map(argument, unused))}: {layout}, which has no use for it. Leave it out.")


def class_of(cell: str, words: Mapping[str, int], where: str) -> int:
    """Looks a word up, in any case.

    Raises:
        ValueError: If the word is unknown.
    """
    if cell.strip().lower() not in words:
        raise ValueError(f"{where}: a label must be one of {', '.join(words)}, got {cell!r}")
    return words[cell.strip().lower()]
