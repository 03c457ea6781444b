"""Numbers as a report writes them."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath, PureWindowsPath
from typing import Any

DASH = "–"
"""Stands where a figure is missing."""


def decimals(value: float | None) -> str:
    """Returns a score with three decimals, a dash for ``None``."""
    return DASH if value is None else f"{value:.3f}"


def interval_text(interval: Sequence[float] | None, missing: str = DASH) -> str:
    """Returns the two ends of an interval.

    Args:
        interval: Lower and upper end, or ``None``.
        missing: What stands for ``None``.
    """
    return f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else missing


def signed(value: float | None) -> str:
    """Returns a difference of scores with its sign and three decimals, a dash for ``None``."""
    return DASH if value is None else f"{value:+.3f}"


def signed_interval(interval: Sequence[float] | None) -> str:
    """Returns the two ends of a difference's interval with their signs, a dash for ``None``."""
    return f"{signed(interval[0])} to {signed(interval[1])}" if interval else DASH


def p_text(value: float | None) -> str:
    """Returns a p-value with three decimals, or that it is below the smallest of them; a dash for ``None``."""
    if value is None:
        return DASH
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def percent(share: float) -> str:
    """Returns a share from 0 to 1 as a whole percentage."""
    return f"{100 * share:.0f}%"


def join_once(names: Iterable[str]) -> str:
    """Joins names by commas in their order, each once."""
    return ", ".join(dict.fromkeys(names))


def duration(seconds: float) -> str:
    """Returns a span of time in the two largest of its units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def fact(key: str, value: Any) -> str:
    """Returns a value of ``metrics.json`` in words.

    Lists are joined by commas, mappings become ``name value``, large parameter counts are in millions.

    Args:
        key: The value's field.
        value: Anything that JSON can hold.
    """
    if isinstance(value, Mapping):
        return ", ".join(f"{inner} {fact(key, content)}" for inner, content in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(fact(key, content) for content in value)
    if key == "parameters" and isinstance(value, int):
        return f"{value / 1e6:,.2f} M" if value >= 1e5 else f"{value:,}"
    return "none" if value is None else str(value)


def study_name(study: str) -> str:
    """Returns what to call a study in a page: the name of the file where it is called by an absolute path.

    Args:
        study: Its id.
    """
    path = PurePath(study)
    return path.name if path.is_absolute() or PureWindowsPath(study).is_absolute() else study
