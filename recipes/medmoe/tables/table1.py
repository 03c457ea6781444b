"""Table 1: zero-shot accuracy of MedMoE, of the baselines and of released models, and what the maps point at."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import altair as alt

from recipes.medmoe.choices import Scoring
from recipes.medmoe.tables.models import released_models, trained_models
from recipes.medmoe.tables.pointing import pointing_csv, pointing_table
from recipes.medmoe.tables.printed import AVERAGES_1, COLUMN, SETS, TABLE_1, notes_1, percent_text, table_1
from recipes.medmoe.tables.results import near_duplicates_of, results_of
from recipes.medmoe.tables.rows import TITLES, Row, csv_row, read_rows, row_cells, seed_rows
from recipes.medmoe.tables.sets import TableSet, is_drawn, parse_sets
from recipes.medmoe.tables.sweep import MAPS, Evaluation, ParsePretrain, Swept, run_sweep_of
from recipes.shared.report.formats import DASH, decimals, interval_text
from recipes.shared.runs import write_json
from recipes.shared.sweeps.grid import cell_csv_rows, provenance_lines
from recipes.shared.sweeps.options import SweepOptions
from recipes.shared.sweeps.pictures import empty_picture, forest, save_picture
from recipes.shared.sweeps.tables import markdown_list, markdown_table, write_csv, write_text

SETTINGS = (
    "Accuracy is that of the test split, classes told apart by prompts alone, mean over the seeds of the pretraining. "
    "The interval over patients is a bootstrap for the models as they are trained; the standard deviation and the "
    "t-interval over seeds are another uncertainty, and neither includes the other. Differences are to MedMoE, paired "
    "by study and seed; p-values are over patients, adjusted by Holm's method over the whole table. The standard "
    "deviation over prompts is that of the accuracies by 20 random halves of the prompts, mean over the seeds."
)
SCORINGS = (
    "`mean` is the cosine of the whole image with the prompts of a class: no expert and no region takes part in it. "
    "`combined` adds the local scores, so models without a local branch have none."
)


def run_table1(
    options: SweepOptions,
    models: Sequence[str],
    size: str,
    released: Sequence[str],
    sets: Sequence[TableSet],
    scorings: Sequence[str],
    parse: ParsePretrain,
    *,
    maps: bool,
) -> tuple[Swept, list[Row]]:
    """Runs the cells of Table 1 and reads its rows.

    Args:
        options: Of the sweep.
        models: Names of the models to pretrain.
        size: ``"tiny"`` or ``"release"``.
        released: As for :func:`~recipes.medmoe.tables.models.released_models`.
        sets: The sets; those of the paper that are not among them become rows that say how to name them.
        scorings: Of the zero-shot classification.
        parse: Parses options of ``pretrain``.
        maps: Whether the pointing game is played on the test split of the pretraining's data.

    Raises:
        ValueError: If an option is not valid.
    """
    unknown = [name for name in scorings if name not in get_args(Scoring)]
    if unknown or not scorings or len(set(scorings)) < len(scorings):
        raise ValueError(
            f"scorings (--scorings) must be different ones of {', '.join(get_args(Scoring))}, got {scorings}."
        )
    rows_of = [*trained_models(models, size), *released_models(released, list(TABLE_1))]
    known = {one.options.set for one in sets}
    every = [*sets, *(one for name in SETS if name not in known for one in parse_sets([name], None))]
    given = [one.name for one in sets]  # the others are there to be named, once
    columns = {(one.name, s): one for one in every for s in (scorings if one.name in given else scorings[:1])}
    evaluations = [
        Evaluation(
            "zero-shot",
            column_name(name, scoring, scorings),
            {"set": one.options.to_json(), "scoring": scoring, "bootstrap": options.bootstrap},
            one,
        )
        for (name, scoring), one in columns.items()
    ]
    if maps:
        evaluations.append(Evaluation("maps", MAPS, {"bootstrap": options.bootstrap}))
    swept = run_sweep_of(options, rows_of, evaluations, parse)
    names = [one.name for one in evaluations if one.kind == "zero-shot"]
    paper = {
        (one.name, model.name): table_1(model.printed or "", str(one.on.options.set))
        for one in evaluations
        for model in rows_of
        if one.on is not None and one.settings["scoring"] == scorings[0]
    }
    drawn = {
        f"mean of the drawn sets{_of(scoring, scorings)}": [
            column_name(one.name, scoring, scorings) for one in every if is_drawn(one)
        ]
        for scoring in scorings
    }
    here = {name: over for name, over in drawn.items() if len(over) > 1 and not set(over) & set(swept.evaluated.absent)}
    return swept, read_rows(swept, names, paper, here, bootstrap=options.bootstrap)


def column_name(name: str, scoring: str, scorings: Sequence[str]) -> str:
    """Returns what to call a set's column, and the folder of its cells, under a scoring.

    Args:
        name: Of the set.
        scoring: Its scoring.
        scorings: All of the table; the first is left out of the name.
    """
    return name if scoring == scorings[0] else f"{name}.{scoring}"


def write_table1(swept: Swept, rows: Sequence[Row], size: str, scorings: Sequence[str]) -> list[str]:
    """Writes ``table1.md``, ``.csv``, ``.json`` and ``.png``, and csv files of seeds, cells and maps.

    Args:
        swept: The cells.
        rows: The rows.
        size: Of the presets.
        scorings: Of the table.

    Returns:
        Names of the files.
    """
    folder = swept.evaluated.place.root
    table = [csv_row(row) for row in rows]
    write_text(folder / "table1.md", _markdown(swept, rows, size, scorings))
    write_csv(folder / "table1.csv", table)
    write_csv(folder / "table1-seeds.csv", seed_rows(rows))
    write_csv(folder / "table1-cells.csv", cell_csv_rows(swept.all_cells))
    write_csv(folder / "table1-maps.csv", pointing_csv(swept))
    write_json(folder / "table1.json", {"table": "table1", "size": size, "data": swept.data, "rows": table})
    _draw(folder / "table1.png", rows)
    return [
        "table1.md",
        "table1.csv",
        "table1-seeds.csv",
        "table1-cells.csv",
        "table1-maps.csv",
        "table1.json",
        "table1.png",
    ]


def _markdown(swept: Swept, rows: Sequence[Row], size: str, scorings: Sequence[str]) -> str:
    absent = set(swept.evaluated.absent)
    lines = [
        [row.model, row.column, *row_cells(row), percent_text(row.paper) or DASH, "; ".join(row.notes)]
        for row in rows
        if row.column not in absent
    ]
    others = "" if len(scorings) == 1 else f" Columns without another name are scored by `{scorings[0]}`. {SCORINGS}"
    parts = [
        "# Table 1: zero-shot accuracy by model and set",
        f"Presets of size {size}, pretrained on {swept.data}. {SETTINGS}{others}",
        _matrix(rows),
        "![Intervals of the accuracy](table1.png)",
        "## Routing",
        _routing(swept),
        "## Where the maps point",
        pointing_table(swept),
        "## Scores and differences to MedMoE",
        markdown_table(["model", "set", *TITLES, f"{COLUMN}, %", "notes"], lines),
        "## Sets and prompts",
        _sets(swept, rows),
        "## What is not here",
        _absent(swept),
        f"## The paper's Table 1: {COLUMN}",
        _printed(),
        "## What the paper's figures contradict",
        markdown_list(notes_1()),
        "## Where these figures come from",
        markdown_list(provenance_lines(swept.all_cells)),
    ]
    return "\n\n".join(parts) + "\n"


def _matrix(rows: Sequence[Row]) -> str:
    """Returns the table in the paper's form: a row per model, a column per set that is here."""
    present = list(dict.fromkeys(row.column for row in rows if row.mean is not None))
    lines = []
    for model in dict.fromkeys(row.model for row in rows if row.mean is not None):
        own = {row.column: row for row in rows if row.model == model and row.mean is not None}
        lines.append([model, *(_score(own.get(column)) for column in present)])
    return markdown_table(["model", *present], lines) if lines else "No cell is finished."


