"""The report's table of zero-shot segmentation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recipes.medmoe.report.run import Run
from recipes.shared.report.formats import decimals, interval_text
from recipes.shared.report.tables import Cell, Column, Interval, Table

COLUMNS = (
    Column("Finding", "text"),
    Column("Dice"),
    Column("95% CI"),
    Column("Dice", "axis"),
    Column("IoU"),
    Column("95% CI"),
    Column("At random"),
    Column("Whole image"),
    Column("Regions"),
    Column("Groups"),
)


@dataclass(frozen=True)
class SegmentationSection:
    """Result of the segmentation.

    Attributes:
        table: Scores over all findings, then of each.
        cut: Where maps were cut and what chose that, in words.
        split: The split that was scored.
    """

    table: Table
    cut: str
    split: str


def segmentation_section(run: Run) -> SegmentationSection | None:
    """Returns how well word maps fit the known regions of findings; ``None`` where none were scored.

    Args:
        run: The run.
    """
    scores = run.section("segmentation")
    if not scores:
        return None
    rows = [_row("All findings", scores), *(_row(name, one) for name, one in scores["per_finding"].items())]
    chosen = scores["threshold_by"]
    cut = f"{scores['threshold']:g}, {'given' if chosen == 'given' else f'chosen by {chosen}'}"
    return SegmentationSection(Table(COLUMNS, rows, total=True), cut, str(scores["split"]))


def _row(name: str, one: Mapping[str, Any]) -> list[Cell]:
    dice, interval, random = one["dice"], one["dice_ci95"], one["random_dice"]
    return [
        name,
        decimals(dice),
        interval_text(interval),
        Interval(dice, interval, 0.0, 1.0, reference=random),
        decimals(one["iou"]),
        interval_text(one["iou_ci95"]),
        decimals(random),
        decimals(one["whole_dice"]),
        f"{one['regions']:,}",
        f"{one['groups']:,}",
    ]
