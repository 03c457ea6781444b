"""Zero-shot classification: labelled sets by the texts of their classes alone. Writes ``zero_shot/SET.json``."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recipes.data.evaluation.types import EvaluationSet
from recipes.medmoe.choices import Checkpoint, NearDuplicates, Scoring, Split
from recipes.medmoe.hints import next_command
from recipes.medmoe.models.choice import RUN_ITSELF, OtherModel
from recipes.medmoe.set_results import SetResults
from recipes.medmoe.zero_shot.prompt_files import Prompts, choose_prompts, load_prompts, parse_prompts, template_prompts
from recipes.shared.runs import read_metrics, update_metrics

SUMMARY = (
    "accuracy", "accuracy_ci95", "balanced_accuracy", "macro_auroc", "macro_auroc_ci95", "chance", "majority_share",
    "studies", "unknown_words", "prompt_spread", "near_duplicates",
)  # fmt: skip
"""What ``metrics.json`` keeps of a set's result, besides how it was scored."""


MEANS = ("accuracy", "balanced_accuracy", "chance", "majority_share", "macro_auroc")
"""What is averaged over the sets of a call."""


def main(
    run: Path,
    *,
    set: tuple[str, ...] | None = None,
    root: Path | None = None,
    csv: Path | None = None,
    options: tuple[str, ...] = (),
    prompts: str | None = None,
    templates: bool = False,
    scoring: Scoring = "mean",
    count: int | None = None,
    seed: int = 0,
    bootstrap: int = 1000,
    split: Split = "test",
    modality: str | None = None,
    name: str | None = None,
    near_duplicates: NearDuplicates = "count",
    checkpoint: Checkpoint = "best",
    baseline: OtherModel = RUN_ITSELF,
) -> dict[str, Any]:
    """Classifies sets by their class names alone; adds them to the run's ``metrics.json``.

    Args:
        run: Folder of a pretrained run.
        set: Sets to evaluate; by default those of the run's own phantom data.
        root: Folder or file of the set; of several, a folder with a folder for each, of its name.
        csv: A table of paths and labels instead of named sets.
        options: name=value each, for the readers of the sets: label_column=diagnosis, split_column=split,
            only=source=mine, plane=coronal.
        prompts: Prompt file: a name of this recipe's or a path; by default the one that belongs to each set.
        templates: Put class names into plain sentences where a set has no prompt file.
        scoring: combined (global and local, on the scale of training images), mean, max, pairs (needs texts against
            each class) or gloria.
        count: Prompts drawn per class; all by default.
        seed: Of the draws of prompts and of the bootstrap.
        bootstrap: Resamples of patients for the confidence intervals.
        split: Which studies.
        modality: Kind of the images, where the set does not say it.
        name: What to call the set in files and tables, by default its own name or the csv's.
        near_duplicates: Count images that are equal or nearly equal to pretraining images, leave them out, or do not
            look for them.
        checkpoint: Which weights.
        baseline: Another model instead of the run's own.

    Returns:
        The section ``zero_shot`` of ``metrics.json``.

    Raises:
        ValueError: If a set, split, prompt file, or what the scoring needs is missing, or a result of another table has
            the same name.
    """
    if bootstrap < 0:
        raise ValueError(f"bootstrap (--bootstrap) must be 0 (no intervals) or a number of resamples, got {bootstrap}.")
    # Imported here, so that --help does not wait for torch.
    from recipes.medmoe.data.labelled_sets import open_sets
    from recipes.medmoe.inference.near_duplicates import set_without_near_duplicates
    from recipes.medmoe.inference.opening import open_session
    from recipes.medmoe.zero_shot.evaluation import evaluate_set

    session = open_session(run, checkpoint, baseline, writes=("metrics.json", "zero_shot"))
    files = SetResults(run / "zero_shot", csv, options)
    known, results, section = read_metrics(run).get("zero_shot", {}).get("sets", {}), {}, {}
    # All prompts first: a set without any stops the call before time is spent on the others.
    sets = [
        (one, choose_prompts(prompts_of(one, own, prompts, templates=templates), one.classes, count=count, seed=seed))
        for one, own in open_sets(session, names=set, root=root, csv=csv, options=options, name=name)
    ]
    files.check(one.name for one, _ in sets)
    for one, chosen in sets:
        started = time.monotonic()
        left, overlap = set_without_near_duplicates(session, one, split, near_duplicates)
        result = evaluate_set(
            session,
            left,
            chosen,
            scoring=scoring,
            split=split,
            modality=modality,
            bootstrap=bootstrap,
            seed=seed,
            checkpoint=checkpoint,
        )
        result |= {"near_duplicates": overlap, "count": count, "checkpoint": checkpoint}
        result["seconds"] = time.monotonic() - started
        results[one.name] = result
        files.write(one.name, result)
        section = headline(results, known)
        update_metrics(run, zero_shot=section)
        print("\n".join(_lines(result)))
    if session.is_run:  # a released model has no other stages of its own
        print(next_command(run, "zero-shot", data=session.data))
    return section


