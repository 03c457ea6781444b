"""The report's scores of single-label tasks: confusion matrix, balanced accuracy, F1 and kappa."""

from dataclasses import dataclass

from recipes.medvlmoe.report.run import Run
from recipes.shared.report.formats import decimals, interval_text
from recipes.shared.report.heat import HeatMap, count_map
from recipes.shared.report.tables import Column, Table

SCORES = (("Balanced accuracy", "balanced_accuracy"), ("Macro F1", "macro_f1"), ("Cohen's kappa", "kappa"))


@dataclass(frozen=True)
class SingleLabelSection:
    """Scores of the most probable class.

    Attributes:
        summary: Balanced accuracy, F1 and kappa.
        map: Studies by class and prediction.
        classes: Precision, recall and F1 of each class.
        note: What a reader must know of kappa; may be empty.
    """

    summary: Table
    map: HeatMap
    classes: Table
    note: str


def single_label_section(run: Run) -> SingleLabelSection | None:
    """Returns the scores of a single-label task, ``None`` for a multi-label one or an older ``metrics.json``.

    Args:
        run: The run.
    """
    test = run.metrics["test"]
    scores = test.get("single_label")
    if not scores:
        return None
    rows = [(title, scores[key], scores.get(f"{key}_ci95")) for title, key in SCORES]
    rows.insert(0, ("Accuracy", test.get("accuracy"), test.get("accuracy_ci95")))
    summary = Table(
        [Column("Score", "text"), Column("Test"), Column("95% CI")],
        [[title, decimals(value), interval_text(interval)] for title, value, interval in rows],
    )
    names, matrix = scores["confusion"]["classes"], scores["confusion"]["matrix"]
    classes = Table(
        [Column("Class", "text"), Column("Precision"), Column("Recall"), Column("F1")],
        [
            [name, *(decimals(scores["per_class"][name][key]) for key in ("precision", "recall", "f1"))]
            for name in names
        ],
    )
    note = "Kappa is weighted by the square of the distance between grades." if scores["kappa_weights"] else ""
    counts = count_map(list(zip(names, matrix, strict=True)), columns=names, corner="true \\ predicted")
    return SingleLabelSection(summary, counts, classes, note)
