"""What the commands of tables and figures have in common, and how their command line becomes cells."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from recipes.medvlmoe.baselines.checks import check_baseline, without_unread
from recipes.medvlmoe.config import Config
from recipes.medvlmoe.tables.cell import FILES, model_cell, pixel_cell, run_cell
from recipes.medvlmoe.tables.data_sets import DataSet, official_name, parse_data_sets, why_absent
from recipes.shared.limits import check_limits
from recipes.shared.outputs import check_folder
from recipes.shared.sweeps import Cell, SweepFolder, run_sweep
from recipes.shared.sweeps.grid import Grid

PIXELS = "pixels"
"""Name of the row that is a logistic regression on the pixels."""
_DECIDED = {
    "out": "the table's --out is the folder of all runs",
    "seeds": "give --seeds to the table",
    "resume": "a table goes on with what its folder holds",
    "no-resume": "a table goes on with what its folder holds; --redo runs cells again",
    "preset": "--size and --models choose presets",
    "variant": "table2 runs the variants",
    "data": "give --data-sets to the table",
}
"""Options of ``train`` that a table sets itself, and what to do instead."""


@dataclass(frozen=True)
class SweepOptions:
    """A sweep over data sets, models and seeds.

    Attributes:
        out: Folder of the table and all of its runs.
        data_sets: As for :func:`~recipes.medvlmoe.tables.data_sets.parse_data_sets`.
        seeds: One run each.
        workers: Runs at a time.
        redo: Patterns of the names of finished cells to run again.
        collect: Whether to run nothing, and make the table of what is finished.
        bootstrap: Resamples of patients.
        train: Options of ``train`` for all cells.
    """

    out: Path
    data_sets: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    workers: int = 1
    redo: tuple[str, ...] = ()
    collect: bool = False
    bootstrap: int = 1000
    train: tuple[str, ...] = ()


@dataclass(frozen=True)
class Model:
    """A model of a table: a preset, with settings of its own.

    Attributes:
        name: In the table; of its cells, ``cell``.
        cell: See ``name``.
        preset: Of ``train``; ``None`` for the regression on pixels.
        settings: Of the architecture, in place of the preset's.
    """

    name: str
    cell: str
    preset: str | None
    settings: Mapping[str, object]


ParseTrain = Callable[[list[str]], Config]


def run_grid(
    options: SweepOptions, models: Callable[[Config], Sequence[Model]], preset: str, parse: ParseTrain
) -> Grid:
    """Runs, or only collects, the cells of a table.

    Args:
        options: Of the sweep.
        models: Makes the models of a data set from its settings with ``preset``.
        preset: Of MedVLMoE itself.
        parse: Parses options of ``train``.

    Raises:
        ValueError: If options contradict each other, settings are outside their limits, or no model reads one.
    """
    check_options(options)
    sets = parse_data_sets(options.data_sets)
    official: dict[str, str] = {}
    absent: dict[str, str] = {}
    cells: dict[tuple[str, str, int], Cell] = {}
    for one in sets:
        base = _parse(one, preset, options, parse)
        official[one.name] = official_name(base.data.data)
        reason = why_absent(base.data)
        if reason is not None:
            absent[one.name] = reason
            continue
        unread: list[frozenset[str]] = []
        for model in models(base):
            config, without = _config(one, model, base, options, parse)
            unread += [without] if model.preset is not None else []
            for seed in options.seeds if model.preset is not None else options.seeds[:1]:
                cells[one.name, model.name, seed] = _cell(one, model, replace(config, seeds=(seed,)), options)
        _check_read(one, unread)
    place = SweepFolder(options.out)
    listed = list({cell.name: cell for cell in cells.values()}.values())
    if options.collect:
        records = place.records(listed)
    else:
        records = run_sweep(listed, options.out, run_cell, files=FILES, workers=options.workers, redo=options.redo)
    return Grid(place, official, absent, cells, records)


def check_options(options: SweepOptions) -> None:
    """Refuses options that contradict each other.

    Args:
        options: Of the sweep.

    Raises:
        ValueError: Naming them.
    """
    if not options.seeds or len(set(options.seeds)) < len(options.seeds):
        raise ValueError(f"seeds (--seeds) must be different numbers, at least one, got {options.seeds}.")
    if options.collect and options.redo:
        raise ValueError("--collect runs nothing, and --redo runs cells again: give one of them.")
    if options.bootstrap < 100:
        raise ValueError(
            f"bootstrap (--bootstrap) must be at least 100 resamples, got {options.bootstrap}: paired differences need "
            "them."
        )
    _check_train(options.train, "behind --")
    check_folder(options.out, "--out")


def _check_train(options: Sequence[str], where: str, *, allowed: Sequence[str] = ()) -> None:
    for option in options:
        name = option.partition("=")[0].removeprefix("--").replace("_", "-")
        if option.startswith("--") and name in _DECIDED and name not in allowed:
            raise ValueError(f"--{name} cannot be among the options of train {where}: {_DECIDED[name]}.")


def _parse(one: DataSet, preset: str, options: SweepOptions, parse: ParseTrain) -> Config:
    _check_train(one.options, f"of the data set {one.name}", allowed=("data",))
    # What is given for one data set comes last, and so overrides what is given for all.
    return parse(["--preset", preset, *options.train, *one.options])


def _config(
    one: DataSet, model: Model, base: Config, options: SweepOptions, parse: ParseTrain
) -> tuple[Config, frozenset[str]]:
    """Returns a model's settings, and the options that it leaves out because it reads nothing of them."""
    if model.preset is None:
        return base, frozenset()
    config = base if model.preset == base.preset else _parse(one, model.preset, options, parse)
    config, without = without_unread(config)
    config = replace(config, model=replace(config.model, **model.settings))
    check_limits(config)
    check_baseline(config)
    return config, without


def _check_read(one: DataSet, unread: Sequence[frozenset[str]]) -> None:
    """Refuses options of a data set that no model of the table reads."""
    by_none = sorted(unread[0].intersection(*unread)) if unread else []
    if by_none:
        raise ValueError(f"{', '.join(by_none)}: no model of the table reads this on {one.name}. Leave it out.")


def _cell(one: DataSet, model: Model, config: Config, options: SweepOptions) -> Cell:
    name = f"{one.name}/{model.cell}/seed-{config.seeds[0]}"
    if model.preset is None:
        return pixel_cell(name, config, bootstrap=options.bootstrap)
    return model_cell(name, config, bootstrap=options.bootstrap)
