"""Bars that need no axis: predicted probabilities, and a gauge."""

from collections.abc import Iterable
from dataclasses import dataclass

TRUTHS = {1.0: "● present", 0.0: "○ absent", None: "? unknown"}
"""What is written beside a probability, by the label."""
OUTCOMES = {
    (1.0, True): ("● present", "present"),
    (1.0, False): ("◐ present, missed", "present missed"),
    (0.0, True): ("✕ absent, false positive", "false-positive"),
    (0.0, False): ("○ absent", ""),
}
"""What is written beside a probability, and how its bar is drawn, by the label and whether the class is predicted."""


@dataclass(frozen=True)
class Bar:
    """A share with its number and a word beside it.

    Attributes:
        title: What it is the share of.
        share: From 0 to 1; the drawn bar stops at these ends.
        word: Text beside it, may be empty.
        strong: Whether the bar is emphasised.
        kind: Names of styles: ``"present"``, ``"missed"``, ``"false-positive"``; by default as ``strong`` says.
    """

    title: str
    share: float
    word: str = ""
    strong: bool = False
    kind: str | None = None

    @property
    def style(self) -> str:
        """The names of the bar's styles."""
        return self.kind if self.kind is not None else "present" * self.strong

    @property
    def width(self) -> str:
        """The bar's length as a CSS percentage."""
        return f"{100 * min(max(self.share, 0), 1):.1f}%"


@dataclass(frozen=True)
class Gauge:
    """A bar filled to a share, with a text at each end; ``bad`` draws it in the colour of warnings."""

    share: float
    left: str
    right: str
    bad: bool = False

    @property
    def width(self) -> str:
        """The filled length as a CSS percentage."""
        return Bar("", self.share).width


def probability_bars(rows: Iterable[tuple[str, float, float | None, bool]]) -> list[Bar]:
    """Returns predicted probabilities with the truth beside them; the four outcomes look different.

    Args:
        rows: Class, probability, label (1, 0 or ``None`` for unknown) and whether the class counts as predicted, of
            each bar.
    """
    bars = []
    for name, share, label, predicted in rows:
        word, kind = (TRUTHS[None], "") if label is None else OUTCOMES[label, predicted]
        bars.append(Bar(name, share, word, label == 1, kind))
    return bars