def headline(results: Mapping[str, Mapping[str, Any]], known: Mapping[str, Any]) -> dict[str, Any]:
    """Makes the section ``zero_shot`` of ``metrics.json``: means over the sets of one call, and all sets so far.

    Args:
        results: Results of this call, by set; all scored alike.
        known: Summaries of sets evaluated before; those of the same name are replaced.

    Returns:
        `MEANS` (means over the sets of this call that have one),
        ``mean_over`` (those sets), ``scoring``, ``route_on`` and ``sets``.
    """
    summaries = {name: _summary(result) for name, result in results.items()}
    first = next(iter(results.values()))
    return {
        **{name: _mean([result[name] for result in summaries.values()]) for name in MEANS},
        "mean_over": list(summaries),
        "scoring": first["scoring"],
        "route_on": first["route_on"],
        "sets": dict(known) | summaries,
    }


def prompts_of(one: EvaluationSet, own: Mapping[str, Any] | None, name: str | None, *, templates: bool) -> Prompts:
    """Returns the prompts asked for, else the set's own, else templates if they may be used.

    Args:
        one: The set.
        own: Prompts that it brings along, in the form of a prompt file.
        name: Prompt file asked for.
        templates: Whether class names may be put into plain sentences.

    Raises:
        ValueError: If the file is missing, or the set has no prompts and templates may not be used.
    """
    if name is not None:
        return load_prompts(name)
    if own is not None:
        return parse_prompts(own, one.name)
    if one.prompts is not None:
        return load_prompts(one.prompts)
    if templates:
        return template_prompts(one.classes)
    raise ValueError(
        f"prompts: the set {one.name} has no prompt file of its own. Give one with --prompts, or put its class names "
        f"({', '.join(one.classes)}) into plain sentences with --templates."
    )


def _summary(result: Mapping[str, Any]) -> dict[str, Any]:
    how = {name: result[name] for name in ("task", "split", "modality", "scoring", "route_on")}
    return {name: result.get(name) for name in SUMMARY} | how


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _lines(result: Mapping[str, Any]) -> list[str]:
    parts = [f"{result['set']}: {result['studies']} {result['split']} studies, scoring {result['scoring']}"]
    if result["accuracy"] is not None:
        parts.append(
            f"accuracy {result['accuracy']:.3f} (chance {result['chance']:.3f}, most frequent class "
            f"{result['majority_share']:.3f})"
        )
    if result.get("balanced_accuracy") is not None:
        parts.append(f"balanced accuracy {result['balanced_accuracy']:.3f}")
    auroc = result["macro_auroc"]
    parts.append("macro AUROC undefined" if auroc is None else f"macro AUROC {auroc:.3f}")
    spread = (result["prompt_spread"] or {}).get("accuracy")
    if spread is not None:
        parts.append(f"over halves of the prompts accuracy {spread['min']:.3f} to {spread['max']:.3f}")
    unknown = result["unknown_words"]
    overlap = result["near_duplicates"]
    return [
        ", ".join(parts),
        *([unknown["in_words"]] if unknown else []),
        *([f"near-duplicates: {overlap['in_words']}"] if overlap else []),
    ]
