"""Pages of a run's validation on another data set: one of each run, and one of all seeds."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.medvlmoe.report.calibration import calibration_section, operating_table
from recipes.medvlmoe.report.page import TEMPLATES
from recipes.medvlmoe.report.run import TEST_KEYS, Run, read_predictions
from recipes.medvlmoe.report.scores import precision_recall_charts, roc_charts, score_table
from recipes.medvlmoe.report.seeds import class_table
from recipes.medvlmoe.report.subgroups import subgroup_sections
from recipes.shared.report.facts import RESEARCH_NOTE, Figure, facts, header
from recipes.shared.report.files import check_section, content_of, read_object
from recipes.shared.report.formats import decimals, interval_text
from recipes.shared.report.pages import render


def write_external_report(folder: Path, run: Path) -> Path:
    """Writes ``report.html`` into ``external/NAME`` of a run.

    Args:
        folder: That folder, with ``metrics.json`` and ``predictions.csv``.
        run: Folder of the run.

    Returns:
        The report's path.

    Raises:
        ValueError: Naming the file that is missing or cannot be used.
    """
    path = folder / "metrics.json"
    metrics = read_object(path, ("run", "data", "split", "label_map", "not_mapped", "scores"))
    check_section(path, metrics, "scores", TEST_KEYS)
    check_section(path, metrics, "run", ("classes",))
    config = read_object(run / "config.json")
    labels, probs = read_predictions(folder / "predictions.csv", metrics["run"]["classes"], split=None)
    # The sections of a run's report read the scores of its test split.
    shown = Run(config, metrics | {"test": metrics["scores"]}, [], labels, probs, None)
    with content_of(path):
        scores = metrics["scores"]
        name = f"{metrics['run']['name']} on {metrics['data']}"
        interval = scores.get("macro_auroc_ci95")
        figures = [
            Figure(
                "Macro AUROC",
                decimals(scores["macro_auroc"]),
                f"95% CI {interval_text(interval)}" if interval else "no interval",
                True,
            ),
            Figure("Studies", f"{scores['studies']:,}", f"{scores['groups']:,} groups"),
            Figure("Classes", str(len(shown.classes)), f"{len(metrics['not_mapped'])} not mapped"),
        ]
        content = {
            "title": f"{name}: MedVLMoE, external validation",
            "header": header(name, "MedVLMoE, external validation", _about(metrics), figures, _notes(metrics)),
            "scores": score_table(shown),
            "single_label": None,
            "roc": roc_charts(shown),
            "precision_recall": precision_recall_charts(shown),
            "calibration": calibration_section(shown),
            "operating": operating_table(shown),
            "subgroups": subgroup_sections(shown),
            "facts": facts(_about(metrics), config, time=("run time", None), peak_memory_bytes=None),
        }
    return _write(folder, "external.html.j2", content)


def write_external_seeds_report(folder: Path, seeds: Sequence[Path]) -> Path:
    """Writes ``report.html`` of all seeds, which links to those of the seeds.

    Args:
        folder: ``external/NAME`` of the run of several seeds, with ``metrics.json``.
        seeds: The same folders of the seeds.

    Returns:
        The report's path.

    Raises:
        ValueError: Naming the file that is missing or cannot be used.
    """
    path = folder / "metrics.json"
    metrics = read_object(path, ("runs", "data", "split", "label_map", "not_mapped", "scores"))
    with content_of(path):
        scores = metrics["scores"]
        macro, name = scores["macro_auroc"], f"{folder.resolve().parents[1].name} on {metrics['data']}"
        interval = f"95% t-interval {interval_text(macro['ci95'])}" if macro["ci95"] else "no interval"
        content = {
            "title": f"{name}: MedVLMoE, external validation of {scores['n']} seeds",
            "header": header(
                name,
                f"MedVLMoE, external validation of {scores['n']} seeds",
                _about(metrics),
                [Figure("Mean macro AUROC", decimals(macro["mean"]), interval, True)],
                _notes(metrics),
            ),
            "scores": class_table(scores),
            "links": [
                (label, os.path.relpath(seed / "report.html", folder))
                for label, seed in zip(metrics["runs"], seeds, strict=True)
            ],
            "facts": facts(_about(metrics), {}, time=("run time", None), peak_memory_bytes=None),
        }
    return _write(folder, "external_seeds.html.j2", content)


def _write(folder: Path, template: str, content: Mapping[str, Any]) -> Path:
    target = folder / "report.html"
    target.write_text(render(TEMPLATES, template=template, **content), encoding="utf-8")
    return target


def _about(metrics: Mapping[str, Any]) -> dict[str, Any]:
    run = metrics.get("run") or {}
    pairs = "; ".join(f"{own} = {' | '.join(others)}" for own, others in metrics["label_map"].items())
    about = {
        "data": metrics["data"],
        "split": metrics["split"],
        "classes of the run = of the data": pairs,
        "classes without a counterpart": ", ".join(metrics["not_mapped"]) or "none",
    }
    return about | {key: run[key] for key in ("trained_on", "checkpoint", "seed") if key in run}


def _notes(metrics: Mapping[str, Any]) -> list[str]:
    notes = [
        "Nothing was fitted on these data: weights, temperatures and thresholds are those of the run. Each class is "
        "scored against the rest."
    ]
    return [*notes, *map(str, metrics.get("notes") or ()), RESEARCH_NOTE]
