"""Entries of a table's command line that name something by options of another command: ``NAME=OPTIONS``, or a file."""

import re
import shlex
import tomllib
from collections.abc import Sequence
from pathlib import Path

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
"""What may name a row of a table and its folder."""


def named_options(entry: str, setting: str, needed: Sequence[str]) -> dict[str, tuple[str, ...]] | None:
    """Reads an entry ``NAME=OPTIONS``, or a TOML file with a line ``NAME = "OPTIONS"`` for each.

    Args:
        entry: Of the command line.
        setting: What to call the setting in messages, with its option.
        needed: Options of which each must hold one.

    Returns:
        Options by name; ``None`` for an entry that is neither.

    Raises:
        ValueError: If a file cannot be read, options cannot be split, or lack what is needed.
    """
    name, equals, options = entry.partition("=")
    if equals and NAME.fullmatch(name):
        return {name: _named(name, options, entry, setting, needed)}
    if entry.endswith(".toml"):
        return {
            name: _named(name, given, entry, setting, needed) for name, given in _read(Path(entry), setting).items()
        }
    return None


def _named(name: str, options: object, entry: str, setting: str, needed: Sequence[str]) -> tuple[str, ...]:
    if not isinstance(options, str) or not NAME.fullmatch(name):
        raise ValueError(f'{setting}: {entry} must have lines NAME = "OPTIONS", got {name!r} = {options!r}.')
    try:
        parts = tuple(shlex.split(options))
    except ValueError as error:
        raise ValueError(f"{setting}: options of {name} cannot be split ({error}): {options}") from error
    if not any(part == one or part.startswith(f"{one}=") for part in parts for one in needed):
        raise ValueError(f"{setting}: the options of {name} must hold {' or '.join(needed)}, got {options!r}.")
    return parts


def _read(path: Path, setting: str) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{setting}: {path} cannot be read ({error}).") from error
