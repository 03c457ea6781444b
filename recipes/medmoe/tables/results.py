"""What the finished cells of a table returned, and why others did not."""

from collections.abc import Mapping, Sequence
from typing import Any

from recipes.medmoe.tables.sweep import Swept
from recipes.shared.sweeps.cells import Record


def cell_problem(swept: Swept, column: str, model: str, seed: int) -> str:
    """Says why a cell has no result; empty if it has one.

    Args:
        swept: The cells.
        column: Of the cell.
        model: Its row.
        seed: Its seed.
    """
    cell = swept.evaluated.cells.get((column, model, seed))
    if cell is None:
        return "no such cell"
    record = swept.evaluated.records.get(cell.name)
    if record is None:
        training = swept.pretrained.records.get(str(cell.settings.get("pretrained")))
        if training is not None and training.state == "failed":
            return f"pretraining failed: {training.error}"
        return "not run"
    return f"failed: {record.error}" if record.state == "failed" else ""


def results_of(swept: Swept, column: str, model: str) -> dict[int, Mapping[str, Any]]:
    """Returns what the finished cells of a row returned, by seed."""
    records: dict[int, Record] = swept.evaluated.records_of(column, model)
    return {seed: record.result for seed, record in records.items() if record.state == "finished"}


def near_duplicates_of(results: Sequence[Mapping[str, Any]]) -> str:
    """Returns in words what the images of a set share with the pretraining images.

    Args:
        results: Of the cells of one set.
    """
    words = [near["in_words"] for one in results if (near := one["near_duplicates"]) is not None]
    return "; ".join(dict.fromkeys(words)) or "not looked for"
