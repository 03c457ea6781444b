"""Defaults that a user sets by hand for a block of code: tile sizes, gathers."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Generic, TypeVar

_Value = TypeVar("_Value")


class _Changes:
    count = 0


class Override(Generic[_Value]):
    """What replaces one default, for the whole process, because backward runs in threads of autograd.

    The innermost block of code counts.
    """

    def __init__(self) -> None:
        self._values: list[_Value] = []

    @property
    def value(self) -> _Value | None:
        """What was set, or None."""
        return self._values[-1] if self._values else None

    @contextmanager
    def set_to(self, value: _Value) -> Generator[None]:
        """Sets it for a block of code."""
        self._values.append(value)
        _Changes.count += 1
        try:
            yield
        finally:
            self._values.pop()
            _Changes.count += 1


def num_changes() -> int:
    """Returns how often an override was set or ended in this process: between equal counts all are the same."""
    return _Changes.count
