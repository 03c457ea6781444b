"""The points of the curve: scores with and without experts, and their difference paired by study and seed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recipes.data.phantom.hard.findings import CONFLICTING, LOCAL, SIGNS
from recipes.medvlmoe.__main__ import parse_train
from recipes.medvlmoe.tables.options import Grid, Model, TableOptions, run_grid
from recipes.medvlmoe.tables.rows import read_rows
from recipes.medvlmoe.tables.table2 import FULL, variations
from recipes.shared.scores.metrics import auroc
from recipes.shared.sweeps.scores import RowScores

DENSE = "no-moe"
KINDS = {"signs": SIGNS, "diseases A to D": LOCAL, "diseases E to H": CONFLICTING}
"""Findings by what they need; see the README of the phantoms."""
DEFAULT_CONTEXTS = 2


def measure_points(
    contexts: Sequence[int],
    seeds: tuple[int, ...],
    folder: Path,
    *,
    train: tuple[str, ...],
    workers: int,
    bootstrap: int,
    collect: bool = False,
) -> list[dict[str, Any]]:
    """Trains what is not finished, and compares.

    Args:
        contexts: Circumstances of each point.
        seeds: One training each.
        folder: Of the sweep.
        train: Options of ``train`` for all cells.
        workers: Cells at a time.
        bootstrap: Resamples of patients.
        collect: Whether to train nothing.

    Returns:
        For each point its ``contexts``, mean ``auroc`` and that of each seed and kind of finding by model, and the
        ``difference`` of the full model less the dense one with its intervals over patients and over seeds.
    """
    # The set of table2 is named as that command names it, so that both share its cells.
    names = {
        count: "phantom-hard" if count == DEFAULT_CONTEXTS else f"phantom-hard-{count}" for count in sorted(contexts)
    }
    entries = tuple(
        name if count == DEFAULT_CONTEXTS else f"{name}=--data phantom-hard --num-contexts {count}"
        for count, name in names.items()
    )
    options = TableOptions(
        out=folder,
        data_sets=entries,
        seeds=seeds,
        workers=workers,
        collect=collect,
        bootstrap=bootstrap,
        train=train,
    )

    def models(base: Any) -> list[Model]:
        return [one.model for one in variations("core", base) if one.model.name in (FULL, DENSE)]

    grid = run_grid(options, models, "tiny", parse_train)
    rows = {(row.data_set, row.model): row for row in read_rows(grid, [FULL, DENSE], DENSE, bootstrap=bootstrap)}
    points: list[dict[str, Any]] = []
    for count, name in names.items():
        full, dense = rows[name, FULL], rows[name, DENSE]
        point: dict[str, Any] = {"contexts": count, "models": {}, "commits": _commits(grid, name)}
        for row in (full, dense):
            if row.scores is not None and row.scores.mean is not None:
                point["models"][row.model] = _scores(row.scores)
        difference = full.difference
        if difference is not None and difference.value is not None:
            point |= {
                "difference": difference.value,
                "over_patients": list(difference.interval or ()) or None,
                "over_seeds": list(difference.over_seeds or ()) or None,
                "by_seed": {str(seed): value for seed, (value, _, _) in (difference.seeds or {}).items()},
            }
        points.append(point)
    return points


def _scores(scores: RowScores) -> dict[str, Any]:
    kinds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for predictions in scores.predictions.values():
        for kind, classes in KINDS.items():
            columns = [predictions.classes.index(name) for name in classes]
            values = [auroc(predictions.probs[0][:, c], predictions.labels[:, c]) for c in columns]
            kinds[kind] += [value for value in values if value is not None]
    return {
        "auroc": scores.mean,
        "seeds": {str(one.seed): one.value for one in scores.seeds},
        "kinds": {kind: float(np.mean(values)) for kind, values in kinds.items() if values},
    }


def _commits(grid: Grid, name: str) -> list[str]:
    own = [cell.name for (data_set, _, _), cell in grid.cells.items() if data_set == name]
    return sorted({grid.records[one].commit for one in own if one in grid.records})
