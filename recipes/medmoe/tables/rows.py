"""The rows of Table 1: accuracy of a model on a set or over several, and its difference to MedMoE."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipes.medmoe.tables.models import TableModel
from recipes.medmoe.tables.printed import COLUMN, OURS, percent_text
from recipes.medmoe.tables.results import cell_problem, results_of
from recipes.medmoe.tables.sweep import Swept
from recipes.shared.compare import TestPredictions, read_test_predictions
from recipes.shared.report.formats import decimals, interval_text, p_text, signed, signed_interval
from recipes.shared.scores.mean_difference import Mean, mean_over_groups
from recipes.shared.scores.paired import holm
from recipes.shared.scores.seeds import summary_over_seeds

Hits = dict[int, tuple[NDArray[np.float64], tuple[str, ...]]]
"""By seed: 1 where a study's class has the highest score, else 0, NaN where it is unlabelled; and its patient."""
TITLES = ("accuracy", "sd over seeds", "95% over patients", "difference", "95% over patients of it",
          "over seeds, 95%", "p", "p (Holm)", "balanced accuracy", "macro AUROC", "sd over prompts")  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A model on a set, or over several.

    Attributes:
        column: The set with its scoring, or what names the mean of several.
        model: The row's name.
        seeds: Accuracy by seed; ``None`` where there is none.
        mean: Over seeds, with its interval over patients; ``None`` without any.
        difference: To MedMoE, paired by study and seed; ``None`` for MedMoE itself.
        over_seeds: The difference's t-interval over seeds, from two on.
        p_holm: Of the difference, adjusted over the table.
        auroc: Macro AUROC, mean over seeds.
        balanced: Balanced accuracy, mean over seeds.
        prompt_sd: Standard deviation of the accuracy over halves of the prompts, mean over seeds.
        paper: What the paper prints, in percent.
        notes: What a reader must know.
        hits: What the accuracies are means of.
    """

    column: str
    model: str
    seeds: Mapping[int, float | None]
    mean: Mean | None = None
    difference: Mean | None = None
    over_seeds: Sequence[float] | None = None
    p_holm: float | None = None
    auroc: float | None = None
    balanced: float | None = None
    prompt_sd: float | None = None
    paper: float | None = None
    notes: tuple[str, ...] = ()
    hits: Hits = field(default_factory=dict)

    @property
    def sd(self) -> float | None:
        """Standard deviation over the seeds, from two on."""
        known = [value for value in self.seeds.values() if value is not None]
        return float(np.std(known, ddof=1)) if len(known) > 1 else None


def read_rows(
    swept: Swept,
    columns: Sequence[str],
    paper: Mapping[tuple[str, str], float | None],
    means: Mapping[str, Sequence[str]],
    *,
    bootstrap: int,
) -> list[Row]:
    """Reads the rows of all columns, and of the means of some.

    Args:
        swept: The cells.
        columns: Names of the columns of zero-shot classification.
        paper: What the paper prints, by column and model.
        means: Which columns are averaged, by the name of the mean.
        bootstrap: Resamples of patients.
    """
    rows = [
        replace(_read(swept, column, model.name, model.absent, bootstrap), paper=paper.get((column, model.name)))
        for column in columns
        for model in _rows_of(swept, column, paper)
    ]
    by_name = {(row.column, row.model): row for row in rows}
    for name, over in means.items():
        present = [model.name for model in swept.models if all((c, model.name) in by_name for c in over)]
        rows += [_mean_row(name, [by_name[c, model] for c in over], bootstrap) for model in present]
    ours = {row.column: row for row in rows if row.model == OURS}
    rows = [row if row.model == OURS else _compared(row, ours[row.column], by_name, means, bootstrap) for row in rows]
    adjusted = holm([row.difference.p if row.difference else None for row in rows])
    return [replace(row, p_holm=p) for row, p in zip(rows, adjusted, strict=True)]


def row_cells(row: Row) -> list[str]:
    """Returns the figures of :data:`TITLES`."""
    difference = row.difference
    return [
        decimals(row.mean.value) if row.mean else "none",
        decimals(row.sd),
        interval_text(row.mean.interval if row.mean else None),
        signed(difference.value if difference else None),
        signed_interval(difference.interval if difference else None),
        signed_interval(row.over_seeds),
        p_text(difference.p if difference else None),
        p_text(row.p_holm),
        decimals(row.balanced),
        decimals(row.auroc),
        decimals(row.prompt_sd),
    ]


def csv_row(row: Row) -> dict[str, Any]:
    """Returns a row as plain values."""
    mean, difference = row.mean or Mean(None, None, None), row.difference or Mean(None, None, None)  # type: ignore[arg-type]
    return {
        "set": row.column,
        "model": row.model,
        "seeds": sum(value is not None for value in row.seeds.values()),
        "accuracy": mean.value,
        "sd_over_seeds": row.sd,
        **_ends("accuracy", mean.interval),
        "difference": difference.value,
        **_ends("difference", difference.interval),
        **_ends("difference_over_seeds", row.over_seeds),
        "p": difference.p,
        "p_holm": row.p_holm,
        "balanced_accuracy": row.balanced,
        "macro_auroc": row.auroc,
        "sd_over_prompts": row.prompt_sd,
        COLUMN: percent_text(row.paper),
        "accuracy_less_paper": None if row.paper is None or row.mean is None else row.mean.value - row.paper / 100,
        "notes": "; ".join(row.notes),
    }


def seed_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Returns one csv row per set, model and seed."""
    return [
        {"set": row.column, "model": row.model, "seed": seed, "accuracy": value}
        for row in rows
        for seed, value in row.seeds.items()
    ]


