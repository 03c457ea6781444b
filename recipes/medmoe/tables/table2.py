"""Table 2: accuracy of a linear probe on frozen features, by share of the training set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import altair as alt
import numpy as np

from recipes.medmoe.choices import Features, Refit, Select
from recipes.medmoe.tables.models import released_models, trained_models
from recipes.medmoe.tables.printed import COLUMN, FRACTIONS, OURS, SETS_2, TABLE_2, notes_2, percent_text, table_2
from recipes.medmoe.tables.results import cell_problem, near_duplicates_of, results_of
from recipes.medmoe.tables.sets import TableSet, parse_sets
from recipes.medmoe.tables.sweep import Evaluation, ParsePretrain, Swept, run_sweep_of
from recipes.shared.report.formats import DASH, decimals, signed, signed_interval
from recipes.shared.runs import write_json
from recipes.shared.scores.seeds import summary_over_seeds
from recipes.shared.sweeps.grid import cell_csv_rows, provenance_lines
from recipes.shared.sweeps.options import SweepOptions
from recipes.shared.sweeps.pictures import empty_picture, forest, save_picture
from recipes.shared.sweeps.tables import markdown_list, markdown_table, write_csv, write_text

SETTINGS = (
    "Accuracy on the test split of a linear classifier on frozen features, mean over the seeds of the pretraining and "
    "the subsets of the training set; the standard deviation is over all of these. Differences are to MedMoE, paired "
    "by seed and subset, with a t-interval over them: it says how far another subset or another pretraining moves a "
    "difference, and nothing of the choice of patients."
)


@dataclass(frozen=True)
class ProbeOptions:
    """What is fitted on what.

    Attributes:
        features: Which features.
        fractions: Shares of the training set.
        subsets: Subsets of each share below 1.
        refit: What the last classifier is fitted on.
        select: What chooses its weight decay.
    """

    features: Features = "global"
    fractions: tuple[float, ...] = (0.01, 0.1, 1.0)
    subsets: int = 5
    refit: Refit = "train"
    select: Select = "val"


@dataclass(frozen=True)
class ProbeRow:
    """A model on a set with a share of its training set.

    Attributes:
        column: The set.
        model: The row's name.
        fraction: The share; ``None`` where there are no figures.
        values: Accuracy by seed of the pretraining and of the subset.
        auroc: Macro AUROC, mean over the same.
        studies: Fewest and most training studies of the subsets.
        difference: Mean difference to MedMoE, and its t-interval.
        paper: What the paper prints, in percent.
        notes: What a reader must know.
    """

    column: str
    model: str
    fraction: float | None
    values: Mapping[tuple[int, int], float]
    auroc: float | None = None
    studies: tuple[int, int] | None = None
    difference: tuple[float, Sequence[float] | None] | None = None
    paper: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def mean(self) -> float | None:
        """Over seeds and subsets."""
        return float(np.mean(list(self.values.values()))) if self.values else None

    @property
    def sd(self) -> float | None:
        """Over seeds and subsets, from two on."""
        return float(np.std(list(self.values.values()), ddof=1)) if len(self.values) > 1 else None


def run_table2(
    options: SweepOptions,
    models: Sequence[str],
    size: str,
    released: Sequence[str],
    sets: Sequence[TableSet],
    probe: ProbeOptions,
    parse: ParsePretrain,
) -> tuple[Swept, list[ProbeRow]]:
    """Runs the cells of Table 2 and reads its rows; the pretrainings are those of Table 1.

    Args:
        options: Of the sweep.
        models: Names of the models to pretrain.
        size: ``"tiny"`` or ``"release"``.
        released: As for :func:`~recipes.medmoe.tables.models.released_models`.
        sets: The sets; those of the paper that are not among them become rows that say how to name them.
        probe: What is fitted on what.
        parse: Parses options of ``pretrain``.

    Raises:
        ValueError: If an option is not valid.
    """
    wrong = [fraction for fraction in probe.fractions if not 0 < fraction <= 1]
    if wrong or not probe.fractions or probe.subsets < 1:
        raise ValueError(
            f"fractions (--fractions) must be shares in (0, 1] and subsets (--subsets) at least 1, got "
            f"{probe.fractions} and {probe.subsets}."
        )
    rows_of = [*trained_models(models, size), *released_models(released, list(TABLE_2))]
    known = {one.options.set for one in sets}
    every = [*sets, *(one for name in SETS_2 if name not in known for one in parse_sets([name], None))]
    settings = {**vars(probe), "fractions": list(probe.fractions)}
    evaluations = [Evaluation("probe", one.name, {"set": one.options.to_json(), **settings}, one) for one in every]
    swept = run_sweep_of(options, rows_of, evaluations, parse)
    official = {one.name: str(one.options.set) for one in every}
    rows = [
        replace(
            row, paper=None if row.fraction is None else table_2(model.printed or "", official[one.name], row.fraction)
        )
        for one in every
        for model in rows_of
        if one.name not in swept.evaluated.absent and model.absent is None
        for row in _read(swept, one.name, model.name)
    ]
    rows += _printed_rows(swept, rows, official)
    ours = {(row.column, row.fraction): row for row in rows if row.model == OURS}
    return swept, [_compared(row, ours.get((row.column, row.fraction))) for row in rows]


def write_table2(swept: Swept, rows: Sequence[ProbeRow], size: str) -> list[str]:
    """Writes ``table2.md``, ``.csv``, ``.json`` and ``.png``, and ``table2-cells.csv``.

    Args:
        swept: The cells.
        rows: The rows.
        size: Of the presets.

    Returns:
        Names of the files.
    """
    folder = swept.evaluated.place.root
    table = [_csv_row(row) for row in rows]
    write_text(folder / "table2.md", _markdown(swept, rows, size))
    write_csv(folder / "table2.csv", table)
    write_csv(folder / "table2-cells.csv", cell_csv_rows(swept.all_cells))
    write_json(folder / "table2.json", {"table": "table2", "size": size, "data": swept.data, "rows": table})
    _draw(folder / "table2.png", rows)
    return ["table2.md", "table2.csv", "table2-cells.csv", "table2.json", "table2.png"]


def _printed_rows(swept: Swept, rows: Sequence[ProbeRow], official: Mapping[str, str]) -> list[ProbeRow]:
    """Returns the paper's figures that have no row, and a row for each set that is not here and in no other."""
    there = {(row.column, row.model) for row in rows if row.fraction is not None}
    added: list[ProbeRow] = []
    for column, name in official.items():
        for model in swept.models:
            why = tuple(f"absent: {one}" for one in (swept.evaluated.absent.get(column), model.absent) if one)
            if (column, model.name) not in there and why:
                figures = [(fraction, table_2(model.printed or "", name, fraction)) for fraction in FRACTIONS]
                added += [
                    ProbeRow(column, model.name, fraction, {}, paper=figure, notes=why)
                    for fraction, figure in figures
                    if figure is not None
                ]
        if column in swept.evaluated.absent and not any(row.column == column for row in added):
            added.append(ProbeRow(column, OURS, None, {}, notes=(f"absent: {swept.evaluated.absent[column]}",)))
    return added


