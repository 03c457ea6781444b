"""The scores of a row of a table: cells that differ in their seed alone, and their difference to another row's.

How far a score varies over training seeds and over patients are two figures, and stay two: a standard deviation or
t-interval over seeds, and a bootstrap interval over patients for the models as they are trained.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recipes.shared.compare import TestPredictions, compare_predictions, join_seeds, read_test_predictions
from recipes.shared.scores.bootstrap import bootstrap_auroc, percentile_interval, row_means
from recipes.shared.scores.paired import holm
from recipes.shared.sweeps.cells import Record

METRIC = "macro_auroc"
"""Field of a cell's result that tables show, with its interval in ``macro_auroc_ci95``."""


class SeedScore(NamedTuple):
    """A cell's score.

    Attributes:
        seed: Of its training.
        value: ``None`` where it is undefined, or the cell is not finished.
        interval: Over patients.
        problem: Why there is no score; empty if there is one.
    """

    seed: int
    value: float | None
    interval: Sequence[float] | None
    problem: str


@dataclass(frozen=True)
class RowScores:
    """The cells of a row.

    Attributes:
        seeds: Each cell's score.
        mean: Over the seeds that have one.
        sd: Standard deviation over the seeds, from two on.
        interval: Of the mean over patients, for the models as they are trained.
        results: What the finished cells returned.
        predictions: Of the test split, by seed.
    """

    seeds: tuple[SeedScore, ...]
    mean: float | None
    sd: float | None
    interval: Sequence[float] | None
    results: tuple[Mapping[str, Any], ...]
    predictions: Mapping[int, TestPredictions]

    @property
    def problems(self) -> list[str]:
        """What is missing, with the seeds that it concerns."""
        seeds: dict[str, list[str]] = {}
        for one in self.seeds:
            if one.problem:
                seeds.setdefault(one.problem, []).append(str(one.seed))
        return [f"seed {', '.join(numbers)}: {problem}" for problem, numbers in seeds.items()]


@dataclass(frozen=True)
class RowDifference:
    """A row's macro AUROC less that of the row it is compared with, over the seeds that both have.

    Attributes:
        value: Of the means.
        interval: Over patients.
        p: Of no difference, over patients; ``p_holm`` is adjusted over the table.
        p_holm: See ``p``.
        over_seeds: Its t-interval over seeds, paired by seed; ``None`` below two.
        seeds: Difference, interval and p-value over patients of each seed.
        problem: Why there is none; empty if there is one.
    """

    value: float | None = None
    interval: Sequence[float] | None = None
    p: float | None = None
    p_holm: float | None = None
    over_seeds: Sequence[float] | None = None
    seeds: Mapping[int, tuple[float | None, Sequence[float] | None, float | None]] | None = None
    problem: str = ""


def row_scores(runs: Mapping[int, Path], records: Mapping[int, Record], *, bootstrap: int) -> RowScores:
    """Reads the scores of a row.

    Args:
        runs: The run's folder, by seed.
        records: What there is of their records, by seed.
        bootstrap: Resamples of patients for the interval of the mean.

    Raises:
        ValueError: If the predictions of a finished cell cannot be read, or differ in their studies.
    """
    seeds = tuple(_seed_score(seed, records.get(seed)) for seed in runs)
    finished = [seed for seed in runs if seed in records and records[seed].state == "finished"]
    predictions = {seed: read_test_predictions(runs[seed]) for seed in finished}
    values = [one.value for one in seeds if one.value is not None]
    return RowScores(
        seeds,
        float(np.mean(values)) if values else None,
        float(np.std(values, ddof=1)) if len(values) > 1 else None,
        _interval(list(predictions.values()), bootstrap) if values else None,
        tuple(records[seed].result for seed in finished),
        predictions,
    )


def compare_rows(row: RowScores, reference: RowScores, *, bootstrap: int) -> RowDifference:
    """Compares two rows of one data set; see :func:`~recipes.shared.compare.compare_runs`.

    Args:
        row: The row.
        reference: What it is compared with.
        bootstrap: Resamples of patients.
    """
    common = [seed for seed in row.predictions if seed in reference.predictions]
    if not common:
        return RowDifference(problem="no seed is finished in both rows")
    try:
        seeds = {
            seed: _macro(compare_predictions(row.predictions[seed], reference.predictions[seed], bootstrap=bootstrap))
            for seed in common
        }
        joined = (join_seeds([one.predictions[seed] for seed in common], Path("row")) for one in (row, reference))
        both = compare_predictions(*joined, bootstrap=bootstrap)
    except ValueError as error:  # other studies or labels: no paired difference, whatever else the table shows
        return RowDifference(problem=str(error))
    value, interval, p = _macro(both)
    over_seeds = both["seeds"]["difference_ci95"] if both["seeds"] else None
    return RowDifference(value, interval, p, over_seeds=over_seeds, seeds=seeds)


def adjust(differences: Sequence[RowDifference]) -> list[RowDifference]:
    """Adjusts the p-values of a table by Holm's method.

    Args:
        differences: Of all its rows.
    """
    adjusted = holm([one.p for one in differences])
    return [replace(one, p_holm=p) for one, p in zip(differences, adjusted, strict=True)]


def _seed_score(seed: int, record: Record | None) -> SeedScore:
    if record is None:
        return SeedScore(seed, None, None, "not run")
    if record.state == "failed":
        return SeedScore(seed, None, None, f"failed: {record.error}")
    value = record.result.get(METRIC)
    return SeedScore(seed, value, record.result.get(f"{METRIC}_ci95"), "" if value is not None else "undefined")


def _interval(seeds: Sequence[TestPredictions], bootstrap: int) -> list[float] | None:
    """Computes the bootstrap interval over patients of the mean macro AUROC of some seeds."""
    if not bootstrap:
        return None
    joined = join_seeds(seeds, Path("row"))
    codes = np.unique(np.asarray(joined.groups, dtype=str), return_inverse=True)[1]
    drawn = bootstrap_auroc(
        np.concatenate(list(joined.probs), axis=1),
        np.tile(joined.labels, len(joined.probs)),
        codes,
        samples=bootstrap,
        seed=0,
    )
    by_class = drawn.reshape(bootstrap, len(joined.probs), -1).mean(axis=1)
    return percentile_interval(row_means(by_class), 0.95)


def _macro(comparison: Mapping[str, Any]) -> tuple[float | None, Sequence[float] | None, float | None]:
    macro = comparison["macro"]
    return macro["difference"], macro["difference_ci95"], macro["p"]
