"""Training curves: charts over the epochs of ``history.jsonl``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Any

from recipes.shared.report.charts import Chart, Line, line_chart

DASHES = ("solid", "dashed", "dotted")


@dataclass(frozen=True)
class Curve:
    """A chart of the training.

    Attributes:
        title: What is shown, with its unit.
        lines: Label and field of ``history.jsonl`` of each line.
        best: The field whose value in the best epoch is marked, or ``None``.
        is_entropy: Whether the values are entropies over the experts, whose maximum is drawn.
    """

    title: str
    lines: Sequence[tuple[str, str]]
    best: str | None = None
    is_entropy: bool = False


def training_charts(
    curves: Sequence[Curve],
    history: Sequence[Mapping[str, Any]],
    *,
    best_epoch: int | None,
    num_experts: int | None,
) -> list[Chart]:
    """Draws curves over epochs, counted from 1; a quantity that no epoch recorded, or that stayed 0, has no chart.

    Args:
        curves: What to draw.
        history: One record per epoch; its ``epoch`` counts from 1.
        best_epoch: The epoch whose weights were kept, counted from 1, or ``None`` where it is unknown.
        num_experts: Number of experts, which bounds their entropy; ``None`` draws no bound.
    """
    epochs = [record["epoch"] for record in history]
    charts = []
    for curve in curves:
        lines = [
            Line(label, epochs, [_number(record.get(field)) for record in history], series, DASHES[series])
            for series, (label, field) in enumerate(curve.lines)
        ]
        if any(not line.is_empty() and any(line.y) for line in lines):
            mark = _best(curve.best, history, best_epoch)
            level = (log(num_experts), f"maximum: ln {num_experts}") if curve.is_entropy and num_experts else None
            charts.append(line_chart(curve.title, lines, x_label="epoch", mark=mark, level=level))
    return charts


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _best(field: str | None, history: Sequence[Mapping[str, Any]], epoch: int | None) -> tuple[int, float, str] | None:
    for record in history:
        value = record.get(field) if field else None
        if record["epoch"] == epoch and value is not None:
            return record["epoch"], value, f"best: {value:.3f} in epoch {record['epoch']}"
    return None
