"""The commands ``table1``, ``table2`` and ``figure3``."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from recipes.medmoe.choices import Features, Refit, Scoring, Select
from recipes.shared.sweeps.command import SweepCommand, parse_command, print_written, split_arguments
from recipes.shared.sweeps.options import SweepOptions

if TYPE_CHECKING:
    from recipes.medmoe.tables.sweep import ParsePretrain

Size = Literal["tiny", "release"]
RECIPE = "recipes.medmoe"
COMPARED = ("medmoe", "one-expert", "gloria", "clip", "convirt", "medclip")
"""Rows that are pretrained where none are named."""


def run_command(name: str, arguments: list[str], parse: "ParsePretrain") -> None:
    """Runs one of the three commands.

    Args:
        name: Its name.
        arguments: Its options, and behind ``--`` those of ``pretrain`` for all models.
        parse: Parses options of ``pretrain``.
    """
    own, pretrain = split_arguments(arguments)
    _COMMANDS[name](own, pretrain, parse)


@dataclass(frozen=True, kw_only=True)
class _Sweep(SweepCommand):
    """What the three commands have in common."""

    models: tuple[str, ...] = COMPARED
    """Rows that are pretrained, by presets of pretrain."""
    size: Size = "tiny"
    """Small encoders from scratch, or the published ones."""
    redo: tuple[str, ...] = ()
    """Patterns of the names of finished cells to run again, such as 'pretrain/clip/*' or 'zero-shot/*'."""

    def sweep(self, pretrain: tuple[str, ...]) -> SweepOptions:
        """Returns the sweep, with options of ``pretrain`` for all models."""
        return SweepOptions(**self.options_of_all(), train=pretrain)


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

    command = parse_command(Table1, arguments, RECIPE)
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
    print_written(command.out, write_table1(swept, rows, command.size, command.scorings))


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

    command = parse_command(Table2, arguments, RECIPE)
    from recipes.medmoe.tables.sets import parse_sets
    from recipes.medmoe.tables.table2 import ProbeOptions, run_table2, write_table2

    probe = ProbeOptions(command.features, command.fractions, command.subsets, command.refit, command.select)
    sets = parse_sets(command.sets, command.root)
    swept, rows = run_table2(
        command.sweep(pretrain), command.models, command.size, command.released, sets, probe, parse
    )
    print_written(command.out, write_table2(swept, rows, command.size))


def _figure3(arguments: list[str], pretrain: tuple[str, ...], parse: "ParsePretrain") -> None:
    @dataclass(frozen=True, kw_only=True)
    class Figure3(_Sweep):
        """Figure 3: word maps, hit rates and routing. Options of pretrain for all models follow behind a --."""

    command = parse_command(Figure3, arguments, RECIPE)
    from recipes.medmoe.tables.figure3 import run_figure3, write_figure3

    swept = run_figure3(command.sweep(pretrain), command.models, command.size, parse)
    print_written(command.out, write_figure3(swept, command.size))


_COMMANDS = {"table1": _table1, "table2": _table2, "figure3": _figure3}
