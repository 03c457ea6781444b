"""Writes the report of a run: one HTML file made of what lies in the run's folder, nothing else."""

from pathlib import Path

from recipes.medmoe.report.examples import example_section
from recipes.medmoe.report.pointing import pointing_section
from recipes.medmoe.report.routing import routing_section
from recipes.medmoe.report.run import Run, read_run
from recipes.medmoe.report.training import training_section
from recipes.medmoe.report.transfer import probe_section, retrieval_section
from recipes.medmoe.report.zero_shot import confusion_section, zero_shot_section
from recipes.shared.report.facts import PHANTOM_NOTE, RESEARCH_NOTE, Figure, duration, facts, header, is_phantom
from recipes.shared.report.html import Markup, page

FEW_ROUNDS = 10
"""A finding that was played less often in the pointing game has an unsure hit rate."""


def write_report(run: Path) -> Path:
    """Writes ``report.html`` into a run's folder.

    The file holds its own style, charts and images and loads nothing from outside. Stages that were not run are
    named as such.

    Args:
        run: Folder with ``config.json``, ``metrics.json`` and ``history.jsonl`` and, as far as the stages were run,
            ``zero_shot/*.json`` and ``explain/examples.npz``.

    Returns:
        Where the report lies.

    Raises:
        ValueError: Naming the file that is missing or cannot be used.
    """
    run = Path(run)
    content = read_run(run)
    name = str(content.metrics["run"].get("name") or run.resolve().name)
    body = [
        header(name, "MedMoE", content.metrics["run"], _headline(content), _notes(content)),
        training_section(content),
        zero_shot_section(content),
        confusion_section(content),
        routing_section(content),
        retrieval_section(content),
        probe_section(content),
        pointing_section(content),
        example_section(content),
        _facts(content),
    ]
    target = run / "report.html"
    target.write_text(page(f"{name}: MedMoE report", body), encoding="utf-8")
    return target


def _headline(run: Run) -> list[Figure]:
    """The figures at the top."""
    return [_accuracy(run), _purity(run), _pointing(run), _recall(run), _epochs(run)]


def _accuracy(run: Run) -> Figure:
    found, title = run.section("zero_shot"), "Zero-shot accuracy"
    if not found:
        return Figure(title, "–", "not run", main=True)
    if found["accuracy"] is None:
        auroc = found["macro_auroc"]
        value = "undefined" if auroc is None else f"{auroc:.3f}"
        return Figure("Zero-shot macro AUROC", value, "no set with single labels", main=True)
    over = found.get("mean_over") or list(found["sets"])
    where = f"mean of {len(over)} sets" if len(over) > 1 else over[0]
    return Figure(title, f"{found['accuracy']:.3f}", f"chance {found['chance']:.3f}, {where}", main=True)


def _purity(run: Run) -> Figure:
    purity, routing = run.metrics.get("routing_purity"), run.section("routing")
    if purity is None:
        return Figure("Routing purity", "–", "no known modality")
    return Figure("Routing purity", f"{purity:.3f}", f"{sum(routing.get('counts', ())):,} test images")


def _pointing(run: Run) -> Figure:
    game, title = run.section("pointing_game"), "Pointing game"
    if not game:
        return Figure(title, "–", "not run")
    if game["hit_rate"] is None:
        return Figure(title, "–", "not played")
    return Figure(title, f"{game['hit_rate']:.3f}", f"centre baseline {game['center_baseline']:.3f}")


def _recall(run: Run) -> Figure:
    found, title = run.section("retrieval"), "Retrieval R@1"
    if not found:
        return Figure(title, "–", "not run")
    way = found["image_to_text"]
    return Figure(title, f"{way['recall']['1']:.3f}", f"report for an image, chance {way['chance']['recall']['1']:.3f}")


def _epochs(run: Run) -> Figure:
    training = run.section("training")
    best = training.get("best_epoch")
    return Figure(
        "Epochs", str(training.get("epochs", len(run.history))), "" if best is None else f"best: epoch {best}"
    )


def _notes(run: Run) -> list[str]:
    """What a reader must know before quoting a figure."""
    about, game = run.metrics["run"], run.section("pointing_game")
    notes = [str(note) for note in about.get("notes") or ()]
    if is_phantom(about):
        notes.insert(0, PHANTOM_NOTE)
    if run.section("zero_shot") and is_phantom(about):
        notes.append("Zero-shot sets named phantom are drawn from the same generator as the training pairs.")
    few = [name for name, one in game.get("per_finding", {}).items() if one["rounds"] < FEW_ROUNDS]
    if few:
        notes.append(
            f"Pointing game played less than {FEW_ROUNDS} times: {', '.join(few)}. Their hit rates are unsure."
        )
    notes.append("Intervals do not cover the spread between training seeds: this is one run.")
    best, epochs = run.section("training").get("best_epoch"), len(run.history)
    if epochs > 1 and best == run.history[-1]["epoch"]:
        notes.append("The best epoch is the last one: longer training might score higher.")
    notes.append(RESEARCH_NOTE)
    return notes


def _facts(run: Run) -> Markup:
    training, more = run.section("training"), []
    if training.get("seconds") is not None:
        more.append(("training time", duration(training["seconds"])))
    if training.get("peak_memory_bytes"):
        more.append(("peak memory", f"{training['peak_memory_bytes'] / 2**30:.2f} GiB"))
    return facts(run.metrics["run"], run.config, more)