def _rows_of(swept: Swept, column: str, paper: Mapping[tuple[str, str], float | None]) -> list[TableModel]:
    """Returns the models that have a row: those that are here, and those of which the paper prints something."""
    absent = column in swept.evaluated.absent
    printed = [model for model in swept.models if paper.get((column, model.name)) is not None]
    if absent:
        return printed or [model for model in swept.models if model.name == OURS]
    return [model for model in swept.models if model.absent is None or model in printed]


def _read(swept: Swept, column: str, model: str, absent: str | None, bootstrap: int) -> Row:
    why = [f"absent: {one}" for one in (swept.evaluated.absent.get(column), absent) if one]
    runs = swept.evaluated.runs(column, model)
    if why or not runs:
        return Row(column, model, {}, notes=tuple(why) or ("not for this model: it has no local scores",))
    problems: dict[str, list[str]] = {}
    for seed in runs:
        problem = cell_problem(swept, column, model, seed)
        if problem:
            problems.setdefault(problem, []).append(str(seed))
    notes = [f"seed {', '.join(seeds)}: {problem}" for problem, seeds in problems.items()]
    results = results_of(swept, column, model)
    hits = {seed: one for seed in results if (one := _hits(read_test_predictions(runs[seed]))) is not None}
    if results and not hits:
        notes.append("several labels may hold at once: no accuracy")
    seeds = {seed: float(np.nanmean(hits[seed][0])) if seed in hits else None for seed in runs}
    spreads = [(one["prompt_spread"] or {}).get("accuracy") for one in results.values()]
    return Row(
        column,
        model,
        seeds,
        mean=_over_patients([hits], bootstrap),
        auroc=_mean_of([one["macro_auroc"] for one in results.values()]),
        balanced=_mean_of([one["balanced_accuracy"] for one in results.values()]),
        prompt_sd=_mean_of([spread and spread["sd"] for spread in spreads]),
        notes=tuple(notes),
        hits=hits,
    )


def _hits(predictions: TestPredictions) -> tuple[NDArray[np.float64], tuple[str, ...]] | None:
    """Returns hits by study of one seed; ``None`` where classes do not exclude one another."""
    labels = predictions.labels
    known = ~np.isnan(labels).any(axis=1)
    if not known.any() or not (labels[known].sum(axis=1) == 1).all():
        return None
    right = (predictions.probs[0].argmax(axis=1) == np.nan_to_num(labels).argmax(axis=1)).astype(np.float64)
    return np.where(known, right, np.nan), predictions.groups


def _mean_row(name: str, rows: Sequence[Row], bootstrap: int) -> Row:
    """Averages the rows of one model; without one of them there is no mean."""
    seeds = [seed for seed in rows[0].seeds if all(row.seeds.get(seed) is not None for row in rows)]
    if not seeds:
        return Row(name, rows[0].model, {}, notes=("a set is missing",))
    values = {seed: float(np.mean([row.seeds[seed] for row in rows])) for seed in seeds}
    hits = [{seed: row.hits[seed] for seed in seeds} for row in rows]
    return Row(
        name,
        rows[0].model,
        values,
        mean=_over_patients(hits, bootstrap),
        auroc=_mean_of([row.auroc for row in rows], all_of_them=True),
        balanced=_mean_of([row.balanced for row in rows], all_of_them=True),
    )


def _compared(
    row: Row,
    ours: Row,
    rows: Mapping[tuple[str, str], Row],
    means: Mapping[str, Sequence[str]],
    bootstrap: int,
) -> Row:
    """Adds the difference to MedMoE, over the seeds that both have; weights without seeds are compared with each."""
    columns = means.get(row.column, (row.column,))
    pairs = [(rows[c, row.model], rows[c, OURS]) for c in columns]
    own = [seed for seed, value in row.seeds.items() if value is not None]
    theirs = [seed for seed, value in ours.seeds.items() if value is not None]
    released = row.model.endswith("-released")
    common = theirs if released else [seed for seed in own if seed in theirs]
    if not own or not common:
        return row
    parts: list[tuple[NDArray[np.float64], Sequence[str]]] = []
    by_seed = np.zeros(len(common))
    for one, other in pairs:
        first = [one.hits[own[0] if released else seed] for seed in common]
        second = [other.hits[seed] for seed in common]
        if any(a[1] != b[1] for a, b in zip(first, second, strict=True)):
            return replace(row, notes=(*row.notes, "no difference: other studies than MedMoE's"))
        differences = np.array([a[0] - b[0] for a, b in zip(first, second, strict=True)])
        parts.append((differences.mean(axis=0), first[0][1]))
        by_seed += np.nanmean(differences, axis=1) / len(pairs)
    interval = summary_over_seeds(list(map(float, by_seed)))["ci95"]
    return replace(row, difference=mean_over_groups(parts, bootstrap=bootstrap), over_seeds=interval)


def _over_patients(sets: Sequence[Hits], bootstrap: int) -> Mean | None:
    if not sets or any(not hits for hits in sets):
        return None
    parts = []
    for hits in sets:
        values = np.array([own for own, _ in hits.values()]).mean(axis=0)
        parts.append((values, next(iter(hits.values()))[1]))
    return mean_over_groups(parts, bootstrap=bootstrap)


def _mean_of(values: Sequence[float | None], *, all_of_them: bool = False) -> float | None:
    """Returns the mean of the values that are known; with ``all_of_them`` only if every one is."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and (len(known) == len(values) or not all_of_them) else None


def _ends(name: str, interval: Sequence[float] | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {f"{name}_low": low, f"{name}_high": high}
