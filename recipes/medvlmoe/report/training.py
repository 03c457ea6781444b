"""The report's training curves."""

from math import log
from typing import Any

from recipes.medvlmoe.report.run import Run
from recipes.shared.report.charts import Line, line_chart
from recipes.shared.report.html import Markup, section, tag

CHARTS = (
    (
        "Loss",
        (("total, training", "train_loss"), ("task, training", "task_loss"), ("validation", "val_loss")),
    ),
    ("Validation macro AUROC", (("macro AUROC", "val_macro_auroc"),)),
    ("Learning rate", (("encoders", "lr_encoder"), ("mixture and classifier", "lr_head"))),
    ("Load-balancing loss", (("load-balancing loss", "balance_loss"),)),
    ("Router z-loss", (("router z-loss", "z_loss"),)),
    ("Router entropy (nats)", (("entropy", "router_entropy"),)),
)
"""Title of each chart and, for each of its lines, label and field of ``history.jsonl``."""
DASHES = ("solid", "dashed", "dotted")


def training_section(run: Run) -> Markup:
    """Curves over epochs; a quantity that no epoch recorded has no chart.

    Args:
        run: The run.
    """
    epochs = [record["epoch"] for record in run.history]
    charts = []
    for title, fields in CHARTS:
        lines = [
            Line(label, epochs, [record.get(key) for record in run.history], series=i, dash=DASHES[i])
            for i, (label, key) in enumerate(fields)
        ]
        if any(not line.is_empty() for line in lines):
            extra = _best(run, title) | _maximum(run, title)
            charts.append(line_chart(title, lines, x_label="epoch", **extra))
    return section("Training", tag("div", *charts, class_="panels"), caption=_caption(run))


def _caption(run: Run) -> str:
    training = run.metrics.get("training") or {}
    best = training.get("best_epoch")
    text = "One point per epoch, counted from 0."
    return text if best is None else f"{text} The tested weights are those of epoch {best}."


def _best(run: Run, title: str) -> dict[str, Any]:
    if title != "Validation macro AUROC":
        return {}
    best = (run.metrics.get("training") or {}).get("best_epoch")
    for record in run.history:
        value = record.get("val_macro_auroc")
        if record["epoch"] == best and value is not None:
            return {"mark": (best, value, f"best: {value:.3f} in epoch {best}")}
    return {}


def _maximum(run: Run, title: str) -> dict[str, Any]:
    experts = run.metrics.get("experts")
    if title != "Router entropy (nats)" or not experts:
        return {}
    return {"level": (log(experts["num_experts"]), f"maximum: ln {experts['num_experts']}")}
