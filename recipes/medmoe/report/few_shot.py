"""The report's table of few-shot classification."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recipes.medmoe.report.near_duplicates import near_duplicate_lines
from recipes.medmoe.report.run import Run
from recipes.shared.report.formats import DASH, decimals
from recipes.shared.report.tables import Cell, Column, Table

SCORES = (("accuracy", "accuracy"), ("balanced accuracy", "balanced_accuracy"), ("macro AUROC", "macro_auroc"))
"""Title and field of each score that is shown."""

METHODS = {"prototypes": "nearest class mean", "linear": "logistic regression", "tip-adapter": "Tip-Adapter"}
"""Names of the classifiers."""


@dataclass(frozen=True)
class FewShotSection:
    """Result of few-shot classification.

    Attributes:
        table: Scores of each set by classifier and labelled images of each class.
        draws: How often the labelled images of each set were drawn, in words.
        near_duplicates: What each set shares with the pretraining images, in words.
    """

    table: Table
    draws: str
    near_duplicates: Sequence[str]


def few_shot_section(run: Run) -> FewShotSection | None:
    """Returns the scores of each set; ``None`` where none was classified from a few images.

    Args:
        run: The run.
    """
    sets = run.section("few_shot")
    if not sets:
        return None
    shots = sorted({row["shots"] for one in sets.values() for row in one["results"]})
    columns = [
        Column("Set", "text"),
        Column("Score", "text"),
        Column("Classifier", "text"),
        Column("Prompts alone"),
        *(Column(f"{number} of each class") for number in shots),
        Column("Chance"),
        Column("Majority"),
        Column("Test studies"),
    ]
    table = Table(columns, [row for name, one in sets.items() for row in _rows(name, one, shots)])
    draws = ", ".join(f"{name}: {len(one['seeds'])} draws" for name, one in sets.items())
    return FewShotSection(table, draws, near_duplicate_lines(sets))


def _rows(name: str, one: Mapping[str, Any], shots: Sequence[int]) -> list[list[Cell]]:
    """Returns a row for each score and classifier; what all of them share stands in the first one."""
    methods = list(dict.fromkeys(row["method"] for row in one["results"]))
    rows: list[list[Cell]] = []
    for title, field in SCORES:
        for place, method in enumerate(methods):
            scores = {row["shots"]: _shown(row[field]) for row in one["results"] if row["method"] == method}
            chance = "" if place else {"macro_auroc": "0.500"}.get(field, decimals(one["chance"]))
            ends = [
                chance,
                decimals(one["majority_share"]) if (field, place) == ("accuracy", 0) else "",
                "" if rows else f"{one['studies']['test']:,}",
            ]
            prompts = "" if place else decimals(one["zero_shot"][field])
            about = ["" if rows else name, "" if place else title, METHODS.get(method, method), prompts]
            rows.append([*about, *(scores.get(number, DASH) for number in shots), *ends])
    return rows


def _shown(summary: Mapping[str, Any]) -> str:
    if summary["mean"] is None:
        return "undefined"
    interval = summary["ci95"]
    ends = "" if interval is None else f" ({decimals(interval[0])} to {decimals(interval[1])})"
    return decimals(summary["mean"]) + ends
