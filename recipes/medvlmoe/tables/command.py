"""The commands ``table1``, ``table2``, ``figure2`` and ``figure3``."""

from dataclasses import dataclass
from typing import Literal

from recipes.medvlmoe.tables.options import ParseTrain, TableOptions
from recipes.shared.sweeps.command import SweepCommand, parse_command, print_written, split_arguments

Size = Literal["tiny", "paper"]
RECIPE = "recipes.medvlmoe"
LOADED_BY_NAME = ("pathmnist", "retinamnist")
"""Those of the paper's data sets that need no folder; the others are rows that say how to name it."""
HARDER = ("phantom-hard",)
"""Data set of the ablations where none is named."""


def run_command(name: str, arguments: list[str], parse: ParseTrain) -> None:
    """Runs one of the four commands.

    Args:
        name: Its name.
        arguments: Its options, and behind ``--`` those of ``train`` for all cells.
        parse: Parses options of ``train``.
    """
    own, train = split_arguments(arguments)
    _COMMANDS[name](own, train, parse)


@dataclass(frozen=True, kw_only=True)
class _Sweep(SweepCommand):
    """What the four commands have in common."""

    data_sets: tuple[str, ...]
    """Values of train's --data, or NAME=OPTIONS with options of train, or a file.toml of such lines."""
    size: Size = "tiny"
    """Small encoders from scratch, or the published ones."""
    redo: tuple[str, ...] = ()
    """Patterns of the names of finished cells to run again, such as '*/convirt/*' or '*/medvlmoe-no-moe/*'."""

    def options(self, train: tuple[str, ...]) -> TableOptions:
        """Returns the sweep, with options of ``train`` for all runs."""
        return TableOptions(**self.options_of_all(), data_sets=self.data_sets, train=train)


def _table1(arguments: list[str], train: tuple[str, ...], parse: ParseTrain) -> None:
    from recipes.medvlmoe.tables.table1 import MODELS, run_table1, write_table1

    @dataclass(frozen=True, kw_only=True)
    class Table1(_Sweep):
        """Table 1: MedVLMoE and the baselines on each data set. Options of train for all runs follow behind a --."""

        data_sets: tuple[str, ...] = LOADED_BY_NAME
        models: tuple[str, ...] = MODELS
        """Rows of the table."""

    command = parse_command(Table1, arguments, RECIPE)
    grid, rows, floors = run_table1(command.options(train), command.models, command.size, parse)
    print_written(command.out, write_table1(grid, rows, floors, command.size))


def _figure2(arguments: list[str], train: tuple[str, ...], parse: ParseTrain) -> None:
    from recipes.medvlmoe.tables.table1 import MODELS, PIXELS, run_table1, write_figure2

    @dataclass(frozen=True, kw_only=True)
    class Figure2(_Sweep):
        """Figure 2: Table 1 as bars. The cells are those of table1, so that in its folder none is run again."""

        data_sets: tuple[str, ...] = LOADED_BY_NAME
        models: tuple[str, ...] = tuple(name for name in MODELS if name != PIXELS)
        """Bars of each data set."""

    command = parse_command(Figure2, arguments, RECIPE)
    grid, rows, _ = run_table1(command.options(train), command.models, command.size, parse)
    print_written(command.out, write_figure2(grid, rows, command.size))


def _table2(arguments: list[str], train: tuple[str, ...], parse: ParseTrain) -> None:
    from recipes.medvlmoe.tables.table2 import file_name, run_table2

    @dataclass(frozen=True, kw_only=True)
    class Table2(_Sweep):
        """Table 2: the full model and its ablations. Options of train for all runs follow behind a --."""

        data_sets: tuple[str, ...] = HARDER
        sweeps: tuple[Literal["core", "routing", "experts", "top-k"], ...] = ("core",)
        """The rows of the paper and the FFN of equal active FLOPs (core), and what stands beside them: routing per
        token, the number of experts, and experts per decision."""

    command = parse_command(Table2, arguments, RECIPE)
    tables = run_table2(command.options(train), command.sweeps, command.size, parse)
    print_written(
        command.out, [f"{file_name(sweep)}{ending}" for sweep in tables for ending in (".md", ".csv", ".png")]
    )


def _figure3(arguments: list[str], train: tuple[str, ...], parse: ParseTrain) -> None:
    from recipes.medvlmoe.tables.figure3 import run_figure3

    @dataclass(frozen=True, kw_only=True)
    class Figure3(_Sweep):
        """Figure 3: experts by disease, tested. The cells are those of MedVLMoE in table1 and of full in table2."""

        data_sets: tuple[str, ...] = HARDER
        permutations: int = 1000
        """Exchanges of the patients' labels."""

    command = parse_command(Figure3, arguments, RECIPE)
    run_figure3(command.options(train), command.permutations, command.size, parse)
    print_written(command.out, ["figure3.md", "figure3.csv", "figure3.png"])


_COMMANDS = {"table1": _table1, "table2": _table2, "figure2": _figure2, "figure3": _figure3}
