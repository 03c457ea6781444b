"""Settings of modules: what may change after construction is checked, what may not is read-only."""

from typing import Any, ClassVar

from torch import nn


class SettingsModule(nn.Module):
    """A module whose settings describe its behaviour, also after one of them is set later.

    Settings are plain attributes, read in ``forward``. One that weights, tables or other modules were built for
    is made read-only by :meth:`_make_read_only`; setting it to another value is an ``AttributeError``. One of
    ``_checked_settings`` takes effect with the next call; a value that does not go with the others is a
    ``ValueError`` and the old value stays.
    """

    _checked_settings: ClassVar[frozenset[str]] = frozenset()
    _read_only_settings: frozenset[str] = frozenset()

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute, parameter, buffer or module."""
        if name in self._read_only_settings:
            self._refuse_change(name, value)
        elif name in self._checked_settings and name in self.__dict__:
            before = self.__dict__[name]
            super().__setattr__(name, value)
            try:
                self._check_settings()
            except ValueError:
                super().__setattr__(name, before)
                raise
        else:
            super().__setattr__(name, value)

    def _make_read_only(self, *names: str) -> None:
        """Makes settings read-only."""
        self._read_only_settings = self._read_only_settings | frozenset(names)

    def _check_settings(self) -> None:
        """Raises ``ValueError`` if the settings contradict each other; runs whenever a checked one was set."""

    def _refuse_change(self, name: str, value: object) -> None:
        current = getattr(self, name)
        plain = _is_plain(current)
        if value is current or (plain and type(value) is type(current) and value == current):
            return
        kind = type(self).__name__
        shown = f"={current!r}" if plain else ""
        raise AttributeError(
            f"{name}{shown} of {kind} is fixed once it is built, got {value!r}: build another {kind} with it."
        )


def _is_plain(value: object) -> bool:
    """Whether a value can be compared and shown: not a tensor."""
    return value is None or isinstance(value, bool | int | float | str | tuple)
