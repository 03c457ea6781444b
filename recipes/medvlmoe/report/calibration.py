"""The report's view of the calibration: a table and a reliability picture per class, and the operating points."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recipes.medvlmoe.report.run import Run
from recipes.shared.report.charts import SERIES, Chart, LegendEntry, Line, reliability_chart
from recipes.shared.report.formats import decimals, interval_text, join_once
from recipes.shared.report.tables import Cell, Column, Table

KINDS = (("uncalibrated", 1, "dashed"), ("calibrated", 0, "solid"))
"""Scores of the test split, and the colour and dash of their line."""


@dataclass(frozen=True)
class CalibrationSection:
    """Calibration before and after temperature scaling.

    Attributes:
        table: One row per class.
        charts: A reliability picture of each class with a known label.
        legend: What the pictures' lines are.
        shared: Whether all classes have one temperature.
        num_bins: Bins of the calibration error.
        not_fitted: Names of the classes that keep temperature 1, joined; may be empty.
        val_nll: Negative log-likelihood of the validation split before and after, or ``None``.
    """

    table: Table
    charts: Sequence[Chart]
    legend: Sequence[LegendEntry]
    shared: bool
    num_bins: int
    not_fitted: str
    val_nll: tuple[str, str] | None


def calibration_section(run: Run) -> CalibrationSection | None:
    """Returns the calibration of the test split, or ``None`` for a run of a version that did not compute it.

    Args:
        run: The run.
    """
    content = run.metrics.get("calibration")
    if not content:
        return None
    before, after = content["uncalibrated"], content["calibrated"]
    columns = [
        Column("Class", "text"), Column("Temperature"), Column("NLL"), Column("Brier score"), Column("ECE"),
        Column("95% CI"), Column("Floor"),
    ]  # fmt: skip
    rows = [_row("All classes", "", before, after)]
    for name in run.classes:
        temperature = f"{content['temperature'][name]:.2f}"
        rows.append(_row(name, temperature, before["per_class"][name], after["per_class"][name]))
    nll = (content.get("val_nll_before"), content.get("val_nll_after"))
    return CalibrationSection(
        table=Table(columns, rows, total=True),
        charts=[_chart(name, content) for name in run.classes if after["per_class"][name]["studies"]],
        legend=[LegendEntry(kind, SERIES[series], dash) for kind, series, dash in KINDS],
        shared=content["scope"] == "shared",
        num_bins=after["num_bins"],
        not_fitted=join_once(content["not_fitted"]),
        val_nll=None if nll[0] is None else (f"{nll[0]:.4f}", f"{nll[1]:.4f}"),
    )


def operating_table(run: Run) -> Table | None:
    """Returns the rates of each class at the thresholds of the validation split, or ``None`` without any.

    Args:
        run: The run.
    """
    content = run.metrics.get("operating_points") or {}
    rows = [_point_row(name, point, values) for name in run.classes for point, values in content.get(name, {}).items()]
    if not rows:
        return None
    columns = [
        Column("Class", "text"), Column("Chosen for", "text"), Column("Threshold"), Column("Sensitivity, 95% CI"),
        Column("Specificity, 95% CI"), Column("PPV"), Column("NPV"),
    ]  # fmt: skip
    return Table(columns, rows)


def _row(name: str, temperature: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Cell]:
    pairs = [f"{decimals(before[metric])} → {decimals(after[metric])}" for metric in ("nll", "brier", "ece")]
    return [name, temperature, *pairs, interval_text(after.get("ece_ci95")), decimals(after["ece_floor"])]


def _chart(name: str, content: Mapping[str, Any]) -> Chart:
    lines = []
    for kind, series, dash in KINDS:
        predicted, observed, _ = zip(*content[kind]["per_class"][name]["bins"], strict=True)
        lines.append(Line(kind, predicted, observed, series, dash))
    values = content["calibrated"]["per_class"][name]
    note = f"ECE {decimals(values['ece'])}, floor {decimals(values['ece_floor'])}"
    return reliability_chart(name, note, lines)


def _point_row(name: str, point: str, values: Mapping[str, Any]) -> list[Cell]:
    goal = "Youden" if point == "youden" else f"specificity ≥ {point.removeprefix('specificity_')}"
    rates = [_rate(values, rate) for rate in ("sensitivity", "specificity")]
    return [name, goal, f"{values['threshold']:#.3g}", *rates, decimals(values["ppv"]), decimals(values["npv"])]


def _rate(values: Mapping[str, Any], rate: str) -> str:
    interval = values.get(f"{rate}_ci95")
    return decimals(values[rate]) + (f" ({interval_text(interval)})" if interval else "")
