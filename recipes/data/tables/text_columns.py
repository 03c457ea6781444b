"""Recognises columns of texts, so that one that was not named is reported."""

import re
from collections.abc import Collection
from pathlib import Path

from recipes.data.tables.csv_file import read_first_rows
from recipes.data.tables.labels import is_blank

ROWS = 200
"""Rows that are looked at."""
_NAMES = re.compile(
    r"report|note|text|caption|finding|impression|indication|histor|comment|description|narrative", re.I
)
_LETTERS = re.compile(r"[^\W\d_]{2}")
_WORDS_OF_A_NAMED_COLUMN, _WORDS_OF_ANY_COLUMN = 2, 8


def text_columns(csv: Path, known: Collection[str]) -> list[str]:
    """Names the columns of a csv that seem to hold reports or notes.

    Such a column has a name like ``report`` or ``findings`` and cells of two words on average, or any name and cells
    of eight words that mostly differ from each other. The first `ROWS` rows are looked at.

    Args:
        csv: The table.
        known: Columns that are read as something else.

    Raises:
        ValueError: If the file cannot be read.
    """
    header, rows = read_first_rows(csv, ROWS)
    columns = zip(header, zip(*(row for row in rows if len(row) == len(header)), strict=True), strict=False)
    return [name for name, cells in columns if name not in known and _holds_texts(name, cells)]


def _holds_texts(name: str, cells: Collection[str]) -> bool:
    texts = [cell for cell in cells if not is_blank(cell)]
    if not texts:
        return False
    words = sum(bool(_LETTERS.search(word)) for text in texts for word in text.split()) / len(texts)
    if _NAMES.search(name):
        return words >= _WORDS_OF_A_NAMED_COLUMN
    return words >= _WORDS_OF_ANY_COLUMN and len(set(texts)) > len(texts) / 2
