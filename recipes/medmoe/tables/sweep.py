"""The sweep of a table: models are pretrained, then evaluated, in cells that a stopped sweep goes on with."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from recipes.medmoe.baselines.checks import check_read, without_unread
from recipes.medmoe.choices import LOCAL_SCORINGS
from recipes.medmoe.config import Config
from recipes.medmoe.hints import DRAWN
from recipes.medmoe.tables.cells import EVALUATED, WEIGHTS, evaluation_cell, pretrain_cell, run_cell
from recipes.medmoe.tables.cells import TRAINED as FILES
from recipes.medmoe.tables.models import TableModel
from recipes.medmoe.tables.sets import TableSet, is_drawn, why_absent
from recipes.shared.limits import check_limits
from recipes.shared.sweeps import Cell, Record, SweepFolder, run_sweep
from recipes.shared.sweeps.grid import Grid
from recipes.shared.sweeps.options import DECIDED, SweepOptions, check_sweep, refuse_decided, refuse_unread

ParsePretrain = Callable[[list[str]], Config]
MAPS = "maps"
"""The column of the pointing game."""


@dataclass(frozen=True)
class Swept:
    """The cells of a table, once they have run.

    Attributes:
        data: What the models were pretrained on.
        pretrained: Cells of the pretrainings: one column, models, seeds.
        evaluated: Cells of the evaluations: columns, models, seeds; of released weights there is the first seed alone.
        models: All rows.
    """

    data: str
    pretrained: Grid
    evaluated: Grid
    models: tuple[TableModel, ...]

    @property
    def all_cells(self) -> Grid:
        """Pretrainings and evaluations together, to say where figures come from."""
        a, b = self.pretrained, self.evaluated
        return Grid(a.place, {**a.sets, **b.sets}, b.absent, {**a.cells, **b.cells}, {**a.records, **b.records})


@dataclass(frozen=True)
class Evaluation:
    """A column of evaluations.

    Attributes:
        kind: Of its cells: ``"zero-shot"``, ``"probe"`` or ``"maps"``.
        name: Of the column.
        settings: What decides the result, besides the model.
        on: The set; ``None`` for the data of the pretraining.
    """

    kind: str
    name: str
    settings: Mapping[str, Any]
    on: TableSet | None = None


def run_sweep_of(
    options: SweepOptions, models: Sequence[TableModel], evaluations: Sequence[Evaluation], parse: ParsePretrain
) -> Swept:
    """Runs, or only collects, the cells of a table.

    Args:
        options: Of the sweep.
        models: The rows.
        evaluations: The columns.
        parse: Parses options of ``pretrain``.

    Raises:
        ValueError: If options contradict each other, settings are outside their limits, or no model reads one.
    """
    check_sweep(options)
    refuse_decided(options.train, DECIDED, "options of pretrain behind --")
    trainings, data = _trainings(options, models, parse)
    absent = {one.name: why for one in evaluations if one.on is not None and (why := why_absent(one.on, data))}
    cells: dict[tuple[str, str, int], Cell] = {}
    for one in evaluations:
        for model in models if one.name not in absent else ():
            for seed in options.seeds if model.preset else options.seeds[:1]:
                settings = _model_settings(one, model, seed, trainings, data)
                if settings is not None:
                    number = seed if model.preset else None
                    values = {**one.settings, **settings}
                    cells[one.name, model.name, seed] = evaluation_cell(one.kind, one.name, model.name, number, values)
    redo = _redo(options.redo, [*trainings.values(), *cells.values()])
    place = SweepFolder(options.out)
    first = {("pretraining", model, seed): cell for (model, seed), cell in trainings.items()}
    kept = _run(options, list(first.values()), redo, FILES)
    ready = {
        key: cell
        for key, cell in cells.items()
        if "pretrained" not in cell.settings or _is_finished(kept.get(cell.settings["pretrained"]))
    }
    stale = [cell.name for cell in ready.values() if _is_stale(place, cell, kept)]
    records: dict[str, Record] = {}
    for kind in dict.fromkeys(one.kind for one in evaluations):
        own = [cell for cell in ready.values() if cell.settings["kind"] == kind]
        records |= _run(options, own, [*redo, *stale], EVALUATED[kind])
    grid = Grid(place, {"pretraining": data}, {}, first, kept)
    columns = {one.name: one.on.options.set or one.name if one.on else one.name for one in evaluations}
    return Swept(data, grid, Grid(place, columns, absent, cells, records), tuple(models))


def _trainings(
    options: SweepOptions, models: Sequence[TableModel], parse: ParsePretrain
) -> tuple[dict[tuple[str, int], Cell], str]:
    """Makes the cells of the pretrainings, and returns what their data are."""
    cells: dict[tuple[str, int], Cell] = {}
    unread: list[frozenset[str]] = []
    data = DRAWN
    for model in models:
        if model.preset is None:
            continue
        config, without = without_unread(parse(["--preset", model.preset, *options.train]))
        check_limits(config)
        check_read(config)
        data = config.data.data
        unread.append(without)
        for seed in options.seeds:
            cells[model.name, seed] = pretrain_cell(model.name, replace(config, seeds=(seed,)))
    refuse_unread(unread)
    return cells, data


def _model_settings(
    one: Evaluation, model: TableModel, seed: int, trainings: Mapping[tuple[str, int], Cell], data: str
) -> dict[str, Any] | None:
    """Returns what a cell's settings say of its model; ``None`` where there is no cell."""
    if model.preset is not None:
        training = trainings[model.name, seed]
        without = training.settings["config"]["model"]["local_branch"] == "none"
        return None if without and one.settings.get("scoring") in LOCAL_SCORINGS else {"pretrained": training.name}
    if model.choice is None or model.absent is not None or one.settings.get("scoring") == "combined":
        return None
    settings: dict[str, Any] = {"released": model.choice.to_json()}
    on_drawn = one.on is not None and is_drawn(one.on)
    if (on_drawn or one.on is None) and data == DRAWN:
        first = next(cell for (_, s), cell in trainings.items() if s == seed)
        settings["data_of"] = first.name  # whose data are used
    elif one.on is None:
        return None
    return settings


def _redo(patterns: Sequence[str], cells: Sequence[Cell]) -> list[str]:
    """Returns the names of the cells that the patterns fit."""
    names = [cell.name for cell in cells]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"redo (--redo) must fit the name of a cell, got {pattern!r}. Cells: {', '.join(names)}.")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _run(options: SweepOptions, cells: Sequence[Cell], redo: Sequence[str], files: Sequence[str]) -> dict[str, Record]:
    if options.collect:
        return SweepFolder(options.out).records(cells)
    names = {cell.name for cell in cells}
    own = sorted(names.intersection(redo))
    return run_sweep(cells, options.out, run_cell, files=files, workers=options.workers, redo=own)


def _is_finished(record: Record | None) -> bool:
    return record is not None and record.state == "finished"


def _is_stale(place: SweepFolder, cell: Cell, trainings: Mapping[str, Record]) -> bool:
    """Tells whether a finished evaluation is of weights that were trained anew since."""
    record = place.record(cell.name)
    if record is None or record.state != "finished" or "pretrained" not in cell.settings:
        return False
    return record.result.get("weights") != trainings[cell.settings["pretrained"]].files[WEIGHTS]
