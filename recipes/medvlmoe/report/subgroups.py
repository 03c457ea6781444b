"""The report's view of subgroups of the test split, such as sex, age and view."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recipes.medvlmoe.report.run import Run
from recipes.shared.report.formats import decimals, interval_text, join_once
from recipes.shared.report.tables import Cell, Column, Interval, Table


@dataclass(frozen=True)
class Subgroups:
    """The subgroups of one attribute.

    Attributes:
        title: The attribute.
        note: Over which classes the means are, and which subgroups were too small.
        table: One row per subgroup.
    """

    title: str
    note: str
    table: Table


def subgroup_sections(run: Run) -> list[Subgroups]:
    """Returns one table per attribute with a subgroup that was scored; none for data that name no attributes.

    Args:
        run: The run.
    """
    content: Mapping[str, Any] = run.metrics.get("subgroups") or {}
    return [_section(name, one, len(run.classes)) for name, one in content.items() if one["values"]]


def _section(name: str, content: Mapping[str, Any], num_classes: int) -> Subgroups:
    values = content["values"]
    lows = [one["macro_auroc_ci95"][0] for one in values.values() if one["macro_auroc_ci95"]]
    low = min([0.4, *lows])
    columns = [
        Column(name, "text"), Column("Macro AUROC"), Column("95% CI"),
        Column("Macro AUROC", "axis", (f"{low:.1f}", "1.0")), Column("Studies"), Column("Groups"),
    ]  # fmt: skip
    rows = [_row(value, one, low) for value, one in values.items()]
    return Subgroups(name, _note(content, num_classes), Table(columns, rows))


def _row(value: str, one: Mapping[str, Any], low: float) -> Sequence[Cell]:
    macro, interval = one["macro_auroc"], one["macro_auroc_ci95"]
    point = "undefined" if macro is None else Interval(macro, interval, low, 1.0)
    return [value, decimals(macro), interval_text(interval), point, f"{one['studies']:,}", f"{one['groups']:,}"]


def _note(content: Mapping[str, Any], num_classes: int) -> str:
    common, small = content["classes"], content["too_small"]
    note = f"Means over the {len(common)} of {num_classes} classes that are defined in every row"
    if 0 < len(common) < num_classes:
        note += f": {join_once(common)}"
    if small:
        note += ". Too small to score: " + ", ".join(f"{value} ({count:,})" for value, count in small.items())
    return f"{note}."
