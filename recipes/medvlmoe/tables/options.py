"""What the commands of tables and figures have in common, and how their command line becomes cells."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from recipes.medvlmoe.baselines.checks import check_baseline, without_unread
from recipes.medvlmoe.config import Config
from recipes.medvlmoe.tables.cell import FILES, model_cell, pixel_cell, run_cell
from recipes.medvlmoe.tables.data_sets import DataSet, official_name, parse_data_sets, why_absent
from recipes.shared.limits import check_limits
from recipes.shared.sweeps import Cell, SweepFolder, run_sweep
from recipes.shared.sweeps.grid import Grid
from recipes.shared.sweeps.options import DECIDED, SweepOptions, check_sweep, refuse_decided, refuse_unread

PIXELS = "pixels"
"""Name of the row that is a logistic regression on the pixels."""
_DECIDED = {**DECIDED, "variant": "table2 runs the variants", "data": "give --data-sets to the table"}


@dataclass(frozen=True, kw_only=True)
class TableOptions(SweepOptions):
    """A sweep over data sets, models and seeds.

    Attributes:
        data_sets: As for :func:`~recipes.medvlmoe.tables.data_sets.parse_data_sets`.
    """

    data_sets: tuple[str, ...]


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
    options: TableOptions, models: Callable[[Config], Sequence[Model]], preset: str, parse: ParseTrain
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
        refuse_unread(unread, f" on {one.name}")
    place = SweepFolder(options.out)
    listed = list({cell.name: cell for cell in cells.values()}.values())
    if options.collect:
        records = place.records(listed)
    else:
        records = run_sweep(listed, options.out, run_cell, files=FILES, workers=options.workers, redo=options.redo)
    return Grid(place, official, absent, cells, records)


def check_options(options: TableOptions) -> None:
    """Refuses options that contradict each other.

    Args:
        options: Of the sweep.

    Raises:
        ValueError: Naming them.
    """
    refuse_decided(options.train, _DECIDED, "options of train behind --")
    check_sweep(options)


def _parse(one: DataSet, preset: str, options: TableOptions, parse: ParseTrain) -> Config:
    refuse_decided(one.options, _DECIDED, f"options of train of the data set {one.name}", allowed=("data",))
    # What is given for one data set comes last, and so overrides what is given for all.
    return parse(["--preset", preset, *options.train, *one.options])


def _config(
    one: DataSet, model: Model, base: Config, options: TableOptions, parse: ParseTrain
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


def _cell(one: DataSet, model: Model, config: Config, options: TableOptions) -> Cell:
    name = f"{one.name}/{model.cell}/seed-{config.seeds[0]}"
    if model.preset is None:
        return pixel_cell(name, config, bootstrap=options.bootstrap)
    return model_cell(name, config, bootstrap=options.bootstrap)
