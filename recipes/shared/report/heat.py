"""Heat maps: annotated cells, coloured by a share."""

from collections.abc import Sequence
from dataclasses import dataclass

from recipes.shared.report.formats import percent

STRONG = 0.55
"""Opacity of a cell from which its text is set in the light ink."""


@dataclass(frozen=True)
class HeatCell:
    """A cell: its text, and its colour's opacity from 0 to 1."""

    text: str
    opacity: float

    @property
    def is_strong(self) -> bool:
        """Whether the colour is so full that dark text would be hard to read."""
        return self.opacity > STRONG


@dataclass(frozen=True)
class Label:
    """The name of a row or column, with a small note beside or below it."""

    name: str
    note: str = ""


@dataclass(frozen=True)
class HeatRow:
    """A row of a heat map.

    Attributes:
        label: Its name.
        cells: Its cells; ``None`` for a row without any.
    """

    label: Label
    cells: Sequence[HeatCell] | None


@dataclass(frozen=True)
class Load:
    """A column's overall share, drawn as a bar above it."""

    text: str
    height: float


@dataclass(frozen=True)
class HeatMap:
    """A heat map.

    Attributes:
        columns: Names of the columns.
        rows: The rows.
        empty: What is written in a row without cells.
        corner: What rows and columns are.
        load: Bars above the columns, or none.
        total: A last row that sums up the others, or ``None``.
    """

    columns: Sequence[Label]
    rows: Sequence[HeatRow]
    empty: str = ""
    corner: str = ""
    load: Sequence[Load] = ()
    total: HeatRow | None = None


def share_map(
    rows: Sequence[tuple[Label, Sequence[float] | None]],
    *,
    columns: Sequence[Label],
    load: Sequence[float],
    top: float,
    empty: str,
    total: str,
) -> HeatMap:
    """Returns a heat map of shares with the overall load above it and in its last row.

    Args:
        rows: Name and shares of each row; ``None`` for a row without any.
        columns: Names of the columns.
        load: Overall share of each column.
        top: The share that gets the full colour: the highest one possible.
        empty: What to write in a row without shares.
        total: Name of the row of overall shares.
    """

    def cells(shares: Sequence[float]) -> list[HeatCell]:
        return [HeatCell(percent(share), min(share / top, 1.0)) for share in shares]

    highest = max(load)
    return HeatMap(
        columns,
        [HeatRow(label, None if shares is None else cells(shares)) for label, shares in rows],
        empty,
        load=[Load(percent(share), 40 * share / highest if highest else 0.0) for share in load],
        total=HeatRow(Label(total), cells(load)),
    )


def count_map(rows: Sequence[tuple[str, Sequence[int]]], *, columns: Sequence[str], corner: str) -> HeatMap:
    """Returns a heat map of counts, coloured by their share of the row.

    Args:
        rows: Name and counts of each row.
        columns: Names of the columns.
        corner: What rows and columns are.
    """

    def cells(counts: Sequence[int]) -> list[HeatCell]:
        total = sum(counts)
        return [HeatCell(f"{count:,}", count / total if total else 0.0) for count in counts]

    return HeatMap(
        [Label(name) for name in columns], [HeatRow(Label(name), cells(counts)) for name, counts in rows], corner=corner
    )
