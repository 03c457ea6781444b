"""Writes the report of a finished run: one HTML file made from the run's folder alone."""

from pathlib import Path

from recipes.medvlmoe.report.ablation import ablation_section
from recipes.medvlmoe.report.calibration import calibration_section, operating_table
from recipes.medvlmoe.report.experts import expert_section
from recipes.medvlmoe.report.modalities import modality_section
from recipes.medvlmoe.report.run import Run, read_run
from recipes.medvlmoe.report.scores import precision_recall_charts, roc_charts, score_table
from recipes.medvlmoe.report.single_label import single_label_section
from recipes.medvlmoe.report.studies import example_studies
from recipes.medvlmoe.report.subgroups import subgroup_sections
from recipes.medvlmoe.report.training import CURVES
from recipes.shared.outputs import check_outputs
from recipes.shared.report.facts import PHANTOM_NOTE, RESEARCH_NOTE, Figure, facts, header, is_phantom
from recipes.shared.report.files import content_of
from recipes.shared.report.formats import decimals, interval_text
from recipes.shared.report.pages import render
from recipes.shared.report.training import training_charts

TEMPLATES = Path(__file__).with_name("templates")
FEW_POSITIVES = 10
"""Below this many positives (or negatives) a class' AUROC is called uncertain."""


def write_report(run_dir: Path) -> Path:
    """Writes ``report.html`` into a run's folder.

    The file holds its own style, charts and images and loads nothing from outside.

    Args:
        run_dir: Folder with ``config.json``, ``metrics.json``, ``history.jsonl``, ``predictions.csv`` and,
            optionally, ``examples.npz`` and ``errors.npz``.

    Returns:
        The report's path.

    Raises:
        ValueError: Naming the file that is missing or cannot be used.
    """
    run_dir = Path(run_dir)
    check_outputs(run_dir, ("report.html",))
    run = read_run(run_dir)
    with content_of(run_dir / "metrics.json"):
        about, training = run.metrics["run"], run.training
        name = str(about.get("name") or run_dir.resolve().name)
        best_epoch = training.get("best_epoch")
        content = {
            "title": f"{name}: MedVLMoE report",
            "header": header(name, "MedVLMoE", about, _headline(run), _notes(run)),
            "best_epoch": best_epoch,
            "scores": score_table(run),
            "single_label": single_label_section(run),
            "calibration": calibration_section(run),
            "operating": operating_table(run),
            "modalities": modality_section(run),
            "subgroups": subgroup_sections(run),
            "experts": expert_section(run),
            "facts": facts(
                about,
                run.config,
                time=("run time", run.metrics.get("seconds")),
                peak_memory_bytes=run.metrics.get("peak_memory_bytes"),
            ),
        }
        num_experts = content["experts"].num_experts if content["experts"] else None
    with content_of(run_dir / "history.jsonl"):
        content["training"] = training_charts(CURVES, run.history, best_epoch=best_epoch, num_experts=num_experts)
    with content_of(run_dir / "predictions.csv"):
        content["roc"] = roc_charts(run)
        content["precision_recall"] = precision_recall_charts(run)
    with content_of(run_dir / "examples.npz"):
        content["studies"] = example_studies(run, run.examples)
    with content_of(run_dir / "errors.npz"):
        content["errors"] = example_studies(run, run.errors)
    content["ablation"] = ablation_section(run_dir)
    target = run_dir / "report.html"
    target.write_text(render(TEMPLATES, **content), encoding="utf-8")
    return target


def _headline(run: Run) -> list[Figure]:
    """Returns the figures at the top."""
    test, training = run.metrics["test"], run.training
    macro, interval = test["macro_auroc"], test.get("macro_auroc_ci95")
    detail = f"95% CI {interval_text(interval)}" if interval else "no interval"
    entries = [
        Figure("Test macro AUROC", "undefined", "no class has both outcomes", True)
        if macro is None
        else Figure("Test macro AUROC", decimals(macro), detail, True)
    ]
    if test.get("accuracy") is not None:
        entries.append(Figure("Test accuracy", decimals(test["accuracy"]), "most probable class"))
    val = run.metrics.get("val") or {}
    if val.get("macro_auroc") is not None:
        entries.append(Figure("Validation macro AUROC", decimals(val["macro_auroc"]), f"{val['studies']:,} studies"))
    entries.append(Figure("Test studies", f"{test['studies']:,}", f"{test['groups']:,} groups"))
    defined = len(run.classes) - len(test["undefined_classes"])
    entries.append(Figure("Classes", str(len(run.classes)), f"{defined} with both outcomes"))
    epochs = training.get("epochs", len(run.history))
    stopped = "stopped early" if training.get("stopped_early") else "ran to the end"
    entries.append(Figure("Epochs", str(epochs), stopped))
    return entries


def _notes(run: Run) -> list[str]:
    """Returns what a reader must know before quoting a figure."""
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
        notes.append(
            f"Fewer than {FEW_POSITIVES} positives or negatives: {', '.join(few)}. Their AUROCs are uncertain."
        )
    draws = test["bootstrap"]
    if draws.get("samples"):
        skipped = draws.get("skipped", 0)
        missing = f" In {skipped:,} cases a class was undefined in a resample and left out." if skipped else ""
        notes.append(
            f"Intervals come from {draws['samples']:,} resamples of the test split's groups (patients, where the "
            f"data name them). They do not cover the spread between training seeds: this is one run.{missing}"
        )
    training = run.training
    last = run.history[-1]["epoch"]
    if len(run.history) > 1 and training.get("best_epoch") == last and not training.get("stopped_early"):
        notes.append("The best epoch is the last one: longer training might score higher.")
    notes.append(RESEARCH_NOTE)
    return notes
