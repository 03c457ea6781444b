"""The report's view of scores from the image alone and from the text alone."""

from dataclasses import dataclass

from recipes.medvlmoe.report.run import Run
from recipes.shared.report.formats import decimals, interval_text
from recipes.shared.report.tables import Cell, Column, Interval, Table


@dataclass(frozen=True)
class Modalities:
    """Scores of the same studies by what the model was shown of them.

    Attributes:
        note: Which studies these are, and what the model was trained with.
        table: One row for image and text, image only and text only.
    """

    note: str
    table: Table


def modality_section(run: Run) -> Modalities | None:
    """Returns the scores by modality; ``None`` of a run that reads one modality, or was evaluated by an older version.

    Args:
        run: The run.
    """
    content = run.metrics.get("modalities")
    if not content:
        return None
    values = content["values"]
    low = min([0.4, *(one["macro_auroc_ci95"][0] for one in values.values() if one["macro_auroc_ci95"])])
    columns = [
        Column("Shown", "text"), Column("Macro AUROC"), Column("95% CI"),
        Column("Macro AUROC", "axis", (f"{low:.1f}", "1.0")), Column("Studies"),
    ]  # fmt: skip
    rows: list[list[Cell]] = []
    for name, one in values.items():
        macro, interval = one["macro_auroc"], one["macro_auroc_ci95"]
        point = "undefined" if macro is None else Interval(macro, interval, low, 1.0)
        rows.append([name, decimals(macro), interval_text(interval), point, f"{one['studies']:,}"])
    note = "The test studies that have an image and a text, with what the model was shown of them."
    if not content["trained_with_dropout"]:
        note += (
            " It was trained without modality dropout (--drop-image, --drop-text), so a modality alone is not what it "
            "has learned from."
        )
    return Modalities(note, Table(columns, rows))
