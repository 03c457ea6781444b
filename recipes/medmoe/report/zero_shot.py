"""The report's zero-shot table and its confusion matrices."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recipes.medmoe.report.near_duplicates import near_duplicate_lines
from recipes.medmoe.report.run import ROUTED_BY, Run
from recipes.shared.report.formats import decimals, interval_text
from recipes.shared.report.heat import HeatMap, count_map
from recipes.shared.report.tables import Cell, Column, Interval, Table

COLUMNS = (
    Column("Set", "text"),
    Column("Accuracy"),
    Column("95% CI"),
    Column("accuracy", "axis"),
    Column("Balanced"),
    Column("Chance"),
    Column("Majority"),
    Column("Macro AUROC"),
    Column("95% CI"),
    Column("Studies"),
    Column("Scoring", "text"),
)


@dataclass(frozen=True)
class ZeroShotSection:
    """Zero-shot scores.

    Attributes:
        table: One row per set, after their mean where there are several.
        routed_by: What chooses the expert.
        left_out: Sets that the mean leaves out.
        near_duplicates: What each set shares with the pretraining images, in words.
    """

    table: Table
    routed_by: str
    left_out: list[str]
    near_duplicates: list[str]


@dataclass(frozen=True)
class Confusion:
    """The confusion matrix of a set: its title and the counts."""

    title: str
    map: HeatMap


def zero_shot_section(run: Run) -> ZeroShotSection | None:
    """Returns accuracy against chance and macro AUROC of each set, or ``None`` where zero-shot was not run.

    Args:
        run: The run.
    """
    results = run.section("zero_shot")
    if not results:
        return None
    rows = [_row(name, summary) for name, summary in results["sets"].items()]
    averaged = results.get("mean_over") or []
    has_mean = len(averaged) > 1
    if has_mean:
        mean = {
            key: results.get(key)
            for key in ("accuracy", "balanced_accuracy", "chance", "majority_share", "macro_auroc")
        }
        rows.insert(0, _row(f"Mean of {len(averaged)} sets", mean))
    left_out = [name for name in results["sets"] if name not in averaged] if has_mean else []
    table = Table(COLUMNS, rows, total=has_mean)
    return ZeroShotSection(table, ROUTED_BY[results["route_on"]], left_out, near_duplicate_lines(results["sets"]))


def confusion(name: str, result: Mapping[str, Any]) -> Confusion | None:
    """Returns the confusion matrix of a set, or ``None`` for a set without single labels.

    Args:
        name: The set's.
        result: ``zero_shot/SET.json``.
    """
    if result["confusion"] is None:
        return None
    classes, matrix = result["confusion"]["classes"], result["confusion"]["matrix"]
    title = f"{name}: {sum(map(sum, matrix)):,} {result['split']} studies, scoring {result['scoring']}"
    counts = count_map(list(zip(classes, matrix, strict=True)), columns=classes, corner="true ↓ predicted →")
    return Confusion(title, counts)


def _row(name: str, summary: Mapping[str, Any]) -> list[Cell]:
    accuracy, chance = summary.get("accuracy"), summary.get("chance")
    interval, studies = summary.get("accuracy_ci95"), summary.get("studies")
    return [
        name,
        decimals(accuracy),
        interval_text(interval, ""),
        "" if accuracy is None else Interval(accuracy, interval, 0.0, 1.0, reference=chance),
        decimals(summary.get("balanced_accuracy")),
        decimals(chance),
        decimals(summary.get("majority_share")),
        decimals(summary.get("macro_auroc")),
        interval_text(summary.get("macro_auroc_ci95"), ""),
        "" if studies is None else f"{studies:,}",
        summary.get("scoring", ""),
    ]
