"""Writes the report of a finished run: one HTML file made of what lies in the run's folder, nothing else."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipes.medvlmoe.report.experts import expert_section
from recipes.medvlmoe.report.run import Run, read_run
from recipes.medvlmoe.report.scores import roc_section, score_section
from recipes.medvlmoe.report.studies import study_section
from recipes.medvlmoe.report.training import training_section
from recipes.shared.report.html import Markup, page, section, tag

FEW_POSITIVES = 10
"""Below this many positives (or negatives) a class' AUROC is called unsure."""


def write_report(run_dir: Path) -> Path:
    """Writes ``report.html`` into a run's folder.

    The file holds its own style, charts and images and loads nothing from outside.

    Args:
        run_dir: Folder with ``config.json``, ``metrics.json``, ``history.jsonl``, ``predictions.csv`` and,
            optionally, ``examples.npz``.

    Returns:
        Where the report lies.

    Raises:
        ValueError: Naming the file that is missing or cannot be used.
    """
    run_dir = Path(run_dir)
    run = read_run(run_dir)
    name = str(run.metrics["run"].get("name") or run_dir.resolve().name)
    body = [
        _header(run, name),
        training_section(run),
        score_section(run),
        roc_section(run),
        expert_section(run),
        study_section(run),
        _facts(run),
    ]
    target = run_dir / "report.html"
    target.write_text(page(f"{name}: MedVLMoE report", body), encoding="utf-8")
    return target


def _header(run: Run, name: str) -> Markup:
    about, test = run.metrics["run"], run.metrics["test"]
    parts = [
        f"preset {about['preset']}" if about.get("preset") else None,
        f"data: {_data_name(about)}",
        str(about["task"]) if about.get("task") else None,
        f"seed {about['seed']}" if about.get("seed") is not None else None,
    ]
    lead = tag("p", "MedVLMoE · ", " · ".join(part for part in parts if part), class_="lead")
    return tag(
        "header",
        tag("h1", name),
        lead,
        tag("dl", *[_figure(*entry) for entry in _headline(run)], class_="headline"),
        tag("ul", *[tag("li", note) for note in _notes(about, test, run)], class_="notes"),
    )


def _figure(title: str, value: str, detail: str, main: bool = False) -> Markup:
    small = tag("small", detail) if detail else ""
    return tag("div", tag("dt", title), tag("dd", value, small), class_="main" if main else None)


def _headline(run: Run) -> list[tuple[Any, ...]]:
    """Title, value and detail of the figures at the top."""
    test, training = run.metrics["test"], run.metrics.get("training") or {}
    macro, interval = test["macro_auroc"], test.get("macro_auroc_ci95")
    detail = f"95% CI {interval[0]:.3f} to {interval[1]:.3f}" if interval else "no interval"
    entries: list[tuple[Any, ...]] = [
        ("Test macro AUROC", "undefined", "no class has both outcomes", True)
        if macro is None
        else ("Test macro AUROC", f"{macro:.3f}", detail, True)
    ]
    if test.get("accuracy") is not None:
        entries.append(("Test accuracy", f"{test['accuracy']:.3f}", "most probable class"))
    val = run.metrics.get("val") or {}
    if val.get("macro_auroc") is not None:
        entries.append(("Validation macro AUROC", f"{val['macro_auroc']:.3f}", f"{val['studies']:,} studies"))
    entries.append(("Test studies", f"{test['studies']:,}", f"{test['groups']:,} groups"))
    defined = len(run.classes) - len(test["undefined_classes"])
    entries.append(("Classes", str(len(run.classes)), f"{defined} with both outcomes"))
    epochs = training.get("epochs", len(run.history))
    stopped = "stopped early" if training.get("stopped_early") else "ran to the end"
    entries.append(("Epochs", str(epochs), stopped))
    return entries


def _notes(about: Mapping[str, Any], test: Mapping[str, Any], run: Run) -> list[str]:
    """What a reader must know before quoting a figure."""
    notes = [str(note) for note in about.get("notes") or ()]
    if "phantom" in _data_name(about).lower():
        notes.insert(
            0,
            "Phantom data: images and texts are synthetic. The figures show that the code learns, and say "
            "nothing about patients.",
        )
    undefined = test["undefined_classes"]
    if undefined:
        notes.append(
            f"No AUROC for {', '.join(undefined)}: the test split lacks positives or negatives. The macro "
            "mean leaves them out."
        )
    few = [
        name
        for name in run.classes
        if 0 < min(test["per_class"][name]["positives"], test["per_class"][name]["negatives"]) < FEW_POSITIVES
    ]
    if few:
        notes.append(f"Fewer than {FEW_POSITIVES} positives or negatives: {', '.join(few)}. Their AUROCs are unsure.")
    draws = test["bootstrap"]
    if draws.get("samples"):
        skipped = draws.get("skipped", 0)
        missing = f" In {skipped:,} cases a class was undefined in a resample and left out." if skipped else ""
        notes.append(
            f"Intervals come from {draws['samples']:,} resamples of the test split's groups (patients, where the "
            f"data name them). They do not cover the spread between training seeds: this is one run.{missing}"
        )
    training = run.metrics.get("training") or {}
    last = run.history[-1]["epoch"]
    if len(run.history) > 1 and training.get("best_epoch") == last and not training.get("stopped_early"):
        notes.append("The best epoch is the last one: longer training might score higher.")
    notes.append("For research only; not a medical device.")
    return notes


def _data_name(about: Mapping[str, Any]) -> str:
    data = about.get("data", "unnamed")
    return str(data.get("name", data)) if isinstance(data, Mapping) else str(data)


def _facts(run: Run) -> Markup:
    about, metrics = run.metrics["run"], run.metrics
    rows = [(key, _plain(key, value)) for key, value in about.items() if key not in ("classes", "name", "notes")]
    if metrics.get("seconds") is not None:
        rows.append(("run time", _duration(metrics["seconds"])))
    if metrics.get("peak_memory_bytes"):
        rows.append(("peak memory", f"{metrics['peak_memory_bytes'] / 2**30:.2f} GiB"))
    body = [tag("tr", tag("th", key.replace("_", " ")), tag("td", value)) for key, value in rows]
    config = tag("pre", json.dumps(run.config, indent=2, ensure_ascii=False))
    return section(
        "How it was made",
        tag("table", tag("tbody", *body), class_="facts"),
        tag("details", tag("summary", "Full configuration"), config),
    )


def _plain(key: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{inner} {_plain(key, content)}" for inner, content in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(key, content) for content in value)
    if key == "parameters" and isinstance(value, int):
        return f"{value / 1e6:,.2f} M" if value >= 1e5 else f"{value:,}"
    return "none" if value is None else str(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