def _score(row: Row | None) -> str:
    if row is None or row.mean is None:
        return DASH
    sd = "" if row.sd is None else f" ± {row.sd:.3f}"
    return f"{decimals(row.mean.value)}{sd} ({interval_text(row.mean.interval)})"


def _routing(swept: Swept) -> str:
    """Returns the purity of the routing of each pretraining, and of those that are missing why."""
    lines = []
    for (_, model, seed), cell in swept.pretrained.cells.items():
        record = swept.pretrained.records.get(cell.name)
        if record is None or record.state == "failed":
            lines.append(
                [model, str(seed), DASH, DASH, DASH, "not run" if record is None else f"failed: {record.error}"]
            )
            continue
        result = record.result
        routing = result["routing"]
        purity = "no experts to choose from" if routing is None else decimals(result["purity"])
        live = DASH if routing is None else f"{routing['live_experts']} of {routing['experts']}"
        lines.append(
            [model, str(seed), purity, live, f"{result['parameters']:,}", f"best epoch {result['best_epoch']}"]
        )
    return markdown_table(["model", "seed", "purity", "experts that live", "parameters", "training"], lines)


def _sets(swept: Swept, rows: Sequence[Row]) -> str:
    lines = []
    for column in dict.fromkeys(row.column for row in rows):
        if column not in swept.evaluated.sets:
            continue  # a mean of several
        if column in swept.evaluated.absent:
            continue
        results = [one for m in swept.models for one in results_of(swept, column, m.name).values()]
        lines.append([column, *_about_set(results)])
    titles = ["set", "task", "studies", "patients", "classes", "chance", "most frequent class", "prompts",
              "near-duplicates of pretraining images"]  # fmt: skip
    return markdown_table(titles, lines) if lines else "None is here."


