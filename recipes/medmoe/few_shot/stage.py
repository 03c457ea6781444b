"""Few-shot classification: how far a few labelled images go. Writes ``few_shot/SET.json``."""

import time
from pathlib import Path
from typing import Any

from recipes.medmoe.choices import Checkpoint, NearDuplicates
from recipes.medmoe.few_shot.methods import Method
from recipes.medmoe.models.choice import RUN_ITSELF, OtherModel
from recipes.medmoe.set_results import SetResults
from recipes.medmoe.zero_shot.stage import prompts_of
from recipes.shared.runs import read_metrics, update_metrics


def main(
    run: Path,
    *,
    set: tuple[str, ...] | None = None,
    root: Path | None = None,
    csv: Path | None = None,
    options: tuple[str, ...] = (),
    name: str | None = None,
    shots: tuple[int, ...] = (1, 2, 4, 8, 16),
    methods: tuple[Method, ...] = ("prototypes", "linear", "tip-adapter"),
    draws: int = 5,
    seed: int = 0,
    prompts: str | None = None,
    templates: bool = False,
    alpha: float = 1.0,
    beta: float = 5.5,
    near_duplicates: NearDuplicates = "count",
    checkpoint: Checkpoint = "best",
    baseline: OtherModel = RUN_ITSELF,
) -> dict[str, Any]:
    """Fits classifiers on a few labelled images of each class; adds them to the run's ``metrics.json``.

    Args:
        run: Folder of a pretrained run.
        set: Sets to classify; by default those of the run's own phantom data.
        root: Folder or file of the set; of several, a folder with a folder for each, of its name.
        csv: A table of paths and labels, with a split column, instead of named sets.
        options: name=value each, for the readers of the sets, such as label_column=diagnosis split_column=split.
        name: What to call the set in files and tables, by default its own name or the csv's.
        shots: Labelled images of each class; a class with fewer gives all.
        methods: Nearest class mean, logistic regression, or prompts and labelled images together (Tip-Adapter).
        draws: How many times the labelled images are drawn; intervals are over draws.
        seed: Of the first draw; the others follow.
        prompts: Prompt file: a name of this recipe's or a path; by default the one that belongs to each set.
        templates: Put class names into plain sentences where a set has no prompt file.
        alpha: Weight of the labelled images in Tip-Adapter.
        beta: How quickly it falls with distance.
        near_duplicates: Count test images that are equal or nearly equal to pretraining images, leave them out, or
            do not look for them.
        checkpoint: Which weights.
        baseline: Another model instead of the run's own.

    Returns:
        The section ``few_shot`` of ``metrics.json``.

    Raises:
        ValueError: If a set, its training split or its prompts are missing, an option is out of range, or a result of
            another table has the same name.
    """
    for option, value in (("draws", draws), *(("shots", number) for number in shots or (0,))):
        if value < 1:
            raise ValueError(f"{option} must be at least 1, got {value} (--{option}).")
    if not methods or alpha < 0 or beta <= 0:
        raise ValueError(
            f"methods must name one at least, alpha be 0 or more, and beta above 0, got {methods}, {alpha} and {beta} "
            "(--methods, --alpha, --beta)."
        )
    # Imported here, so that --help does not wait for torch.
    from recipes.medmoe.data.labelled_sets import open_sets
    from recipes.medmoe.few_shot.evaluation import few_shot_set
    from recipes.medmoe.inference.near_duplicates import set_without_near_duplicates
    from recipes.medmoe.inference.opening import open_session

    session = open_session(run, checkpoint, baseline, writes=("metrics.json", "few_shot"))
    results = SetResults(run / "few_shot", csv, options)
    section = read_metrics(run).get("few_shot", {})
    sets = [
        (one, prompts_of(one, own, prompts, templates=templates))
        for one, own in open_sets(session, names=set, root=root, csv=csv, options=options, name=name)
    ]
    results.check(one.name for one, _ in sets)
    for one, texts in sets:
        started = time.monotonic()
        left, overlap = set_without_near_duplicates(session, one, "test", near_duplicates)
        result = few_shot_set(
            session,
            left,
            texts,
            shots=shots,
            methods=methods,
            seeds=range(seed, seed + draws),
            alpha=alpha,
            beta=beta,
        )
        result |= {"near_duplicates": overlap, "checkpoint": checkpoint, "seconds": time.monotonic() - started}
        results.write(one.name, result)
        keys = ("task", "chance", "majority_share", "studies", "zero_shot", "results", "seeds", "near_duplicates")
        section = section | {one.name: {key: result[key] for key in keys}}
        update_metrics(run, few_shot=section)
        print("\n".join(_lines(result)))
    return section


def _lines(result: dict[str, Any]) -> list[str]:
    zero = result["zero_shot"]
    lines = [
        f"{result['set']}: {result['studies']['test']} test studies; chance {result['chance']:.3f}, most frequent "
        f"class {result['majority_share']:.3f}; {len(result['seeds'])} draws, intervals over draws",
        f"  prompts alone: accuracy {zero['accuracy']:.3f}, balanced {zero['balanced_accuracy']:.3f}, macro AUROC "
        f"{'undefined' if zero['macro_auroc'] is None else format(zero['macro_auroc'], '.3f')}",
    ]
    for row in result["results"]:
        scores = ", ".join(
            f"{title} {_shown(row[key])}"
            for title, key in (
                ("accuracy", "accuracy"),
                ("balanced", "balanced_accuracy"),
                ("macro AUROC", "macro_auroc"),
            )
        )
        studies = max(row["studies"])
        lines.append(f"  {row['shots']:3d} of each class ({studies} in all), {row['method']}: {scores}")
    overlap = result["near_duplicates"]
    return lines if overlap is None else [*lines, f"  near-duplicates: {overlap['in_words']}"]


def _shown(summary: dict[str, Any]) -> str:
    if summary["mean"] is None:
        return "undefined"
    interval = summary["ci95"]
    return f"{summary['mean']:.3f}" + ("" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})")
