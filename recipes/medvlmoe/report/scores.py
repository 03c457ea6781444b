"""The report's table of AUROCs and its ROC curves."""

from collections.abc import Mapping
from math import floor
from typing import Any

import numpy as np
from sklearn.metrics import precision_recall_curve, roc_curve

from recipes.medvlmoe.report.run import Run
from recipes.shared.report.charts import Chart, precision_recall_chart, roc_chart
from recipes.shared.report.formats import DASH, decimals, interval_text
from recipes.shared.report.tables import Cell, Column, Interval, Table


def score_table(run: Run) -> Table:
    """Returns one row per class: AUROC with interval, average precision, how common the class is.

    Args:
        run: The run.
    """
    test = run.metrics["test"]
    low = _axis_start(test)
    columns = [
        Column("Class", "text"),
        Column("AUROC"),
        Column("95% CI"),
        Column("AUROC", "axis", (f"{low:.1f}", "1.0")),
        Column("Average precision"),
        Column("Prevalence"),
        Column("Positives"),
        Column("Negatives"),
    ]
    macro = _auroc_cells(test["macro_auroc"], test.get("macro_auroc_ci95"), low)
    mean = ["Macro mean", *macro, decimals(test.get("macro_average_precision")), "", "", ""]
    return Table(columns, [mean, *(_class_row(name, test["per_class"][name], low) for name in run.classes)], total=True)


def roc_charts(run: Run) -> list[Chart]:
    """Draws one small ROC curve per class that has both outcomes.

    Args:
        run: The run.
    """
    charts = []
    for c, name in enumerate(run.classes):
        values = run.metrics["test"]["per_class"][name]
        known = ~np.isnan(run.labels[:, c])
        if values["auroc"] is None or len(np.unique(run.labels[known, c])) < 2:
            continue
        false_positives, true_positives, _ = roc_curve(run.labels[known, c], run.probs[known, c])
        note = f"AUROC {values['auroc']:.3f}, {values['positives']:,} positive"
        charts.append(roc_chart(name, note, false_positives.tolist(), true_positives.tolist()))
    return charts


def precision_recall_charts(run: Run) -> list[Chart]:
    """Draws one small precision-recall curve per class that has both outcomes.

    Args:
        run: The run.
    """
    charts = []
    for c, name in enumerate(run.classes):
        values = run.metrics["test"]["per_class"][name]
        known = ~np.isnan(run.labels[:, c])
        if values.get("average_precision") is None or len(np.unique(run.labels[known, c])) < 2:
            continue
        precision, recall, _ = precision_recall_curve(run.labels[known, c], run.probs[known, c])
        prevalence = float(run.labels[known, c].mean())
        note = f"average precision {values['average_precision']:.3f}, chance {prevalence:.3f}"
        charts.append(precision_recall_chart(name, note, recall[::-1].tolist(), precision[::-1].tolist(), prevalence))
    return charts


def _axis_start(test: Mapping[str, Any]) -> float:
    """Returns the left end of the AUROC axis: 0.4, or lower where an interval reaches lower."""
    lows = [0.4]
    for values in [*test["per_class"].values(), {"auroc": test["macro_auroc"]}]:
        if values["auroc"] is not None:
            lows.append((values.get("auroc_ci95") or [values["auroc"]])[0])
    return floor(10 * min(lows) + 1e-9) / 10


def _auroc_cells(value: float | None, interval: list[float] | None, low: float) -> list[Cell]:
    if value is None:
        return [DASH, "", "undefined"]
    return [decimals(value), interval_text(interval), Interval(value, interval, low, 1.0)]


def _class_row(name: str, values: Mapping[str, Any], low: float) -> list[Cell]:
    prevalence = values.get("prevalence")
    return [
        name,
        *_auroc_cells(values["auroc"], values.get("auroc_ci95"), low),
        decimals(values.get("average_precision")),
        DASH if prevalence is None else f"{100 * prevalence:.1f}%",
        f"{values['positives']:,}",
        f"{values['negatives']:,}",
    ]
