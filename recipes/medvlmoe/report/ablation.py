"""The report's view of the ablations: Table 2, where the folder beside the run's holds one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.shared.report.files import content_of, read_object
from recipes.shared.report.formats import DASH, decimals, interval_text, p_text, signed, signed_interval
from recipes.shared.report.tables import Cell, Column, Interval, Table

FOLDER = "table2"
"""Folder of the table, beside the run's own."""


@dataclass(frozen=True)
class Ablation:
    """The ablations.

    Attributes:
        note: What the figures are.
        table: One row per variant and data set.
    """

    note: str
    table: Table


def ablation_section(run_dir: Path) -> Ablation | None:
    """Returns the summary of Table 2, ``None`` where there is no such table.

    Args:
        run_dir: Folder of the run.

    Raises:
        ValueError: Naming the table's file, if it cannot be used.
    """
    path = run_dir.resolve().parent / FOLDER / "table2.json"
    if not path.is_file():
        return None
    content = read_object(path, ("rows", "size"))
    with content_of(path):
        rows = content["rows"]
        ends = [row[f"difference_{end}"] for row in rows for end in ("low", "high")]
        reach = max([0.01, *(abs(end) for end in ends if end is not None)])
        columns = [
            Column("Variant", "text"), Column("Data set", "text"), Column("Macro AUROC"), Column("Over patients"),
            Column("sd over seeds"), Column("Difference"), Column("Over patients"),
            Column("Difference to the full model", "axis", (f"{-reach:.2f}", f"+{reach:.2f}")), Column("p (Holm)"),
        ]  # fmt: skip
        table = Table(columns, [_row(row, reach) for row in rows])
        seeds = sorted({row["seeds"] for row in rows})
        note = (
            f"From {FOLDER}/table2.md beside this run, preset {content['size']}, {' or '.join(map(str, seeds))} seeds; "
            "these are runs of their own. Differences are paired by study and seed. Intervals are over patients."
        )
    return Ablation(note, table)


def _row(row: Mapping[str, Any], reach: float) -> Sequence[Cell]:
    score, difference = row["macro_auroc"], row["difference"]
    interval, spread = _ends(row, "macro_auroc"), _ends(row, "difference")
    point: Cell = DASH if difference is None else Interval(difference, spread, -reach, reach, 0.0)
    return [
        row["variant"], row["data_set"], row["notes"] if score is None else decimals(score), interval_text(interval),
        decimals(row["sd_over_seeds"]), signed(difference),
        signed_interval(spread), point, p_text(row["p_holm"]),
    ]  # fmt: skip


def _ends(row: Mapping[str, Any], name: str) -> list[float] | None:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return None if low is None or high is None else [low, high]
