"""Linear probing: how much labelled data frozen features need. Writes ``probe/SET.json``."""

import time
from pathlib import Path
from typing import Any

from recipes.medmoe.choices import Checkpoint, Features, NearDuplicates, Refit, Select
from recipes.medmoe.hints import next_command
from recipes.medmoe.models.choice import RUN_ITSELF, OtherModel
from recipes.medmoe.set_results import SetResults
from recipes.shared.runs import read_metrics, update_metrics


def main(
    run: Path,
    *,
    set: tuple[str, ...] | None = None,
    root: Path | None = None,
    csv: Path | None = None,
    options: tuple[str, ...] = (),
    features: Features = "global",
    fractions: tuple[float, ...] = (0.01, 0.1, 1.0),
    subsets: int = 5,
    seed: int = 0,
    refit: Refit = "train",
    select: Select = "val",
    modality: str | None = None,
    name: str | None = None,
    near_duplicates: NearDuplicates = "count",
    checkpoint: Checkpoint = "best",
    baseline: OtherModel = RUN_ITSELF,
) -> dict[str, Any]:
    """Fits linear classifiers on frozen features; adds them to the run's ``metrics.json``.

    Args:
        run: Folder of a pretrained run.
        set: Sets to probe; by default those of the run's own phantom data.
        root: Folder or file of the set; of several, a folder with a folder for each, of its name.
        csv: A table of paths and labels instead of named sets.
        options: name=value each, for the readers of the sets: label_column=diagnosis, split_column=split,
            only=source=mine, plane=coronal.
        features: The encoder's pooled output, the mean of the chosen expert's regions, or both.
        fractions: Shares of the training set.
        subsets: How many subsets of each share below 1 are drawn; the whole set is one.
        seed: Of the first subset; the others follow.
        refit: What the last classifier is trained on: the subset alone, so that k % are k % of the training set, or the
            subset with the validation set.
        select: What chooses the weight decay: the validation set, or cross-validation inside the subset.
        modality: Kind of the images, where the set does not say it.
        name: What to call the set in files and tables, by default its own name or the csv's.
        near_duplicates: Count test images that are equal or nearly equal to pretraining images, leave them out, or
            do not look for them.
        checkpoint: Which weights.
        baseline: Another model instead of the run's own.

    Returns:
        The section ``probe`` of ``metrics.json``.

    Raises:
        ValueError: If a set or one of its splits is missing, an option is out of range, or features of the
            regions are asked for and the expert of an image is not known.
    """
    if subsets < 1:
        raise ValueError(f"subsets must be at least 1, got {subsets} (--subsets).")
    # Imported here, so that --help does not wait for torch.
    from recipes.medmoe.data.labelled_sets import open_sets
    from recipes.medmoe.inference.near_duplicates import set_without_near_duplicates
    from recipes.medmoe.inference.opening import open_session
    from recipes.medmoe.probe.evaluation import probe_set

    session = open_session(run, checkpoint, baseline, writes=("metrics.json", "probe"))
    section = read_metrics(run).get("probe", {})
    sets = [one for one, _ in open_sets(session, names=set, root=root, csv=csv, options=options, name=name)]
    results = SetResults(run / "probe", csv, options)
    results.check(one.name for one in sets)
    for one in sets:
        started = time.monotonic()
        left, overlap = set_without_near_duplicates(session, one, "test", near_duplicates)
        result = probe_set(
            session,
            left,
            kind=features,
            fractions=fractions,
            subsets=subsets,
            seed=seed,
            refit=refit,
            select=select,
            modality=modality,
            checkpoint=checkpoint,
        )
        result |= {"near_duplicates": overlap, "seconds": time.monotonic() - started}
        results.write(one.name, result)
        section = section | {one.name: _summary(result)}
        update_metrics(run, probe=section)
        print("\n".join(_lines(result)))
    if session.is_run:  # a released model has no other stages of its own
        print(next_command(run, "probe", data=session.data))
    return section


def _summary(result: dict[str, Any]) -> dict[str, Any]:
    keys = ("task", "features", "refit", "select", "protocol", "chance", "majority_share", "studies", "near_duplicates")
    return {key: result[key] for key in keys} | {
        "fractions": [
            {key: value for key, value in row.items() if key != "subsets"} | {"subsets": len(row["subsets"])}
            for row in result["fractions"]
        ]
    }


def _lines(result: dict[str, Any]) -> list[str]:
    """Says what was reached with each share of the training set, and by which protocol."""
    lines = [f"{result['set']}: {result['studies']['test']} test studies; {result['protocol']}"]
    if result["chance"] is not None:
        lines[0] += f"; chance {result['chance']:.3f}, most frequent class {result['majority_share']:.3f}"
    for row in result["fractions"]:
        numbers = sorted({subset["train_studies"] for subset in row["subsets"]})
        studies = f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
        scores = [] if result["task"] == "multi-label" else [f"accuracy {_shown(row['accuracy'])}"]
        scores.append(f"macro AUROC {_shown(row['macro_auroc'])}")
        lines.append(f"  {100 * row['fraction']:g}% of training ({studies} studies): {', '.join(scores)}")
    overlap = result["near_duplicates"]
    return lines if overlap is None else [*lines, f"  near-duplicates: {overlap['in_words']}"]


def _shown(spread: dict[str, Any]) -> str:
    if spread["mean"] is None:
        return "undefined"
    return f"{spread['mean']:.3f}" + ("" if spread["sd"] is None else f" ± {spread['sd']:.3f}")
