"""Linear probing: how much labelled data frozen features need. Writes ``probe/SET.json``."""

import time
from pathlib import Path
from typing import Any, Literal

from recipes.medmoe.data.labelled_sets import open_sets
from recipes.medmoe.inference.opening import open_session
from recipes.medmoe.models.choice import RUN_ITSELF, OtherModel
from recipes.medmoe.probe.evaluation import Kind, Refit, probe_set
from recipes.shared.runs import read_metrics, update_metrics, write_json


def main(
    run: Path,
    *,
    set: tuple[str, ...] | None = None,
    root: Path | None = None,
    csv: Path | None = None,
    options: tuple[str, ...] = (),
    features: Kind = "global",
    fractions: tuple[float, ...] = (0.01, 0.1, 1.0),
    subsets: int = 5,
    seed: int = 0,
    refit: Refit = "train+val",
    modality: str | None = None,
    checkpoint: Literal["best", "last"] = "best",
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
        refit: What the last classifier is trained on: the subset with the validation set, or the subset alone.
        modality: Kind of the images, where the set does not say it.
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
    session = open_session(run, checkpoint, baseline, writes=("metrics.json", "probe"))
    section = read_metrics(run).get("probe", {})
    for one, _ in open_sets(session, names=set, root=root, csv=csv, options=options):
        started = time.monotonic()
        result = probe_set(
            session,
            one,
            kind=features,
            fractions=fractions,
            subsets=subsets,
            seed=seed,
            refit=refit,
            modality=modality,
            checkpoint=checkpoint,
        )
        result["seconds"] = time.monotonic() - started
        (run / "probe").mkdir(exist_ok=True)
        write_json(run / "probe" / f"{one.name}.json", result)
        section = section | {one.name: _summary(result)}
        update_metrics(run, probe=section)
        print(_line(result))
    return section


def _summary(result: dict[str, Any]) -> dict[str, Any]:
    keys = ("task", "features", "refit", "chance", "studies")
    return {key: result[key] for key in keys} | {
        "fractions": [
            {key: value for key, value in row.items() if key != "subsets"} | {"subsets": len(row["subsets"])}
            for row in result["fractions"]
        ]
    }


def _line(result: dict[str, Any]) -> str:
    name = "macro_auroc" if result["task"] == "multi-label" else "accuracy"
    parts = [f"{100 * row['fraction']:g}% {_shown(row[name])}" for row in result["fractions"]]
    return f"{result['set']}: {name.replace('_', ' ')} with " + ", ".join(parts) + " of the training set"


def _shown(spread: dict[str, Any]) -> str:
    if spread["mean"] is None:
        return "undefined"
    return f"{spread['mean']:.3f}" + ("" if spread["sd"] is None else f" ± {spread['sd']:.3f}")