def _absent(swept: Swept) -> str:
    """Returns a row for each set and each model that is not here, with the reason."""
    lines = [["set", name, why] for name, why in swept.evaluated.absent.items()]
    lines += [["model", one.name, one.absent] for one in swept.models if one.absent is not None]
    return markdown_table(["kind", "name", "reason"], lines) if lines else "Nothing is missing."


def _printed() -> str:
    """Returns the paper's table, with its average and the mean of its row."""
    lines = [
        [model, *(f"{value:.2f}" for value in values), f"{AVERAGES_1[model]:.2f}", f"{sum(values) / len(values):.2f}"]
        for model, values in TABLE_1.items()
    ]
    return markdown_table(["model", *SETS.values(), "its average", "mean of the row"], lines)


def _about_set(results: Sequence[Mapping[str, Any]]) -> list[str]:
    if not results:
        return ["no cell is finished", *[DASH] * 7]
    one = results[0]
    prompts = one["prompts"]
    return [
        one["task"],
        f"{one['studies']:,}",
        f"{one['groups']:,}",
        str(len(one["classes"])),
        decimals(one["chance"]),
        decimals(one["majority_share"]),
        f"{prompts['texts']} texts of {prompts['file']}, checksum {prompts['checksum']}",
        near_duplicates_of(results),
    ]


def _draw(path: Any, rows: Sequence[Row]) -> None:
    panels = []
    for column in dict.fromkeys(row.column for row in rows if row.mean is not None):
        own = [row for row in rows if row.column == column and row.mean is not None]
        points = []
        for row in own:
            assert row.mean is not None
            low, high = row.mean.interval or (None, None)
            points.append({"row": row.model, "value": row.mean.value, "low": low, "high": high})
        ticks = [{"row": r.model, "value": v} for r in own for v in r.seeds.values() if v is not None]
        order = [row.model for row in own]
        panels.append(forest(points, ticks, order, column, x_title="accuracy", line=None, most=1.0))
    chart = alt.vconcat(*panels) if panels else empty_picture()
    save_picture(path, chart, "Zero-shot accuracy, 95% interval over patients", subtitle="ticks are seeds")


def _of(scoring: str, scorings: Sequence[str]) -> str:
    return "" if scoring == scorings[0] else f", {scoring}"
