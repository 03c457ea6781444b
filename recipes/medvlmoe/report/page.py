"""Writes the report of a finished run: one HTML file made of what lies in the run's folder, nothing else."""

from pathlib import Path

from recipes.medvlmoe.report.experts import expert_section
from recipes.medvlmoe.report.run import Run, read_run
from recipes.medvlmoe.report.scores import roc_section, score_section
from recipes.medvlmoe.report.studies import study_section
from recipes.medvlmoe.report.training import training_section
from recipes.shared.report.facts import PHANTOM_NOTE, RESEARCH_NOTE, Figure, duration, facts, header, is_phantom
from recipes.shared.report.html import Markup, page

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
        header(name, "MedVLMoE", run.metrics["run"], _headline(run), _notes(run)),
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


def _headline(run: Run) -> list[Figure]:
    """The figures at the top."""
    test, training = run.metrics["test"], run.metrics.get("training") or {}
    macro, interval = test["macro_auroc"], test.get("macro_auroc_ci95")
    detail = f"95% CI {interval[0]:.3f} to {interval[1]:.3f}" if interval else "no interval"
    entries = [
        Figure("Test macro AUROC", "undefined", "no class has both outcomes", True)
        if macro is None
        else Figure("Test macro AUROC", f"{macro:.3f}", detail, True)
    ]
    if test.get("accuracy") is not None:
        entries.append(Figure("Test accuracy", f"{test['accuracy']:.3f}", "most probable class"))
    val = run.metrics.get("val") or {}
    if val.get("macro_auroc") is not None:
        entries.append(Figure("Validation macro AUROC", f"{val['macro_auroc']:.3f}", f"{val['studies']:,} studies"))
    entries.append(Figure("Test studies", f"{test['studies']:,}", f"{test['groups']:,} groups"))
    defined = len(run.classes) - len(test["undefined_classes"])
    entries.append(Figure("Classes", str(len(run.classes)), f"{defined} with both outcomes"))
    epochs = training.get("epochs", len(run.history))
    stopped = "stopped early" if training.get("stopped_early") else "ran to the end"
    entries.append(Figure("Epochs", str(epochs), stopped))
    return entries


def _notes(run: Run) -> list[str]:
    """What a reader must know before quoting a figure."""
    about, test = run.metrics["run"], run.metrics["test"]
    notes = [str(note) for note in about.get("notes") or ()]
    if is_phantom(about):
        notes.insert(0, PHANTOM_NOTE)
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
    notes.append(RESEARCH_NOTE)
    return notes


def _facts(run: Run) -> Markup:
    metrics, more = run.metrics, []
    if metrics.get("seconds") is not None:
        more.append(("run time", duration(metrics["seconds"])))
    if metrics.get("peak_memory_bytes"):
        more.append(("peak memory", f"{metrics['peak_memory_bytes'] / 2**30:.2f} GiB"))
    return facts(metrics["run"], run.config, more)
