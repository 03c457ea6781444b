"""Bars that need no axis: predicted probabilities, and a gauge."""

from collections.abc import Iterable
from dataclasses import dataclass

TRUTHS = {1.0: "● present", 0.0: "○ absent", None: "? unknown"}
"""What is written beside a probability, by the label."""


@dataclass(frozen=True)
class Bar:
    """A share with its number and a word beside it.

    Attributes:
        title: What it is the share of.
        share: From 0 to 1; the drawn bar stops at these ends.
        word: Text beside it, may be empty.
        strong: Whether the bar is emphasised.
    """

    title: str
    share: float
    word: str = ""
    strong: bool = False

    @property
    def width(self) -> str:
        """The bar's length as a CSS percentage."""
        return f"{100 * min(max(self.share, 0), 1):.1f}%"


@dataclass(frozen=True)
class Gauge:
    """A bar filled to a share, with a text at each end."""

    share: float
    left: str
    right: str

    @property
    def width(self) -> str:
        """The filled length as a CSS percentage."""
        return Bar("", self.share).width


def probability_bars(rows: Iterable[tuple[str, float, float | None]]) -> list[Bar]:
    """Returns predicted probabilities with the truth beside them.

    Args:
        rows: Class, probability and label (1, 0 or ``None`` for unknown) of each bar.
    """
    return [Bar(name, share, TRUTHS[label], label == 1) for name, share, label in rows]
