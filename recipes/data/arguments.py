"""How the caller of a reader writes its arguments, so that every error names what is to be typed.

Readers make their messages with `argument` and `remedy`. Called from Python they name ``on_bad_image='skip'``, within a
command ``--on-bad-image skip``, and where a command hands arguments on ``--options on_bad_image=skip``.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_type_hints

DRAWN_FLAGS = {
    "size": "--image-size",
    "train": "--train-studies",
    "val": "--val-studies",
    "test": "--test-studies",
}
"""Flags of what all drawn sets take."""

_NAMED = re.compile(r"\{(\w+)(?:=([^{}]*))?\}")
_PLAIN = re.compile(r"None|True|False|-?\d+(\.\d+)?")


@dataclass(frozen=True)
class Spelling:
    """Which arguments of a reader a command offers, and how they are typed there.

    Attributes:
        flags: Flag of each argument.
        options: Arguments that are given as ``--options name=value``.
    """

    flags: Mapping[str, str]
    options: frozenset[str] = frozenset()

    def offers(self, name: str) -> bool:
        """Tells whether the command has the argument."""
        return name in self.flags or name in self.options

    def write(self, name: str, value: str | None) -> str:
        """Returns what is typed for an argument that the command has."""
        if name not in self.flags:
            return f"--options {name}={'VALUE' if value is None else value}"
        flag = self.flags[name]
        if value in ("True", "False"):
            return flag if value == "True" else f"--no-{flag.removeprefix('--')}"
        return flag if value is None else f"{flag} {value}"


_SPELLING: ContextVar[Spelling | None] = ContextVar("spelling", default=None)


@contextmanager
def spelled(spelling: Spelling) -> Iterator[None]:
    """Has the errors of readers name what a command offers; also a decorator of what calls them.

    Args:
        spelling: Of the command.
    """
    token = _SPELLING.set(spelling)
    try:
        yield
    finally:
        _SPELLING.reset(token)


def flags_of(settings: Iterable[type[Any]], *, renamed: Mapping[str, str]) -> dict[str, str]:
    """Returns the flag of each setting of a command, and of the arguments that it passes on under other names.

    Args:
        settings: Dataclasses of settings; those within them count too.
        renamed: Setting of each argument that has another name than its setting.
    """
    flags: dict[str, str] = {}
    for kind in settings:
        hints = get_type_hints(kind)
        for field in fields(kind):
            hint = hints[field.name]
            if is_dataclass(hint) and isinstance(hint, type):
                flags |= flags_of([hint], renamed={})
            else:
                flags[field.name] = f"--{field.name.replace('_', '-')}"
    return flags | {name: flags[setting] for name, setting in renamed.items()}


def argument(name: str, value: str | None = None) -> str:
    """Returns what the caller writes for an argument of a reader.

    Args:
        name: The argument.
        value: Its value as text, such as ``"skip"`` or ``"None"``; ``None`` names the argument alone.
    """
    spelling = _SPELLING.get()
    if spelling is not None and spelling.offers(name):
        return spelling.write(name, value)
    if value is None:
        return name
    return f"{name}={value if _PLAIN.fullmatch(value) else repr(value)}"


def remedy(text: str) -> str:
    """Fills what the caller writes into a sentence on how to mend an error.

    Args:
        text: With ``{name}`` or ``{name=value}`` for arguments.

    Returns:
        The sentence; none if the command in hand lacks one of the arguments.
    """
    spelling = _SPELLING.get()
    if spelling is not None and not all(spelling.offers(match[1]) for match in _NAMED.finditer(text)):
        return ""
    return _NAMED.sub(lambda match: argument(match[1], match[2]), text)
