"""The commands ``table1``, ``table2``, ``figure2`` and ``figure3``."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import tyro

from recipes.medvlmoe.tables.options import ParseTrain, SweepOptions

Size = Literal["tiny", "paper"]
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
    train: Sequence[str] = ()
    if "--" in arguments:
        place = arguments.index("--")
        arguments, train = arguments[:place], arguments[place + 1 :]
    command = _COMMANDS[name](parse, tuple(train))
    tyro.cli(command, args=arguments, prog=f"python -m recipes.medvlmoe {name}")


def _table1(parse: ParseTrain, train: tuple[str, ...]) -> Callable[..., None]:
    from recipes.medvlmoe.tables.table1 import MODELS, run_table1, write_table1

    def table1(
        out: Path,
        data_sets: tuple[str, ...] = LOADED_BY_NAME,
        models: tuple[str, ...] = MODELS,
        seeds: tuple[int, ...] = (0, 1, 2),
        size: Size = "tiny",
        workers: int = 1,
        redo: tuple[str, ...] = (),
        collect: bool = False,
        bootstrap: int = 1000,
    ) -> None:
        """Table 1: MedVLMoE and the baselines on each data set. Options of train for all runs follow behind a --.

        Args:
            out: Folder of the table and of its runs; a sweep that was stopped goes on with what it holds.
            data_sets: Values of train's --data, or NAME=OPTIONS with options of train, or a file.toml of such lines.
            models: Rows of the table.
            seeds: One run each.
            size: Small encoders from scratch, or the published ones.
            workers: Runs at a time.
            redo: Patterns of the names of finished cells to run again, such as '*/convirt/*'.
            collect: Run nothing; make the table of what is finished.
            bootstrap: Resamples of patients.
        """
        options = SweepOptions(out, data_sets, seeds, workers, redo, collect, bootstrap, train)
        grid, rows = run_table1(options, models, size, parse)
        _say(out, write_table1(grid, rows, size))

    return table1


def _figure2(parse: ParseTrain, train: tuple[str, ...]) -> Callable[..., None]:
    from recipes.medvlmoe.tables.table1 import MODELS, PIXELS, run_table1, write_figure2

    def figure2(
        out: Path,
        data_sets: tuple[str, ...] = LOADED_BY_NAME,
        models: tuple[str, ...] = tuple(name for name in MODELS if name != PIXELS),
        seeds: tuple[int, ...] = (0, 1, 2),
        size: Size = "tiny",
        workers: int = 1,
        redo: tuple[str, ...] = (),
        collect: bool = False,
        bootstrap: int = 1000,
    ) -> None:
        """Figure 2: Table 1 as bars. The cells are those of table1, so that in its folder none is run again.

        Args:
            out: As for table1.
            data_sets: As for table1.
            models: Bars of each data set.
            seeds: One run each.
            size: As for table1.
            workers: Runs at a time.
            redo: As for table1.
            collect: Run nothing; draw what is finished.
            bootstrap: Resamples of patients.
        """
        options = SweepOptions(out, data_sets, seeds, workers, redo, collect, bootstrap, train)
        grid, rows = run_table1(options, models, size, parse)
        _say(out, write_figure2(grid, rows, size))

    return figure2


def _table2(parse: ParseTrain, train: tuple[str, ...]) -> Callable[..., None]:
    from recipes.medvlmoe.tables.table2 import file_name, run_table2

    def table2(
        out: Path,
        data_sets: tuple[str, ...] = HARDER,
        sweeps: tuple[Literal["core", "routing", "experts", "top-k"], ...] = ("core",),
        seeds: tuple[int, ...] = (0, 1, 2),
        size: Size = "tiny",
        workers: int = 1,
        redo: tuple[str, ...] = (),
        collect: bool = False,
        bootstrap: int = 1000,
    ) -> None:
        """Table 2: the full model and its ablations. Options of train for all runs follow behind a --.

        Args:
            out: Folder of the tables and of their runs; a sweep that was stopped goes on with what it holds.
            data_sets: Values of train's --data, or NAME=OPTIONS with options of train, or a file.toml of such lines.
            sweeps: The rows of the paper and the FFN of equal active FLOPs (core), and what stands beside them: routing
                per token, the number of experts, and experts per decision.
            seeds: One run each.
            size: Small encoders from scratch, or the published ones.
            workers: Runs at a time.
            redo: Patterns of the names of finished cells to run again, such as '*/medvlmoe-no-moe/*'.
            collect: Run nothing; make the table of what is finished.
            bootstrap: Resamples of patients.
        """
        options = SweepOptions(out, data_sets, seeds, workers, redo, collect, bootstrap, train)
        tables = run_table2(options, sweeps, size, parse)
        _say(out, [f"{file_name(sweep)}{ending}" for sweep in tables for ending in (".md", ".csv", ".png")])

    return table2


def _figure3(parse: ParseTrain, train: tuple[str, ...]) -> Callable[..., None]:
    from recipes.medvlmoe.tables.figure3 import run_figure3

    def figure3(
        out: Path,
        data_sets: tuple[str, ...] = HARDER,
        seeds: tuple[int, ...] = (0, 1, 2),
        size: Size = "tiny",
        permutations: int = 1000,
        workers: int = 1,
        redo: tuple[str, ...] = (),
        collect: bool = False,
        bootstrap: int = 1000,
    ) -> None:
        """Figure 3: experts by disease, tested. The cells are those of MedVLMoE in table1 and of full in table2.

        Args:
            out: As for table2.
            data_sets: As for table2.
            seeds: One run each.
            size: As for table2.
            permutations: Exchanges of the patients' labels.
            workers: Runs at a time.
            redo: Patterns of the names of finished cells to run again.
            collect: Run nothing; draw what is finished.
            bootstrap: Resamples of patients in the runs' evaluation.
        """
        options = SweepOptions(out, data_sets, seeds, workers, redo, collect, bootstrap, train)
        run_figure3(options, permutations, size, parse)
        _say(out, ["figure3.md", "figure3.csv", "figure3.png"])

    return figure3


def _say(out: Path, names: Sequence[str]) -> None:
    for name in names:
        print(f"written: {out / name}")


_COMMANDS = {"table1": _table1, "table2": _table2, "figure2": _figure2, "figure3": _figure3}
