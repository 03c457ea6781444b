"""Tables of scores, whose cells are texts or points with their interval on a common axis."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Interval:
    """A point with its interval on an axis, drawn in a cell of a table.

    Attributes:
        value: The point.
        ends: Lower and upper end of its interval, or ``None``.
        low: Left end of the axis.
        high: Right end of the axis.
        reference: Where a dashed line stands for comparison, such as chance; ``None`` draws none.
    """

    value: float
    ends: Sequence[float] | None
    low: float
    high: float
    reference: float | None = 0.5

    def place(self, x: float) -> str:
        """Returns where a value lies on the axis, from ``0.00%`` at its left to ``100.00%`` at its right end."""
        inside = min(max(x, self.low), self.high)
        return f"{100 * (inside - self.low) / (self.high - self.low):.2f}%"

    @property
    def shows_reference(self) -> bool:
        """Whether the reference lies on the axis."""
        return self.reference is not None and self.low <= self.reference <= self.high


Cell = str | Interval
Kind = Literal["text", "number", "axis"]


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: Its heading.
        kind: ``"number"`` is right-aligned; ``"axis"`` is wide and holds an `Interval` or a muted text.
        ends: What stands left and right of an axis' title.
    """

    title: str
    kind: Kind = "number"
    ends: tuple[str, str] = ("0", "1")


@dataclass(frozen=True)
class Table:
    """A table whose first column names the row.

    Attributes:
        columns: Its columns.
        rows: The cells of each row.
        total: Whether the first row sums up the others and is set apart.

    Raises:
        ValueError: If a row has another number of cells than there are columns.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    total: bool = False

    def __post_init__(self) -> None:
        """Checks the rows' lengths."""
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"every row must have {len(self.columns)} cells, one per column, got {len(row)}.")
