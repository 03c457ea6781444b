"""The rows that Tables 1 and 2 share: scores of a model on a data set, and its difference to a reference model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from recipes.shared.report.formats import DASH, decimals, interval_text, p_text, signed, signed_interval
from recipes.shared.sweeps.grid import Grid
from recipes.shared.sweeps.scores import RowDifference, RowScores, adjust, compare_rows, row_scores
from recipes.shared.sweeps.tables import markdown_table


@dataclass(frozen=True)
class Row:
    """A model on a data set.

    Attributes:
        data_set: Its name.
        model: Its name.
        scores: ``None`` on a data set that is absent.
        difference: To the reference; ``None`` for the reference itself, and where there are no scores.
        paper: What the paper prints, in percent; ``None`` where it prints nothing.
        notes: What a reader must know.
    """

    data_set: str
    model: str
    scores: RowScores | None
    difference: RowDifference | None
    paper: str | None = None
    notes: list[str] = field(default_factory=list)


def read_rows(grid: Grid, models: Sequence[str], reference: str, *, bootstrap: int) -> list[Row]:
    """Reads the rows of a table, with p-values adjusted over all of them.

    Args:
        grid: Its cells.
        models: Names of the models, in the order of the table; those that a data set lacks are left out.
        reference: The model that the others are compared with.
        bootstrap: Resamples of patients.
    """
    rows = []
    for data_set in grid.sets:
        if data_set in grid.absent:
            notes = [f"absent: {grid.absent[data_set]}"]
            rows += [Row(data_set, model, None, None, notes=notes) for model in models]
            continue
        present = [model for model in models if grid.runs(data_set, model)]
        scores = {
            model: row_scores(grid.runs(data_set, model), grid.records_of(data_set, model), bootstrap=bootstrap)
            for model in present
        }
        for model in present:
            difference = None
            if model != reference and reference in scores and scores[model].predictions:
                difference = compare_rows(scores[model], scores[reference], bootstrap=bootstrap)
            notes = [*scores[model].problems, *(_undefined(scores[model].results))]
            if difference is not None and difference.problem:
                notes.append(f"no difference: {difference.problem}")
            rows.append(Row(data_set, model, scores[model], difference, notes=notes))
    compared = [row.difference for row in rows if row.difference is not None]
    adjusted = iter(adjust(compared))
    return [row if row.difference is None else _with(row, difference=next(adjusted)) for row in rows]


def with_paper(rows: Sequence[Row], paper: Mapping[tuple[str, str], str | None]) -> list[Row]:
    """Returns rows with the paper's figures.

    Args:
        rows: The rows.
        paper: By data set and model.
    """
    return [_with(row, paper=paper.get((row.data_set, row.model))) for row in rows]


def row_cells(row: Row) -> list[str]:
    """Returns score, standard deviation over seeds, interval over patients, difference with interval, p-values."""
    if row.scores is None:
        return ["absent", *[DASH] * 6]
    one, difference = row.scores, row.difference or RowDifference()
    done = len(one.predictions)
    mean = decimals(one.mean) if one.mean is not None else ("undefined" if done else "none")
    return [
        mean,
        decimals(one.sd),
        interval_text(one.interval),
        signed(difference.value),
        signed_interval(difference.interval),
        p_text(difference.p),
        p_text(difference.p_holm),
    ]


CELL_TITLES = (
    "AUROC",
    "sd over seeds",
    "95% over patients",
    "difference",
    "95% over patients of it",
    "p",
    "p (Holm)",
)
"""Titles of `row_cells`."""


def seed_table(rows: Sequence[Row], first: str) -> str:
    """Returns a table of every cell: its score and its difference, each with an interval over patients.

    Args:
        rows: The rows.
        first: Title of the models' column.
    """
    lines = []
    for row in rows:
        for one in row.scores.seeds if row.scores else ():
            value, interval, p = ((row.difference and row.difference.seeds) or {}).get(one.seed, (None, None, None))
            score = decimals(one.value) if not one.problem else one.problem
            lines.append(
                [row.model, row.data_set, str(one.seed), score, interval_text(one.interval), signed(value),
                 signed_interval(interval), p_text(p)]
            )  # fmt: skip
    titles = [first, "data set", "seed", "AUROC", "95% over patients", "difference", "95% over patients of it", "p"]
    return markdown_table(titles, lines)


def csv_rows(rows: Sequence[Row], first: str, paper_title: str) -> list[dict[str, Any]]:
    """Returns one csv row per model and data set.

    Args:
        rows: The rows.
        first: Title of the models' column.
        paper_title: Title of the paper's column.
    """
    return [
        {
            "data_set": row.data_set,
            first: row.model,
            **_score_fields(row.scores),
            **_difference_fields(row.difference or RowDifference()),
            paper_title: row.paper,
            "notes": "; ".join(row.notes),
        }
        for row in rows
    ]


def seed_csv_rows(rows: Sequence[Row], first: str) -> list[dict[str, Any]]:
    """Returns one csv row per cell; see :func:`csv_rows`."""
    lines = []
    for row in rows:
        for one in row.scores.seeds if row.scores else ():
            value, interval, p = ((row.difference and row.difference.seeds) or {}).get(one.seed, (None, None, None))
            lines.append(
                {"data_set": row.data_set, first: row.model, "seed": one.seed, "macro_auroc": one.value}
                | _ends("macro_auroc", one.interval)
                | {"difference": value, **_ends("difference", interval), "p": p, "problem": one.problem}
            )
    return lines


def _undefined(results: Sequence[Mapping[str, Any]]) -> list[str]:
    names = dict.fromkeys(name for result in results for name in result.get("undefined_classes", ()))
    return [f"no AUROC for {', '.join(names)}"] if names else []


def _score_fields(scores: RowScores | None) -> dict[str, Any]:
    if scores is None:
        return {"seeds": 0, "macro_auroc": None, "sd_over_seeds": None, **_ends("macro_auroc", None)}
    fields: dict[str, Any] = {"seeds": len(scores.predictions), "macro_auroc": scores.mean, "sd_over_seeds": scores.sd}
    return fields | _ends("macro_auroc", scores.interval)


def _difference_fields(difference: RowDifference) -> dict[str, Any]:
    fields: dict[str, Any] = {"difference": difference.value, **_ends("difference", difference.interval)}
    fields |= {"p": difference.p, "p_holm": difference.p_holm}
    return fields | _ends("difference_over_seeds", difference.over_seeds)


def _ends(name: str, interval: Sequence[float] | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {f"{name}_low": low, f"{name}_high": high}


def _with(row: Row, **changes: Any) -> Row:
    return Row(**(vars(row) | changes))
