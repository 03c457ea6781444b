"""The command line of tables: options that all have, and options of the training command behind ``--``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import tyro

Command = TypeVar("Command", bound="SweepCommand")


@dataclass(frozen=True, kw_only=True)
class SweepCommand:
    """What all commands of tables have in common."""

    out: Path
    """Folder of the table and of its runs; a sweep that was stopped goes on with what it holds, and commands that share
    a folder share their cells."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One training each."""
    workers: int = 1
    """Cells at a time."""
    redo: tuple[str, ...] = ()
    """Patterns of the names of finished cells to run again."""
    collect: bool = False
    """Run nothing; make the table of what is finished."""
    bootstrap: int = 1000
    """Resamples of patients."""

    def options_of_all(self) -> dict[str, Any]:
        """Returns these as arguments of :class:`~recipes.shared.sweeps.options.SweepOptions`."""
        names = ("out", "seeds", "workers", "redo", "collect", "bootstrap")
        return {name: getattr(self, name) for name in names}


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Splits a command line at ``--``.

    Args:
        arguments: All of it.

    Returns:
        The table's own, and those of the training command for all models.
    """
    if "--" not in arguments:
        return list(arguments), ()
    place = list(arguments).index("--")
    return list(arguments[:place]), tuple(arguments[place + 1 :])


def parse_command(command: type[Command], arguments: Sequence[str], recipe: str) -> Command:
    """Reads the options of a command, which is called like its class in small letters.

    Args:
        command: The class.
        arguments: Its options.
        recipe: The package that is run, such as ``"recipes.medmoe"``.
    """
    return tyro.cli(command, args=list(arguments), prog=f"python -m {recipe} {command.__name__.lower()}")


def print_written(out: Path, names: Sequence[str]) -> None:
    """Says which files were written.

    Args:
        out: Their folder.
        names: Their names.
    """
    for name in names:
        print(f"written: {out / name}")
