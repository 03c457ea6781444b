"""Models of Table 1 against the floor of their data set: a logistic regression on the pixels, macro and by class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from recipes.medvlmoe.tables.options import PIXELS
from recipes.medvlmoe.tables.rows import Row
from recipes.shared.compare import TestPredictions, compare_predictions, join_seeds
from recipes.shared.report.formats import decimals, signed, signed_interval
from recipes.shared.sweeps.tables import markdown_table

MACRO = "macro mean"
"""Name of the row that is the mean over classes."""
ABOUT = (
    f"The floor is the AUROC of `{PIXELS}`, a logistic regression on images of 28 by 28 pixels. A difference to it is "
    "paired by study; its 95% interval is over patients, for the models as they are trained. *Below* and *above* mean "
    "that the interval leaves zero out, *undecided* that these test patients cannot tell. Intervals are not adjusted "
    "for their number: of forty, two leave zero out by chance."
)


@dataclass(frozen=True)
class FloorRow:
    """A model against the floor, over all classes of a data set or one of them.

    Attributes:
        data_set: Its name.
        model: Its name.
        target: The class, or :data:`MACRO`.
        positives: Test studies of that class, and patients with one; ``None`` for the macro mean.
        value: AUROC, mean over the seeds.
        floor: That of the regression.
        difference: Value less floor.
        interval: Of the difference, over patients.
    """

    data_set: str
    model: str
    target: str
    positives: tuple[int, int] | None
    value: float | None
    floor: float | None
    difference: float | None
    interval: Sequence[float] | None

    @property
    def verdict(self) -> str:
        """``"above"``, ``"below"`` or ``"undecided"``; blank where there is no difference."""
        if self.difference is None:
            return ""
        low, high = self.interval or (-np.inf, np.inf)
        return "below" if high < 0 else "above" if low > 0 else "undecided"


def floor_rows(rows: Sequence[Row], *, bootstrap: int) -> list[FloorRow]:
    """Compares models with the regression on the pixels, where a data set has both.

    Args:
        rows: Of Table 1.
        bootstrap: Resamples of patients.
    """
    floors = {row.data_set: _only(row) for row in rows if row.model == PIXELS}
    compared: list[FloorRow] = []
    for row in rows:
        floor = floors.get(row.data_set)
        if row.model != PIXELS and floor is not None and row.scores is not None and row.scores.predictions:
            compared += _compare(row, list(row.scores.predictions.values()), floor, bootstrap)
    return compared


def mark_below_floor(rows: Sequence[Row], compared: Sequence[FloorRow]) -> list[Row]:
    """Returns the rows, with a note at each model whose macro mean is below the floor.

    Args:
        rows: Of Table 1.
        compared: Of :func:`floor_rows`.
    """
    notes = {(one.data_set, one.model): _note(one) for one in compared if one.target == MACRO and _is_below(one)}
    marked: list[Row] = []
    for row in rows:
        note = notes.get((row.data_set, row.model))
        marked.append(replace(row, notes=[*row.notes, note]) if note else row)
    return marked


def floor_table(compared: Sequence[FloorRow]) -> str:
    """Returns the macro means against the floor, with the classes that lie below theirs, as markdown.

    Args:
        compared: Of :func:`floor_rows`.
    """
    if not compared:
        return f"No cells of a model and of `{PIXELS}` are finished on the same data set."
    below: dict[tuple[str, str], list[str]] = {}
    for one in compared:
        if one.target != MACRO and _is_below(one):
            below.setdefault((one.data_set, one.model), []).append(_class_note(one))
    lines = [
        [one.model, one.data_set, *map(decimals, (one.value, one.floor)), signed(one.difference),
         signed_interval(one.interval), one.verdict, "; ".join(below.get((one.data_set, one.model), ["none"]))]
        for one in compared
        if one.target == MACRO
    ]  # fmt: skip
    titles = ["model", "data set", "AUROC", "floor", "difference", "95% over patients of it", "verdict"]
    return markdown_table([*titles, "classes below their floor"], lines)


def floor_csv_rows(compared: Sequence[FloorRow]) -> list[dict[str, Any]]:
    """Returns one csv row per model, data set and class; see :func:`floor_table`."""
    lines: list[dict[str, Any]] = []
    for one in compared:
        studies, patients = one.positives or (None, None)
        low, high = one.interval or (None, None)
        lines.append(
            {"data_set": one.data_set, "model": one.model, "class": one.target, "positive_studies": studies}
            | {"positive_patients": patients, "auroc": one.value, "floor": one.floor, "difference": one.difference}
            | {"difference_low": low, "difference_high": high, "verdict": one.verdict}
        )
    return lines


def _only(row: Row) -> TestPredictions | None:
    """Returns the predictions of the one regression that a data set has."""
    return next(iter(row.scores.predictions.values()), None) if row.scores else None


def _compare(row: Row, runs: Sequence[TestPredictions], floor: TestPredictions, bootstrap: int) -> list[FloorRow]:
    try:
        joined = join_seeds(runs, Path("row"))
        result = compare_predictions(joined, floor, bootstrap=bootstrap)
    except ValueError:  # other studies: the row's own difference says so
        return []

    def line(target: str, positives: tuple[int, int] | None, values: Mapping[str, Any]) -> FloorRow:
        return FloorRow(
            row.data_set, row.model, target, positives,
            values["first"], values["second"], values["difference"], values["difference_ci95"],
        )  # fmt: skip

    groups = np.asarray(joined.groups, dtype=str)
    lines = [line(MACRO, None, result["macro"])]
    for column, name in zip(joined.labels.T, joined.classes, strict=True):
        positive = column == 1
        lines.append(line(name, (int(positive.sum()), len(set(groups[positive]))), result["per_class"][name]))
    return lines


def _is_below(one: FloorRow) -> bool:
    return one.difference is not None and one.difference < 0


def _note(one: FloorRow) -> str:
    how = "beyond chance" if one.verdict == "below" else "undecided on these patients"
    return f"below the floor of its pixels, {decimals(one.floor)}: {how}"


def _class_note(one: FloorRow) -> str:
    studies, patients = one.positives or (0, 0)
    of = f"{patients} patient" if patients == 1 else f"{patients} patients"
    how = "beyond chance" if one.verdict == "below" else "undecided"
    return f"{one.target} {decimals(one.value)} (floor {decimals(one.floor)}, {studies} positives of {of}: {how})"
