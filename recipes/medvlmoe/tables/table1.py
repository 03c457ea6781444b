"""Table 1: test AUROC of MedVLMoE and of the baselines on each data set; and Figure 2, the same as bars."""

from collections.abc import Sequence
from typing import Any

from recipes.medvlmoe.baselines import BASELINES
from recipes.medvlmoe.config import Config
from recipes.medvlmoe.tables.floors import ABOUT, FloorRow, floor_csv_rows, floor_rows, floor_table, mark_below_floor
from recipes.medvlmoe.tables.options import PIXELS, Model, ParseTrain, TableOptions, run_grid
from recipes.medvlmoe.tables.pictures import draw_bars, draw_intervals
from recipes.medvlmoe.tables.printed import COLUMN, NOTES_1, SETS, table_1
from recipes.medvlmoe.tables.rows import (
    CELL_TITLES,
    Row,
    csv_rows,
    read_rows,
    row_cells,
    seed_csv_rows,
    seed_table,
    with_paper,
)
from recipes.shared.report.formats import DASH, decimals, interval_text
from recipes.shared.runs import write_json
from recipes.shared.sweeps.grid import Grid, cell_csv_rows, provenance_lines
from recipes.shared.sweeps.options import check_models
from recipes.shared.sweeps.tables import markdown_list, markdown_table, write_csv, write_text

OURS = "medvlmoe"
MODELS = (OURS, *BASELINES, PIXELS)
"""All models that the table knows."""
SETTINGS = (
    "AUROC is the mean over the classes of one-vs-rest AUROCs on the test split, and over the seeds. The interval over "
    "patients is a bootstrap for the models as they are trained; the standard deviation over seeds is another "
    "uncertainty, and neither includes the other. Differences are to MedVLMoE, paired by study and seed; p-values are "
    "over patients, adjusted by Holm's method over the whole table. "
    f"`{PIXELS}` is a logistic regression on the pixels, the floor of the others."
)


def run_table1(
    options: TableOptions, models: Sequence[str], size: str, parse: ParseTrain
) -> tuple[Grid, list[Row], list[FloorRow]]:
    """Runs the cells of Table 1 and reads its rows, and how they stand against the floor of the pixels.

    Args:
        options: Of the sweep.
        models: Names of the models.
        size: ``"tiny"`` or ``"paper"``.
        parse: Parses options of ``train``.
    """
    check_models(models, MODELS, OURS)

    def presets(_: Config) -> list[Model]:
        return [Model(name, name, _preset(name, size), {}) for name in models]

    grid = run_grid(options, presets, size, parse)
    missing = {name: f"pass --data-sets {_example(name)}" for name in SETS if name not in grid.sets.values()}
    grid = Grid(
        grid.place, {**grid.sets, **{n: n for n in missing}}, {**grid.absent, **missing}, grid.cells, grid.records
    )
    rows = read_rows(grid, models, OURS, bootstrap=options.bootstrap)
    paper = {(row.data_set, row.model): table_1(row.model, grid.sets[row.data_set]) for row in rows}
    rows = with_paper(rows, paper)
    floors = floor_rows(rows, bootstrap=options.bootstrap)
    return grid, mark_below_floor(rows, floors), floors


def write_table1(grid: Grid, rows: Sequence[Row], floors: Sequence[FloorRow], size: str) -> list[str]:
    """Writes ``table1.md``, ``.csv`` and ``.json``, csv files of seeds, cells and floors, and a picture.

    Args:
        grid: The cells.
        rows: The rows.
        floors: Against the floor.
        size: Of the presets.

    Returns:
        Names of the files.
    """
    folder = grid.place.root
    table = csv_rows(rows, "model", COLUMN)
    write_text(folder / "table1.md", _markdown(grid, rows, floors, size))
    write_csv(folder / "table1.csv", table)
    write_csv(folder / "table1-seeds.csv", seed_csv_rows(rows, "model"))
    write_csv(folder / "table1-cells.csv", cell_csv_rows(grid))
    write_csv(folder / "table1-floors.csv", floor_csv_rows(floors))
    write_json(folder / "table1.json", {"table": "table1", "size": size, "rows": table})
    draw_intervals(
        folder / "table1.png",
        rows,
        "Test macro AUROC, 95% interval over patients",
        subtitle="ticks are seeds, the line is the floor of the pixels",
        lines={row.data_set: row.scores.mean for row in rows if row.model == PIXELS and row.scores},
    )
    names = ["table1.md", "table1.csv", "table1-seeds.csv", "table1-cells.csv"]
    return [*names, "table1-floors.csv", "table1.json", "table1.png"]


