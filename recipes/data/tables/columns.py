"""Checks the cells of columns that every reader of tables has: those that may not be blank, splits, modalities."""

from collections.abc import Sequence

from recipes.data.arguments import remedy
from recipes.data.tables.labels import is_blank

_SPLIT_WORDS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def filled(cells: Sequence[str], column: str, where: str) -> tuple[str, ...]:
    """Strips the cells of a column in which none may be blank.

    Raises:
        ValueError: Naming the file, the column and the first row that is blank.
    """
    stripped = [cell.strip() for cell in cells]
    # Of hundreds of thousands of paths, only cells as short as a blank one are looked at.
    if any(is_blank(cell) for cell in stripped if len(cell) <= len("nan")):
        row = next(row for row, cell in enumerate(stripped, 1) if is_blank(cell))
        raise ValueError(f"{where}: column {column!r}, row {row} is blank, expected a value in every row")
    return tuple(stripped)


def split_names(cells: Sequence[str], column: str, where: str) -> list[str]:
    """Reads train, val (valid, validation) and test, in any case.

    Raises:
        ValueError: For any other cell, naming the file, the column and the row.
    """
    for row, cell in enumerate(cells, 1):
        if cell.strip().lower() not in _SPLIT_WORDS:
            raise ValueError(
                f"{where}: column {column!r}, row {row}: a split must be one of {', '.join(_SPLIT_WORDS)}, got {cell!r}"
                + remedy(". Name another column with {split_column}; None draws a split")
            )
    return [_SPLIT_WORDS[cell.strip().lower()] for cell in cells]


def modality_name(cell: str) -> str | None:
    """Reads the name of a kind of image: lower case, stripped; ``None`` where the cell is blank."""
    return None if is_blank(cell) else cell.strip().lower()
