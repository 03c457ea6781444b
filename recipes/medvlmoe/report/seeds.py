"""One page for all seeds of a run: their scores, the mean with its t-interval, and their curves beside each other."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.medvlmoe.report.page import TEMPLATES
from recipes.medvlmoe.report.run import Run, read_run
from recipes.shared.report.charts import Chart, Line, line_chart
from recipes.shared.report.facts import PHANTOM_NOTE, RESEARCH_NOTE, Figure, facts, header, is_phantom
from recipes.shared.report.files import check_section, content_of, read_object
from recipes.shared.report.formats import decimals, interval_text
from recipes.shared.report.pages import render
from recipes.shared.report.tables import Column, Table
from recipes.shared.report.training import DASHES

MOST_LINES = 12
"""Seeds whose curves are drawn: as many as colours and dashes tell apart."""
CURVES = (
    ("Validation macro AUROC", "val_macro_auroc"),
    ("Validation loss", "val_loss"),
    ("Training loss", "train_loss"),
)


def write_seeds_report(run_dir: Path) -> Path:
    """Writes ``report.html`` into the folder of a run of several seeds; it links to the reports of the seeds.

    Args:
        run_dir: Folder with ``metrics.json``, which names the runs, and the folders of the seeds.

    Returns:
        The report's path.

    Raises:
        ValueError: Naming the file that is missing or cannot be used.
    """
    run_dir = Path(run_dir)
    path = run_dir / "metrics.json"
    summary = read_object(path, ("runs", "test"))
    check_section(path, summary, "test", ("n", "seeds", "macro_auroc", "per_class"))
    with content_of(path):
        runs = {str(name): read_run(run_dir / str(name)) for name in summary["runs"]}
        first, test = next(iter(runs.values())), summary["test"]
        name = run_dir.resolve().name
        about = {key: value for key, value in first.metrics["run"].items() if key not in ("name", "seed", "notes")}
        content = {
            "title": f"{name}: MedVLMoE report of {test['n']} seeds",
            "header": header(name, f"MedVLMoE, {test['n']} seeds", about, _headline(test), _notes(about, test)),
            "scores": class_table(test),
            "runs": _run_table(runs, test),
            "calibration": _calibration_table(runs),
            "links": [(label, f"{label}/report.html") for label in runs],
            "facts": facts(
                about | {"seeds": test["seeds"]},
                first.config,
                time=("run time, all seeds", sum(run.metrics.get("seconds") or 0.0 for run in runs.values())),
                peak_memory_bytes=max(run.metrics.get("peak_memory_bytes") or 0 for run in runs.values()),
            ),
            "training": _charts(runs),
        }
    target = run_dir / "report.html"
    target.write_text(render(TEMPLATES, template="seeds.html.j2", **content), encoding="utf-8")
    return target


def _headline(test: Mapping[str, Any]) -> list[Figure]:
    macro = test["macro_auroc"]
    interval = f"95% t-interval {interval_text(macro['ci95'])}" if macro["ci95"] else "no interval"
    known = [value for value in macro["values"] if value is not None]
    spread = f"{decimals(min(known))} to {decimals(max(known))}" if known else "undefined"
    return [
        Figure("Mean test macro AUROC", decimals(macro["mean"]), interval, True),
        Figure("Lowest to highest", spread, f"{macro['n']} of {test['n']} seeds defined"),
    ]


def _notes(about: Mapping[str, Any], test: Mapping[str, Any]) -> list[str]:
    notes = [PHANTOM_NOTE] if is_phantom(about) else []
    notes.append(
        "The t-interval is about the spread between training seeds, on the same test patients; the intervals of the "
        "seeds' own reports are about the choice of patients, for one seed each. Neither covers the other."
    )
    undefined = [name for name, one in test["per_class"].items() if one["n"] < test["n"]]
    if undefined:
        notes.append(f"No AUROC in every seed: {', '.join(undefined)}. Means are over the seeds that have one.")
    return [*notes, RESEARCH_NOTE]


def class_table(test: Mapping[str, Any]) -> Table:
    """Returns the AUROC of each class: the mean over the seeds, and that of each.

    Args:
        test: Of `aggregate_seeds`.
    """
    columns = [Column("Class", "text"), Column("Mean AUROC"), Column("95% t-interval")]
    columns += [Column(f"seed {seed}") for seed in test["seeds"]]
    rows = [("Macro mean", test["macro_auroc"]), *test["per_class"].items()]
    for name, one in (test.get("class_sets") or {}).items():
        rows.append((f"Mean of the {len(one['classes'])} {name} classes", one["macro_auroc"]))
    cells = [
        [name, decimals(one["mean"]), interval_text(one["ci95"]), *map(decimals, one["values"])] for name, one in rows
    ]
    return Table(columns, cells, total=True)


def _run_table(runs: Mapping[str, Run], test: Mapping[str, Any]) -> Table:
    columns = [
        Column("Run", "text"),
        Column("Test macro AUROC"),
        Column("95% CI over patients"),
        Column("Validation macro AUROC"),
        Column("Best epoch"),
        Column("Epochs"),
    ]
    rows = []
    for name, run in runs.items():
        training, val = run.training, run.metrics.get("val") or {}
        scores, best = run.metrics["test"], training.get("best_epoch")
        rows.append(
            [
                name,
                decimals(scores["macro_auroc"]),
                interval_text(scores.get("macro_auroc_ci95")),
                decimals(val.get("macro_auroc")),
                "" if best is None else str(best),
                str(training.get("epochs", len(run.history))),
            ]
        )
    return Table(columns, rows)


def _calibration_table(runs: Mapping[str, Run]) -> Table | None:
    """Returns how far each seed's probabilities are from what happened, and their mean; ``None`` if one has none."""
    each = {name: run.metrics.get("calibration") for name, run in runs.items()}
    if not all(each.values()):
        return None
    columns = [
        Column("Run", "text"), Column("Temperature"), Column("NLL"), Column("Brier score"), Column("ECE"),
        Column("Floor of ECE"),
    ]  # fmt: skip
    rows = [[name, _range(content["temperature"].values()), *_scores([content])] for name, content in each.items()]
    return Table(columns, [["Mean", "", *_scores(list(each.values()))], *rows], total=True)


def _scores(contents: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the mean scores of the test split before and after calibration, and the floor."""

    def mean(kind: str, metric: str) -> float | None:
        values = [content[kind][metric] for content in contents]
        return None if any(value is None for value in values) else sum(values) / len(values)

    pairs = [
        f"{decimals(mean('uncalibrated', metric))} → {decimals(mean('calibrated', metric))}"
        for metric in ("nll", "brier", "ece")
    ]
    return [*pairs, decimals(mean("calibrated", "ece_floor"))]


def _range(values: Iterable[float]) -> str:
    low, high = min(values := list(values)), max(values)
    return f"{low:.2f}" if low == high else f"{low:.2f} to {high:.2f}"


def _charts(runs: Mapping[str, Run]) -> Sequence[Chart]:
    """Draws what changed over the epochs, one line per seed."""
    charts = []
    for title, field in CURVES:
        lines = [
            Line(
                name,
                [record["epoch"] for record in run.history],
                [record.get(field) for record in run.history],
                place % 4,
                DASHES[place // 4],
            )
            for place, (name, run) in enumerate(list(runs.items())[:MOST_LINES])
        ]
        if any(not line.is_empty() for line in lines):
            charts.append(line_chart(title, lines, x_label="epoch"))
    return charts
