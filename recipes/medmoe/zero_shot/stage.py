"""Zero-shot classification: labelled sets by the texts of their classes alone. Writes ``zero_shot/SET.json``."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from recipes.data.evaluation.types import EvaluationSet
from recipes.medmoe.data.labelled_sets import open_sets
from recipes.medmoe.inference.opening import open_session
from recipes.medmoe.models.choice import RUN_ITSELF, OtherModel
from recipes.medmoe.zero_shot.evaluation import evaluate_set
from recipes.medmoe.zero_shot.prompt_files import Prompts, choose_prompts, load_prompts, parse_prompts, template_prompts
from recipes.medmoe.zero_shot.scoring import Scoring
from recipes.shared.runs import read_metrics, update_metrics, write_json

SUMMARY = ("accuracy", "accuracy_ci95", "macro_auroc", "macro_auroc_ci95", "chance", "majority_share", "studies")
"""What ``metrics.json`` keeps of a set's result, besides how it was scored."""


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
    split: Literal["train", "val", "test"] = "test",
    modality: str | None = None,
    checkpoint: Literal["best", "last"] = "best",
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
        scoring: mean, max, pairs (needs texts against each class) or gloria (needs local scores).
        count: Prompts drawn per class; all by default.
        seed: Of the draws of prompts and of the bootstrap.
        bootstrap: Resamples of patients for the confidence intervals.
        split: Which studies.
        modality: Kind of the images, where the set does not say it.
        checkpoint: Which weights.
        baseline: Another model instead of the run's own.

    Returns:
        The section ``zero_shot`` of ``metrics.json``.

    Raises:
        ValueError: If a set, split, prompt file, or what the scoring needs is missing.
    """
    if bootstrap < 0:
        raise ValueError(f"bootstrap (--bootstrap) must be 0 (no intervals) or a number of resamples, got {bootstrap}.")
    session = open_session(run, checkpoint, baseline, writes=("metrics.json", "zero_shot"))
    known, results, section = read_metrics(run).get("zero_shot", {}).get("sets", {}), {}, {}
    # All prompts first: a set without any stops the call before time is spent on the others.
    sets = [
        (one, choose_prompts(_prompts_of(one, own, prompts, templates=templates), one.classes, count=count, seed=seed))
        for one, own in open_sets(session, names=set, root=root, csv=csv, options=options)
    ]
    for one, chosen in sets:
        started = time.monotonic()
        result = evaluate_set(
            session, one, chosen, scoring=scoring, split=split, modality=modality, bootstrap=bootstrap, seed=seed
        )
        result |= {"count": count, "checkpoint": checkpoint, "seconds": time.monotonic() - started}
        results[one.name] = result
        (run / "zero_shot").mkdir(exist_ok=True)
        write_json(run / "zero_shot" / f"{one.name}.json", result)
        section = headline(results, known)
        update_metrics(run, zero_shot=section)
        print(_line(result))
    return section


def headline(results: Mapping[str, Mapping[str, Any]], known: Mapping[str, Any]) -> dict[str, Any]:
    """Makes the section ``zero_shot`` of ``metrics.json``: means over the sets of one call, and all sets so far.

    Args:
        results: Results of this call, by set; all scored alike.
        known: Summaries of sets evaluated before; those of the same name are replaced.

    Returns:
        ``accuracy``, ``chance`` and ``macro_auroc`` (means over the sets of this call that have one),
        ``mean_over`` (those sets), ``scoring``, ``route_on`` and ``sets``.
    """
    summaries = {name: _summary(result) for name, result in results.items()}
    first = next(iter(results.values()))
    return {
        "accuracy": _mean([result["accuracy"] for result in summaries.values()]),
        "chance": _mean([result["chance"] for result in summaries.values()]),
        "macro_auroc": _mean([result["macro_auroc"] for result in summaries.values()]),
        "mean_over": list(summaries),
        "scoring": first["scoring"],
        "route_on": first["route_on"],
        "sets": dict(known) | summaries,
    }


def _prompts_of(one: EvaluationSet, own: Mapping[str, Any] | None, name: str | None, *, templates: bool) -> Prompts:
    """Returns the prompts asked for, else the set's own, else templates if they may be used."""
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
    return {name: result[name] for name in SUMMARY} | how


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _line(result: Mapping[str, Any]) -> str:
    parts = [f"{result['set']}: {result['studies']} {result['split']} studies"]
    if result["accuracy"] is not None:
        parts.append(f"accuracy {result['accuracy']:.3f} (chance {result['chance']:.3f})")
    auroc = result["macro_auroc"]
    parts.append("macro AUROC undefined" if auroc is None else f"macro AUROC {auroc:.3f}")
    return ", ".join(parts)
