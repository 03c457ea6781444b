"""The report's training curves."""

from math import log
from typing import Any

from recipes.medmoe.report.run import Run
from recipes.shared.report.charts import Line, line_chart
from recipes.shared.report.html import Markup, section, tag

TOTAL, ENTROPY = "Loss, total", "Router entropy (nats)"
CHARTS = (
    (TOTAL, (("training", "train_loss"), ("validation", "val_loss"))),
    ("Global contrastive loss", (("training", "global_loss"), ("validation", "val_global_loss"))),
    ("Local contrastive loss", (("training", "local_loss"), ("validation", "val_local_loss"))),
    ("Router loss (modality)", (("training", "router_loss"), ("validation", "val_router_loss"))),
    ("Routing accuracy", (("training", "routing_accuracy"), ("validation", "val_routing_accuracy"))),
    (ENTROPY, (("training", "router_entropy"),)),
    ("Load-balancing loss", (("training", "balance_loss"),)),
    ("Learning rate", (("learning rate", "lr"),)),
)
"""Title of each chart and, for each of its lines, label and field of ``history.jsonl``."""
DASHES = ("solid", "dashed")


def training_section(run: Run) -> Markup:
    """Curves over epochs; a quantity that no epoch recorded, or that stayed 0, has no chart.

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
        if any(value for line in lines for value in line.y):
            charts.append(line_chart(title, lines, x_label="epoch", **_best(run, title), **_maximum(run, title)))
    return section("Training", tag("div", *charts, class_="panels"), caption=_caption(run))


def _caption(run: Run) -> str:
    best = run.section("training").get("best_epoch")
    text = (
        "One point per epoch, counted from 0. Training losses are means over the epoch with augmentation, validation "
        "losses are taken after it; both depend on the batch size, which sets the number of negatives."
    )
    return text if best is None else f"{text} The weights used everywhere below are those of epoch {best}."


def _best(run: Run, title: str) -> dict[str, Any]:
    best = run.section("training").get("best_epoch")
    if title != TOTAL:
        return {}
    for record in run.history:
        if record["epoch"] == best and record["val_loss"] is not None:
            return {"mark": (best, record["val_loss"], f"best: {record['val_loss']:.3f} in epoch {best}")}
    return {}


def _maximum(run: Run, title: str) -> dict[str, Any]:
    experts = run.section("routing").get("experts")
    if title != ENTROPY or not experts:
        return {}
    return {"level": (log(experts), f"maximum: ln {experts}")}
