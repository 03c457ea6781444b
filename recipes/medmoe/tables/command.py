"""The commands ``table1``, ``table2`` and ``figure3``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import tyro

from recipes.medmoe.choices import Features, Refit, Scoring, Select

if TYPE_CHECKING:
    from recipes.medmoe.tables.sweep import ParsePretrain, SweepOptions

Size = Literal["tiny", "release"]
Command = TypeVar("Command", bound="_Sweep")
COMPARED = ("medmoe", "one-expert", "gloria", "clip", "convirt", "medclip")
"""Rows that are pretrained where none are named."""


def run_command(name: str, arguments: list[str], parse: "ParsePretrain") -> None:
    """Runs one of the three commands.

    Args:
        name: Its name.
        arguments: Its options, and behind ``--`` those of ``pretrain`` for all models.
        parse: Parses options of ``pretrain``.
    """
    pretrain: Sequence[str] = ()
    if "--" in arguments:
        place = arguments.index("--")
        arguments, pretrain = arguments[:place], arguments[place + 1 :]
    _COMMANDS[name](list(arguments), tuple(pretrain), parse)


@dataclass(frozen=True, kw_only=True)
class _Sweep:
    """What the three commands have in common."""

    out: Path
    """Folder of the table and of its runs; a sweep that was stopped goes on with what it holds, and commands that share
    a folder share their cells."""
    models: tuple[str, ...] = COMPARED
    """Rows that are pretrained, by presets of pretrain."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One pretraining each."""
    size: Size = "tiny"
    """Small encoders from scratch, or the published ones."""
    workers: int = 1
    """Cells at a time."""
    redo: tuple[str, ...] = ()
    """Patterns of the names of finished cells to run again, such as 'pretrain/clip/*' or 'zero-shot/*'."""
    collect: bool = False
    """Run nothing; make the table of what is finished."""
    bootstrap: int = 1000
    """Resamples of patients."""

    def sweep(self, pretrain: tuple[str, ...]) -> "SweepOptions":
        """Returns the sweep, with options of ``pretrain`` for all models."""
        from recipes.medmoe.tables.sweep import SweepOptions  # here, so that --help does not wait for torch

        return SweepOptions(self.out, self.seeds, self.workers, self.redo, self.collect, self.bootstrap, pretrain)


@dataclass(frozen=True, kw_only=True)
class _OnSets(_Sweep):
    """A sweep over labelled sets."""

    sets: tuple[str, ...] = ("phantom",)
    """phantom (the drawn sets of runs on drawn data), names of sets, or NAME=OPTIONS with options of zero-shot, or a
    file.toml of such lines."""
    root: Path | None = None
    """Folder of the sets that are given by name alone."""
    released: tuple[str, ...] = ()
    """Released weights as further rows: NAME=OPTIONS with --model, or a file.toml of such lines."""


def _table1(arguments: list[str], pretrain: tuple[str, ...], parse: "ParsePretrain") -> None:
    @dataclass(frozen=True, kw_only=True)
    class Table1(_OnSets):
        """Table 1: zero-shot accuracy. Options of pretrain for all models follow behind a --."""

        scorings: tuple[Scoring, ...] = ("mean",)
        """How classes are scored; each is a column of every set."""
        maps: bool = True
        """Whether the pointing game is played on the test split of the pretraining's data."""

    command = _parse(Table1, arguments)
    from recipes.medmoe.tables.sets import parse_sets
    from recipes.medmoe.tables.table1 import run_table1, write_table1

    swept, rows = run_table1(
        command.sweep(pretrain),
        command.models,
        command.size,
        command.released,
        parse_sets(command.sets, command.root),
        command.scorings,
        parse,
        maps=command.maps,
    )
    _say(command.out, write_table1(swept, rows, command.size, command.scorings))


def _table2(arguments: list[str], pretrain: tuple[str, ...], parse: "ParsePretrain") -> None:
    @dataclass(frozen=True, kw_only=True)
    class Table2(_OnSets):
        """Table 2: linear probes by share of training. Options of pretrain for all models follow behind a --."""

        features: Features = "global"
        """The encoder's pooled output, the mean of the regions, or both."""
        fractions: tuple[float, ...] = (0.01, 0.1, 1.0)
        """Shares of the training set."""
        subsets: int = 5
        """How many subsets of each share below 1 are drawn."""
        refit: Refit = "train"
        """What the last classifier is fitted on."""
        select: Select = "val"
        """What chooses its weight decay."""

    command = _parse(Table2, arguments)
    from recipes.medmoe.tables.sets import parse_sets
    from recipes.medmoe.tables.table2 import ProbeOptions, run_table2, write_table2

    probe = ProbeOptions(command.features, command.fractions, command.subsets, command.refit, command.select)
    sets = parse_sets(command.sets, command.root)
    swept, rows = run_table2(
        command.sweep(pretrain), command.models, command.size, command.released, sets, probe, parse
    )
    _say(command.out, write_table2(swept, rows, command.size))


def _figure3(arguments: list[str], pretrain: tuple[str, ...], parse: "ParsePretrain") -> None:
    @dataclass(frozen=True, kw_only=True)
    class Figure3(_Sweep):
        """Figure 3: word maps, hit rates and routing. Options of pretrain for all models follow behind a --."""

    command = _parse(Figure3, arguments)
    from recipes.medmoe.tables.figure3 import run_figure3, write_figure3

    swept = run_figure3(command.sweep(pretrain), command.models, command.size, parse)
    _say(command.out, write_figure3(swept, command.size))


def _parse(command: type[Command], arguments: list[str]) -> Command:
    return tyro.cli(command, args=arguments, prog=f"python -m recipes.medmoe {command.__name__.lower()}")


def _say(out: Path, names: Sequence[str]) -> None:
    for name in names:
        print(f"written: {out / name}")


_COMMANDS = {"table1": _table1, "table2": _table2, "figure3": _figure3}