def _read(swept: Swept, column: str, model: str) -> list[ProbeRow]:
    seeds = swept.evaluated.runs(column, model)
    if not seeds:
        return [ProbeRow(column, model, None, {}, notes=("not for this model",))]
    problems = [f"seed {seed}: {problem}" for seed in seeds if (problem := cell_problem(swept, column, model, seed))]
    results = results_of(swept, column, model)
    if not results:
        return [ProbeRow(column, model, None, {}, notes=tuple(problems))]
    first = next(iter(results.values()))
    rows = []
    for place, fraction in enumerate(one["fraction"] for one in first["fractions"]):
        subsets = {
            (seed, subset["seed"]): subset
            for seed, result in results.items()
            for subset in result["fractions"][place]["subsets"]
        }
        values = {key: one["accuracy"] for key, one in subsets.items() if one["accuracy"] is not None}
        aurocs = [one["macro_auroc"] for one in subsets.values() if one["macro_auroc"] is not None]
        sizes = [one["train_studies"] for one in subsets.values()]
        notes = [*problems] if values else [*problems, "several labels may hold at once: no accuracy"]
        rows.append(
            ProbeRow(
                column,
                model,
                fraction,
                values,
                auroc=float(np.mean(aurocs)) if aurocs else None,
                studies=(min(sizes), max(sizes)),
                notes=tuple(notes),
            )
        )
    return rows