def write_figure2(grid: Grid, rows: Sequence[Row], size: str) -> list[str]:
    """Writes ``figure2.md``, ``figure2.csv`` and ``figure2.png``: bars over data sets, as the paper's Figure 2.

    Args:
        grid: The cells.
        rows: Of Table 1.
        size: Of the presets.

    Returns:
        Names of the files.
    """
    folder = grid.place.root
    write_csv(folder / "figure2.csv", csv_rows(rows, "model", COLUMN))
    parts = [
        "# Figure 2: test AUROC over data sets",
        f"Bars are what was run here (presets of size {size}), with 95% intervals over patients. Diamonds are what is "
        f"{COLUMN}; they are drawn for data sets that the paper has.",
        "![Bars of the test macro AUROC of each model on each data set](figure2.png)",
        _matrix(grid, rows),
        markdown_list(NOTES_1),
        markdown_list(provenance_lines(grid)),
    ]
    write_text(folder / "figure2.md", "\n\n".join(parts) + "\n")
    draw_bars(folder / "figure2.png", rows)
    return ["figure2.md", "figure2.csv", "figure2.png"]


def _markdown(grid: Grid, rows: Sequence[Row], floors: Sequence[FloorRow], size: str) -> str:
    columns = ["model", "data set", *CELL_TITLES, COLUMN, "notes"]
    lines = [
        [row.model, row.data_set, *row_cells(row), f"{row.paper} %" if row.paper else DASH, "; ".join(row.notes)]
        for row in rows
    ]
    return (
        "\n\n".join(
            [
                "# Table 1: test AUROC by model and data set",
                f"Presets of size {size}. {SETTINGS}",
                _matrix(grid, rows),
                "![Intervals of the test macro AUROC](table1.png)",
                "## Data sets",
                _data_sets(grid, rows),
                "## Scores and differences to MedVLMoE",
                markdown_table(columns, lines),
                "## Against the floor of the pixels",
                f"{ABOUT} All classes are in `table1-floors.csv`.",
                floor_table(floors),
                "## Every cell",
                seed_table(rows, "model"),
                "## What the paper's figures contradict",
                markdown_list(NOTES_1),
                "## Where these figures come from",
                markdown_list(provenance_lines(grid)),
            ]
        )
        + "\n"
    )


def _matrix(grid: Grid, rows: Sequence[Row]) -> str:
    """Returns the table in the paper's form: a row per model, a column per data set that is here."""
    present = [name for name in grid.sets if name not in grid.absent]
    lines = []
    for model in dict.fromkeys(row.model for row in rows):
        own = {row.data_set: row.scores for row in rows if row.model == model and row.scores}
        lines.append([model, *(_score(own.get(name)) for name in present)])
    return markdown_table(["model", *present], lines)


def _score(scores: Any) -> str:
    if scores is None:
        return DASH
    if scores.mean is None:
        return "undefined" if scores.predictions else "none"
    return f"{decimals(scores.mean)} ({interval_text(scores.interval)})"


def _data_sets(grid: Grid, rows: Sequence[Row]) -> str:
    lines = []
    for name, official in grid.sets.items():
        if name in grid.absent:
            lines.append([name, SETS.get(official, DASH), f"absent: {grid.absent[name]}", DASH, DASH, DASH])
            continue
        results = [result for row in rows if row.data_set == name and row.scores for result in row.scores.results]
        if not results:
            lines.append([name, SETS.get(official, DASH), "no cell is finished", DASH, DASH, DASH])
            continue
        one = results[0]
        studies = " / ".join(f"{count:,}" for count in one["studies"].values())
        text = "yes" if any(result["text"] for result in results) else "no"
        lines.append([name, SETS.get(official, DASH), one["task"], studies, str(len(one["classes"])), text])
    return markdown_table(["data set", "in the paper", "task", "train / val / test studies", "classes", "text"], lines)


def _preset(model: str, size: str) -> str | None:
    if model == PIXELS:
        return None
    if model == OURS:
        return size
    return model if size == "paper" else f"{model}-{size}"


def _example(name: str) -> str:
    return f"{name}:FOLDER" if name not in ("pathmnist", "retinamnist") else name
