"""Reads the columns of a csv as text, and says what is wrong with them."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from recipes.data.tables.labels import is_blank
from recipes.shared.extras import require

_SPLIT_WORDS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def read_table(csv: Path, columns: Sequence[str]) -> dict[str, list[str]]:
    """Reads some columns of a comma-separated UTF-8 file with a header row.

    Cells stay text: a class named "None" or "NA" is not taken for a missing value.

    Args:
        csv: The file, possibly compressed (``.csv.gz``).
        columns: Names of the columns wanted.

    Returns:
        The cells of each column.

    Raises:
        ValueError: If the file is missing, empty, no such table, holds no rows or lacks a column; the message
            names the file, and for a column what columns there are.
        ImportError: If pandas is not installed.
    """
    pandas = require("pandas", "reading a csv")
    if not csv.is_file():
        raise ValueError(f"csv file {str(csv)!r} does not exist")
    try:
        with warnings.catch_warnings():
            # Rows longer than the header would be shifted or cut: a warning to pandas, wrong data to us.
            warnings.simplefilter("error", pandas.errors.ParserWarning)
            table = pandas.read_csv(csv, dtype=str, keep_default_na=False, index_col=False, encoding="utf-8-sig")
    except (ValueError, OSError, EOFError, pandas.errors.ParserWarning) as error:
        raise ValueError(f"cannot read the csv {str(csv)!r}: {error}") from error
    lacking = [column for column in dict.fromkeys(columns) if column not in table.columns]
    if lacking:
        raise ValueError(f"{csv}: lacks the column {', '.join(map(repr, lacking))}; it has {list(table.columns)}")
    if len(table) == 0:
        raise ValueError(f"{csv}: holds a header but no rows")
    return {column: table[column].fillna("").tolist() for column in columns}


def filled(cells: Sequence[str], column: str, where: str) -> tuple[str, ...]:
    """Strips the cells of a column in which none may be blank.

    Raises:
        ValueError: Naming the file, the column and the first row that is blank.
    """
    for row, cell in enumerate(cells, 1):
        if is_blank(cell):
            raise ValueError(f"{where}: column {column!r}, row {row} is blank, expected a value in every row")
    return tuple(cell.strip() for cell in cells)


def split_names(cells: Sequence[str], column: str, where: str) -> list[str]:
    """Reads train, val (valid, validation) and test, in any case.

    Raises:
        ValueError: For any other cell, naming the file, the column and the row.
    """
    for row, cell in enumerate(cells, 1):
        if cell.strip().lower() not in _SPLIT_WORDS:
            raise ValueError(
                f"{where}: column {column!r}, row {row}: a split must be one of {', '.join(_SPLIT_WORDS)}, got {cell!r}"
            )
    return [_SPLIT_WORDS[cell.strip().lower()] for cell in cells]


def modality_name(cell: str) -> str | None:
    """Reads the name of a kind of image: lower case, stripped; ``None`` where the cell is blank."""
    return None if is_blank(cell) else cell.strip().lower()
