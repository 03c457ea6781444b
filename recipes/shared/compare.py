"""Two evaluated runs on the same test studies: differences of their AUROCs, with tests over patients and over seeds."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from recipes.shared.report.formats import decimals, interval_text, p_text, signed
from recipes.shared.scores.metrics import auroc
from recipes.shared.scores.paired import Difference, compare_aurocs, holm
from recipes.shared.scores.seeds import t_interval

FILE = "predictions.csv"


class TestPredictions(NamedTuple):
    """The test split of a run's ``predictions.csv``, sorted by study.

    Attributes:
        run: The run's folder.
        seeds: Names of its seeds' folders; one that is empty for a single run.
        ids: ``N`` studies.
        groups: The patient of each.
        classes: Names of the ``C`` classes.
        labels: Shape ``(N, C)``, NaN where unknown.
        probs: Shape ``(S, N, C)``, one per seed.
    """

    run: Path
    seeds: tuple[str, ...]
    ids: tuple[str, ...]
    groups: tuple[str, ...]
    classes: tuple[str, ...]
    labels: NDArray[np.float64]
    probs: NDArray[np.float64]


def compare_runs(first: Path, second: Path, *, bootstrap: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Compares the test predictions of two runs, of one seed or several each.

    Studies are aligned by id. How the difference varies over patients (intervals and p-values of ``macro`` and
    ``per_class``, for the models as they are trained) and over training seeds (``seeds``, for the test studies as they
    are) are two answers; neither includes the other.

    Args:
        first: Folder of an evaluated run, or of one run per seed.
        second: The other.
        bootstrap: Resamples of patients.
        seed: Seed of the resampling.

    Returns:
        ``runs``, ``studies``, ``patients``, ``bootstrap``; ``macro`` and ``per_class``: AUROC ``first`` and ``second``,
        ``difference``, ``difference_ci95``, ``p``, ``method`` (``"delong"`` or ``"bootstrap"``), and for classes
        ``p_holm``, adjusted over the table's classes; ``seeds`` (``None`` unless both runs have several): ``first`` and
        ``second`` (macro AUROC by seed), ``paired`` (whether their seeds are the same), ``difference`` with its
        t-interval ``difference_ci95``, and ``p``.

    Raises:
        ValueError: If a run has no predictions, or the two differ in studies, patients, classes or labels; the message
            names the files and some of the studies.
    """
    return compare_predictions(
        read_test_predictions(first), read_test_predictions(second), bootstrap=bootstrap, seed=seed
    )


