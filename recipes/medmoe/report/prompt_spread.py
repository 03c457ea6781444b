"""The report's table of how much zero-shot scores owe to their prompts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recipes.medmoe.report.run import Run
from recipes.shared.report.formats import decimals
from recipes.shared.report.tables import Cell, Column, Table

COLUMNS = (
    Column("Set", "text"),
    Column("Score", "text"),
    Column("All prompts"),
    Column("Mean"),
    Column("SD"),
    Column("Lowest"),
    Column("Highest"),
)

SCORES = (("accuracy", "accuracy"), ("balanced accuracy", "balanced_accuracy"), ("macro AUROC", "macro_auroc"))
"""Title and field of each score that is shown."""


@dataclass(frozen=True)
class PromptSpreadSection:
    """Scores of random halves of the prompts.

    Attributes:
        table: By set and score.
        subsets: Number of halves that were scored, in words.
    """

    table: Table
    subsets: str


def prompt_spread_section(run: Run) -> PromptSpreadSection | None:
    """Returns the spread of the zero-shot scores over halves of the prompts; ``None`` where no set has it.

    Args:
        run: The run.
    """
    sets = {
        name: summary
        for name, summary in (run.section("zero_shot").get("sets") or {}).items()
        if summary.get("prompt_spread")
    }
    if not sets:
        return None
    rows = [row for name, summary in sets.items() for row in _rows(name, summary)]
    numbers = sorted({summary["prompt_spread"]["subsets"] for summary in sets.values()})
    return PromptSpreadSection(Table(COLUMNS, rows), " or ".join(map(str, numbers)))


def _rows(name: str, summary: Mapping[str, Any]) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for title, field in SCORES:
        spread = summary["prompt_spread"].get(field)
        if spread:
            values = (summary.get(field), *(spread[key] for key in ("mean", "sd", "min", "max")))
            rows.append(["" if rows else name, title, *map(decimals, values)])
    return rows
