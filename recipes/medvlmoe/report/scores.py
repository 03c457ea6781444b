"""The report's table of AUROCs and its ROC curves."""

from collections.abc import Mapping
from math import floor
from typing import Any

import numpy as np
from sklearn.metrics import roc_curve

from recipes.medvlmoe.report.run import Run
from recipes.shared.report.bars import interval_bar
from recipes.shared.report.charts import roc_chart
from recipes.shared.report.html import Markup, section, table, tag


def score_section(run: Run) -> Markup:
    """One row per class: AUROC with interval, average precision, how common the class is.

    Args:
        run: The run.
    """
    test = run.metrics["test"]
    low = _axis_start(test)
    ends = tag("span", tag("span", f"{low:.1f}"), tag("span", "AUROC"), tag("span", "1.0"), class_="ends")
    head = ["Class", "AUROC", "95% CI", ends, "Average precision", "Prevalence", "Positives", "Negatives"]
    macro = test["macro_auroc"]
    first = [
        "Macro mean",
        *_auroc_cells(macro, test.get("macro_auroc_ci95"), low),
        *["" for _ in range(4)],
    ]
    rows = [first] + [_class_row(name, test["per_class"][name], low) for name in run.classes]
    return section(
        "Test scores by class",
        table(head, rows, align="lrrwrrrr", total=True),
        caption="AUROC of each class against the rest, with the 95% interval over resampled groups. The "
        "dashed line is chance (0.5). Average precision of chance equals the prevalence.",
    )


def roc_section(run: Run) -> Markup:
    """One small ROC curve per class that has both outcomes.

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
    if not charts:
        return section("ROC curves", tag("p", "No class has both positives and negatives.", class_="muted"))
    return section(
        "ROC curves",
        tag("div", *charts, class_="panels small"),
        caption="True-positive rate (up) over false-positive rate (right) on the test split. Dotted: chance.",
    )


def _axis_start(test: Mapping[str, Any]) -> float:
    """Left end of the AUROC axis: 0.4, or lower where an interval reaches lower."""
    lows = [0.4]
    for values in [*test["per_class"].values(), {"auroc": test["macro_auroc"]}]:
        if values["auroc"] is not None:
            lows.append((values.get("auroc_ci95") or [values["auroc"]])[0])
    return floor(10 * min(lows) + 1e-9) / 10


def _auroc_cells(value: float | None, interval: list[float] | None, low: float) -> list[object]:
    if value is None:
        return ["–", "", tag("span", "undefined", class_="muted")]
    ends = f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else "–"
    return [f"{value:.3f}", ends, interval_bar(value, interval, low, 1.0)]


def _class_row(name: str, values: Mapping[str, Any], low: float) -> list[object]:
    precision, prevalence = values.get("average_precision"), values.get("prevalence")
    return [
        name,
        *_auroc_cells(values["auroc"], values.get("auroc_ci95"), low),
        "–" if precision is None else f"{precision:.3f}",
        "–" if prevalence is None else f"{100 * prevalence:.1f}%",
        f"{values['positives']:,}",
        f"{values['negatives']:,}",
    ]