def compare_predictions(
    a: TestPredictions, b: TestPredictions, *, bootstrap: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Compares predictions that are at hand; see :func:`compare_runs`.

    Args:
        a: The first run's.
        b: The second's.
        bootstrap: Resamples of patients.
        seed: Seed of the resampling.

    Raises:
        ValueError: As for :func:`compare_runs`.
    """
    b = _aligned(a, b)
    macro, per_class = compare_aurocs(a.probs, b.probs, a.labels, a.groups, a.classes, bootstrap=bootstrap, seed=seed)
    aurocs = [_aurocs(run) for run in (a, b)]
    adjusted = holm([per_class[name].p for name in a.classes])
    by_seed = [_macro(values) for values in aurocs]
    return {
        "runs": [str(a.run), str(b.run)],
        "studies": len(a.ids),
        "patients": len(set(a.groups)),
        "bootstrap": {"samples": bootstrap, "seed": seed},
        "macro": _row([values.mean() for values in by_seed], macro),
        "per_class": {
            name: _row([values[:, c].mean() for values in aurocs], per_class[name]) | {"p_holm": adjusted[c]}
            for c, name in enumerate(a.classes)
        },
        "seeds": _over_seeds(a.seeds, b.seeds, *by_seed),
    }


def read_test_predictions(run: Path) -> TestPredictions:
    """Reads the test predictions of a run, or of the seeds of one.

    Args:
        run: Folder that holds ``predictions.csv``, or ``seed-N`` folders that do.

    Raises:
        ValueError: If there is none, a column is missing, a study occurs twice, or seeds have different studies.
    """
    folders = sorted(run.glob("seed-*"), key=lambda path: path.name)
    return join_seeds([_read(folder) for folder in folders], run) if folders else _read(run)


def join_seeds(runs: Sequence[TestPredictions], name: Path) -> TestPredictions:
    """Joins the predictions of runs that differ in their seed alone.

    Args:
        runs: Of one seed each, at least one.
        name: What to call them together; a run's own folder is the name of its seed.

    Raises:
        ValueError: If they are of different studies.
    """
    same = [runs[0], *(_aligned(runs[0], other) for other in runs[1:])]
    names = tuple(one.run.name for one in runs)
    return runs[0]._replace(run=name, seeds=names, probs=np.concatenate([one.probs for one in same]))


def comparison_table(result: dict[str, Any]) -> str:
    """Returns what :func:`compare_runs` computed as a markdown table with a line on the seeds.

    Args:
        result: The comparison.
    """
    first, second = result["runs"]
    lines = [
        f"{result['studies']:,} test studies of {result['patients']:,} patients; difference = {first} - {second}.",
        "",
        "| class | first | second | difference | 95% interval | p | p (Holm) | test |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in [("macro mean", result["macro"]), *result["per_class"].items()]:
        cells = (
            name.replace("|", "\\|"), decimals(row["first"]), decimals(row["second"]), signed(row["difference"]),
            interval_text(row["difference_ci95"]), p_text(row["p"]), p_text(row["p_holm"]) if "p_holm" in row else "",
            row["method"],
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Intervals and p-values are over patients, for the models as they are trained."]
    seeds = result["seeds"]
    if seeds is None:
        lines.append("Training seeds: fewer than two of a run, so nothing is known of their spread.")
    else:
        kind = "paired by seed" if seeds["paired"] else "seeds differ, so unpaired (Welch)"
        lines.append(
            f"Over training seeds ({kind}): macro AUROC differs by {signed(seeds['difference'])} "
            f"(95% t-interval {interval_text(seeds['difference_ci95'])}, p {p_text(seeds['p'])})."
        )
    return "\n".join(lines)


def _read(run: Path) -> TestPredictions:
    path = run / FILE
    if not path.is_file():
        raise ValueError(f"{path} does not exist: evaluate the run first (python -m recipes.medvlmoe evaluate {run}).")
    try:
        table = pd.read_csv(path, converters={"id": str, "group": str, "split": str})
        table = table[table["split"] == "test"].sort_values("id")
        classes = tuple(name.removeprefix("prob:") for name in table if name.startswith("prob:"))
        labels, probs = (
            table[[f"{kind}:{name}" for name in classes]].to_numpy(np.float64) for kind in ("label", "prob")
        )
        ids, groups = tuple(table["id"]), tuple(table["group"])
    except KeyError as error:
        raise ValueError(f"{path}: a column is missing: {error.args[0]}. Evaluate the run again.") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path}: expected a table of predictions ({error}). Evaluate the run again.") from error
    if not ids or not classes:
        raise ValueError(f"{path}: holds no test study or no class. Evaluate the run again.")
    twice = [name for name, count in Counter(ids).items() if count > 1]
    if twice:
        raise ValueError(f"{path}: {_some(twice)} occurs twice. Evaluate the run again.")
    return TestPredictions(run, ("",), ids, groups, classes, labels, probs[None])


def _aligned(a: TestPredictions, b: TestPredictions) -> TestPredictions:
    """Returns ``b`` with the classes in the order of ``a``, once it is known to be of the same studies."""
    where = f"{a.run / FILE} and {b.run / FILE}"
    if a.ids != b.ids:
        only = [sorted(set(x.ids) - set(y.ids)) for x, y in ((a, b), (b, a))]
        raise ValueError(
            f"{where} must hold the same test studies, but {len(only[0])} are in the first alone ({_some(only[0])}) "
            f"and {len(only[1])} in the second alone ({_some(only[1])}). Evaluate both on one data set."
        )
    if set(a.classes) != set(b.classes):
        raise ValueError(f"{where} must be of the same classes, got {list(a.classes)} and {list(b.classes)}.")
    order = [b.classes.index(name) for name in a.classes]
    b = b._replace(classes=a.classes, labels=b.labels[:, order], probs=b.probs[:, :, order])
    for what, same in (
        ("patients", np.array([x == y for x, y in zip(a.groups, b.groups, strict=True)])),
        ("labels", ((a.labels == b.labels) | (np.isnan(a.labels) & np.isnan(b.labels))).all(axis=1)),
    ):
        if not same.all():
            differing = [a.ids[i] for i in np.flatnonzero(~same)]
            raise ValueError(
                f"{where} must have the same {what}, but those of {len(differing)} studies differ: "
                f"{_some(differing)}. Evaluate both on one edition of the data."
            )
    return b


def _aurocs(run: TestPredictions) -> NDArray[np.float64]:
    """Computes the AUROC of each seed and class, shape ``(S, C)``, NaN where undefined."""
    values = [[auroc(probs[:, c], run.labels[:, c]) for c in range(len(run.classes))] for probs in run.probs]
    return np.array(values, np.float64)


def _macro(aurocs: NDArray[np.float64]) -> NDArray[np.float64]:
    defined = ~np.isnan(aurocs).any(axis=0)
    return aurocs[:, defined].mean(axis=1) if defined.any() else np.full(len(aurocs), np.nan)


def _row(aurocs: Sequence[np.floating], difference: Difference) -> dict[str, Any]:
    first, second = (None if np.isnan(value) else float(value) for value in aurocs)
    return {
        "first": first,
        "second": second,
        "difference": difference.value,
        "difference_ci95": difference.interval,
        "p": difference.p,
        "method": difference.method,
    }


def _over_seeds(
    names_a: Sequence[str], names_b: Sequence[str], a: NDArray[np.float64], b: NDArray[np.float64]
) -> dict[str, Any] | None:
    if min(len(a), len(b)) < 2 or np.isnan([*a, *b]).any():
        return None
    paired = set(names_a) == set(names_b)
    if paired:
        difference, *interval = t_interval(list(a - b))
        # Differences that are all alike have no spread; a t-test would divide by it.
        spread = float(np.ptp(a - b))
        p = float(stats.ttest_rel(a, b).pvalue) if spread > 0 else (1.0 if abs(difference) < 1e-12 else 0.0)
    else:
        test = stats.ttest_ind(a, b, equal_var=False)
        difference, p = float(a.mean() - b.mean()), float(test.pvalue)
        low, high = test.confidence_interval(0.95)
        interval = [float(low), float(high)]
    return {
        "first": a.tolist(),
        "second": b.tolist(),
        "paired": paired,
        "difference": difference,
        "difference_ci95": interval,
        "p": p,
    }


def _some(names: Sequence[str]) -> str:
    if not names:
        return "none"
    return ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "")
