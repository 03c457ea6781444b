"""Writes the report of a run: one HTML file made from the run's folder alone."""

from pathlib import Path

from recipes.medmoe.report.examples import example_section
from recipes.medmoe.report.few_shot import few_shot_section
from recipes.medmoe.report.pointing import pointing_section
from recipes.medmoe.report.prompt_spread import prompt_spread_section
from recipes.medmoe.report.routing import routing_section
from recipes.medmoe.report.run import Run, read_run
from recipes.medmoe.report.segmentation import segmentation_section
from recipes.medmoe.report.training import CURVES
from recipes.medmoe.report.transfer import probe_section, retrieval_section
from recipes.medmoe.report.zero_shot import Confusion, confusion, zero_shot_section
from recipes.shared.outputs import check_outputs
from recipes.shared.report.facts import PHANTOM_NOTE, RESEARCH_NOTE, Figure, facts, header, is_phantom
from recipes.shared.report.files import content_of
from recipes.shared.report.formats import DASH, decimals
from recipes.shared.report.pages import render
from recipes.shared.report.training import training_charts

TEMPLATES = Path(__file__).with_name("templates")
_NO_EXPERTS = "The model has no experts to choose from."
FEW_ROUNDS = 10
"""A finding that was played less often in the pointing game has an uncertain hit rate."""


def write_report(run_dir: Path) -> Path:
    """Writes ``report.html`` into a run's folder.

    The file holds its own style, charts and images and loads nothing from outside. Stages that were not run are
    named as such.

    Args:
        run_dir: Folder with ``config.json``, ``metrics.json`` and ``history.jsonl`` and, as far as the stages were
            run, ``zero_shot/*.json`` and ``explain/examples.npz``; or of the results of a released model.

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
        best_epoch, num_experts = training.get("best_epoch"), run.section("routing").get("experts")
        content = {
            "title": f"{name}: {'report' if run.released else 'MedMoE report'}",
            "header": header(name, about.get("released model", "MedMoE"), about, _headline(run), _notes(run)),
            "best_epoch": best_epoch,
            "augmented": bool((run.config.get("train") or {}).get("augment")),
            "released": run.released,
            "zero_shot": zero_shot_section(run),
            "prompt_spread": prompt_spread_section(run),
            "routing": routing_section(run),
            "routing_missing": _NO_EXPERTS if _has_no_experts(run) else "No test image has a known modality.",
            "retrieval": retrieval_section(run),
            "probe": probe_section(run),
            "few_shot": few_shot_section(run),
            "pointing": pointing_section(run),
            "segmentation": segmentation_section(run),
            "facts": facts(
                about,
                run.config,
                time=("training time", training.get("seconds")),
                peak_memory_bytes=training.get("peak_memory_bytes"),
            ),
        }
    content["confusions"] = _confusions(run, run_dir / "zero_shot")
    with content_of(run_dir / "history.jsonl"):
        content["training"] = training_charts(CURVES, run.history, best_epoch=best_epoch, num_experts=num_experts)
    with content_of(run_dir / "explain" / "examples.npz"):
        content["examples"] = example_section(run)
    target = run_dir / "report.html"
    target.write_text(render(TEMPLATES, **content), encoding="utf-8")
    return target


def _has_no_experts(run: Run) -> bool:
    return run.metrics["run"]["route_on"] == "none"


def _confusions(run: Run, folder: Path) -> list[Confusion]:
    matrices = []
    for name, result in run.zero_shot.items():
        with content_of(folder / f"{name}.json"):
            matrices.append(confusion(name, result))
    return [matrix for matrix in matrices if matrix is not None]


def _headline(run: Run) -> list[Figure]:
    """Returns the figures at the top; a released model has no experts and no epochs."""
    if run.released:
        return [_accuracy(run), _pointing(run), _recall(run)]
    return [_accuracy(run), _purity(run), _pointing(run), _recall(run), _epochs(run)]


def _accuracy(run: Run) -> Figure:
    zero_shot, title = run.section("zero_shot"), "Zero-shot accuracy"
    if not zero_shot:
        return Figure(title, DASH, "not run", main=True)
    if zero_shot["accuracy"] is None:
        auroc = zero_shot["macro_auroc"]
        value = "undefined" if auroc is None else decimals(auroc)
        return Figure("Zero-shot macro AUROC", value, "no set with single labels", main=True)
    averaged = zero_shot.get("mean_over") or list(zero_shot["sets"])
    where = f"mean of {len(averaged)} sets" if len(averaged) > 1 else averaged[0]
    detail = f"chance {decimals(zero_shot['chance'])}, {where}"
    return Figure(title, decimals(zero_shot["accuracy"]), detail, main=True)


def _purity(run: Run) -> Figure:
    purity, routing = run.metrics.get("routing_purity"), run.section("routing")
    if purity is None:
        return Figure("Routing purity", DASH, "no experts" if _has_no_experts(run) else "no known modality")
    return Figure("Routing purity", decimals(purity), f"{sum(routing.get('counts', ())):,} test images")


def _pointing(run: Run) -> Figure:
    game, title = run.section("pointing_game"), "Pointing game"
    if not game:
        return Figure(title, DASH, "not run")
    if game["hit_rate"] is None:
        return Figure(title, DASH, "not played")
    return Figure(title, decimals(game["hit_rate"]), f"centre baseline {decimals(game['center_baseline'])}")


def _recall(run: Run) -> Figure:
    retrieval, title = run.section("retrieval"), "Retrieval R@1"
    if not retrieval:
        return Figure(title, DASH, "not run")
    scores = retrieval["image_to_text"]
    chance = decimals(scores["chance"]["recall"]["1"])
    return Figure(title, decimals(scores["recall"]["1"]), f"report for an image, chance {chance}")


def _epochs(run: Run) -> Figure:
    training = run.training
    best = training.get("best_epoch")
    return Figure(
        "Epochs", str(training.get("epochs", len(run.history))), "" if best is None else f"best: epoch {best}"
    )


def _notes(run: Run) -> list[str]:
    """Returns what a reader must know before quoting a figure."""
    about, game = run.metrics["run"], run.section("pointing_game")
    notes = [str(note) for note in about.get("notes") or ()]
    if is_phantom(about):
        notes.insert(0, PHANTOM_NOTE)
    if run.section("zero_shot") and is_phantom(about):
        notes.append("Zero-shot sets named phantom are drawn from the same generator as the training pairs.")
    notes += _unknown_words(run)
    few = [name for name, one in game.get("per_finding", {}).items() if one["rounds"] < FEW_ROUNDS]
    if few:
        notes.append(
            f"Pointing game played less than {FEW_ROUNDS} times: {', '.join(few)}. Their hit rates are uncertain."
        )
    if run.released:
        notes.append("What this model was trained on is not known here: test images may have been part of it.")
        return [*notes, RESEARCH_NOTE]
    notes.append("Intervals do not cover the spread between training seeds: this is one run.")
    best, epochs = run.training.get("best_epoch"), len(run.history)
    if epochs > 1 and best == run.history[-1]["epoch"]:
        notes.append("The best epoch is the last one: longer training might score higher.")
    notes.append(RESEARCH_NOTE)
    return notes


def _unknown_words(run: Run) -> list[str]:
    """Names the sets whose prompts hold words that the tokenizer does not know."""
    shares = {
        name: (summary.get("unknown_words") or {}).get("share", 0.0)
        for name, summary in (run.section("zero_shot").get("sets") or {}).items()
    }
    named = [f"{name} ({share:.0%})" for name, share in shares.items() if share]
    return [f"Words of the prompts that the tokenizer does not know: {', '.join(named)}."] if named else []