def _compared(row: ProbeRow, ours: ProbeRow | None) -> ProbeRow:
    if ours is None or row.model == OURS or not row.values or not ours.values:
        return row
    by_subset = {key[1]: value for key, value in row.values.items()}
    if row.model.endswith("-released"):  # no seeds of its own: compared with each seed of MedMoE
        pairs = [by_subset[subset] - value for (_, subset), value in ours.values.items() if subset in by_subset]
    else:
        pairs = [value - ours.values[key] for key, value in row.values.items() if key in ours.values]
    if not pairs:
        return row
    summary = summary_over_seeds(pairs)
    return replace(row, difference=(summary["mean"], summary["ci95"]))


def _markdown(swept: Swept, rows: Sequence[ProbeRow], size: str) -> str:
    titles = ["set", "model", "share of training", "studies", "accuracy", "sd", "macro AUROC", "difference",
              "95% over seeds and subsets", f"{COLUMN}, %", "notes"]  # fmt: skip
    lines = []
    for row in rows:
        value, interval = row.difference or (None, None)
        share = DASH if row.fraction is None else f"{100 * row.fraction:g} %"
        studies = DASH if row.studies is None else " to ".join(map(str, sorted(set(row.studies))))
        mean = "none" if row.mean is None else decimals(row.mean)
        figures = [decimals(row.sd), decimals(row.auroc), signed(value), signed_interval(interval)]
        paper = percent_text(row.paper) or DASH
        lines.append([row.column, row.model, share, studies, mean, *figures, paper, "; ".join(row.notes)])
    parts = [
        "# Table 2: linear probes by share of the training set",
        f"Presets of size {size}, pretrained on {swept.data}. {SETTINGS}",
        _protocols(swept),
        markdown_table(titles, lines),
        "![Accuracy by share of the training set](table2.png)",
        "## What the paper's figures contradict",
        markdown_list(notes_2()),
        "## Where these figures come from",
        markdown_list(provenance_lines(swept.all_cells)),
    ]
    return "\n\n".join(parts) + "\n"


def _protocols(swept: Swept) -> str:
    """Says what was fitted on what, and chance, of each set."""
    lines = []
    for column in swept.evaluated.sets:
        results = [one for m in swept.models for one in results_of(swept, column, m.name).values()]
        if not results:
            continue
        one = results[0]
        chance = (
            ""
            if one["chance"] is None
            else f"; chance {one['chance']:.3f}, most frequent class {one['majority_share']:.3f}"
        )
        lines.append(
            f"{column}: {one['studies']['test']} test studies, features {one['features']}; {one['protocol']}{chance}; "
            f"near-duplicates: {near_duplicates_of(results)}."
        )
    return markdown_list(lines) if lines else "No cell is finished."


def _csv_row(row: ProbeRow) -> dict[str, Any]:
    value, interval = row.difference or (None, None)
    low, high = interval or (None, None)
    return {
        "set": row.column,
        "model": row.model,
        "fraction": row.fraction,
        "studies_from": row.studies[0] if row.studies else None,
        "studies_to": row.studies[1] if row.studies else None,
        "accuracy": row.mean,
        "sd": row.sd,
        "values": len(row.values),
        "macro_auroc": row.auroc,
        "difference": value,
        "difference_low": low,
        "difference_high": high,
        COLUMN: percent_text(row.paper),
        "accuracy_less_paper": None if row.paper is None or row.mean is None else row.mean - row.paper / 100,
        "notes": "; ".join(row.notes),
    }


def _draw(path: Any, rows: Sequence[ProbeRow]) -> None:
    """Draws mean and standard deviation of each share, one panel per set."""
    panels = []
    shown = [row for row in rows if row.mean is not None]
    for column in dict.fromkeys(row.column for row in shown):
        points, ticks = [], []
        for row in (row for row in shown if row.column == column):
            assert row.mean is not None
            assert row.fraction is not None
            name, sd = f"{row.model}, {100 * row.fraction:g} %", row.sd or 0.0
            points.append({"row": name, "value": row.mean, "low": row.mean - sd, "high": row.mean + sd})
            ticks += [{"row": name, "value": value} for value in row.values.values()]
        order = sorted((one["row"] for one in points), key=lambda name: float(str(name).rpartition(", ")[2][:-2]))
        panels.append(forest(points, ticks, list(map(str, order)), column, x_title="accuracy", line=None, most=1.0))
    subtitle = "mean and standard deviation over seeds and subsets, which are the ticks"
    chart = alt.vconcat(*panels) if panels else empty_picture()
    save_picture(path, chart, "Linear probes by share of the training set", subtitle=subtitle)
