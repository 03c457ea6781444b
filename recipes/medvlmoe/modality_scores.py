"""Scores of the same studies with both modalities, from the image alone and from the text alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from recipes.data.studies import StudySplit, Task
from recipes.medvlmoe.config import Config
from recipes.medvlmoe.data import make_loader
from recipes.medvlmoe.inference import Predictions, dataset_of, predict_batches
from recipes.medvlmoe.modalities import ONLY
from recipes.medvlmoe.model import MedVLMoE, takes_text
from recipes.shared.scores.metrics import evaluate_predictions
from recipes.shared.scores.seeds import summary_over_seeds

FULL = "image and text"


def modality_scores(
    model: MedVLMoE,
    config: Config,
    split: StudySplit,
    classes: Sequence[str],
    full: Predictions,
    *,
    task: Task,
    device: torch.device,
    bootstrap: int,
) -> dict[str, Any] | None:
    """Scores the studies that have an image and a text: as they are, without the text, and without the image.

    Args:
        model: The model, on ``device``.
        config: Settings of its run.
        split: The studies.
        classes: Names of the classes.
        full: Predictions of the studies as they are.
        task: Kind of the target.
        device: Where to compute.
        bootstrap: Resamples of patients; 0 for no intervals.

    Returns:
        ``trained_with_dropout``, and in ``values`` for ``image and text``, ``image only`` and ``text only`` what
        :func:`~recipes.shared.scores.metrics.evaluate_predictions` returns; ``None`` of a model that reads no text, or
        if no study has both.
    """
    if not takes_text(model):
        return None
    dataset = dataset_of(split, config, model)
    both = np.array([bool(tokens) for tokens in dataset.tokens]) & dataset.has_image
    if not both.any():
        return None
    predictions = {FULL: full}
    for name, dropout in ONLY.items():
        loader = make_loader(dataset_of(split, config, model, dropout=dropout), config.train, seed=None)
        predictions[f"{name} only"] = predict_batches(model, loader, device=device, title=f"{name} only")
    groups = [split.groups[int(i)] for i in np.flatnonzero(both)]
    values = {}
    for name, one in predictions.items():
        rows = both[one.index]
        values[name] = evaluate_predictions(
            one.probs[rows], one.labels[rows], groups, classes, task=task, bootstrap=bootstrap
        )
    dropped = config.train.drop_image > 0 and config.train.drop_text > 0
    return {"trained_with_dropout": dropped, "values": values}


def modalities_over_seeds(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Sums up the macro AUROCs of :func:`modality_scores` over runs that differ in their seed alone.

    Args:
        runs: The content of each run's ``metrics.json``.

    Returns:
        As there, each of ``values`` with a ``macro_auroc`` like that of
        :func:`~recipes.shared.scores.seeds.aggregate_seeds` alone.
    """
    each = [run["modalities"] for run in runs]
    if any(one is None for one in each):
        return None
    values = {
        name: {"macro_auroc": summary_over_seeds([one["values"][name]["macro_auroc"] for one in each])}
        for name in each[0]["values"]
    }
    return {"trained_with_dropout": each[0]["trained_with_dropout"], "values": values}


def modality_lines(content: Mapping[str, Any] | None) -> list[str]:
    """Returns one line for each of the three, for the console; none where only one modality was read."""
    if content is None:
        return []
    lines = []
    for name, one in content["values"].items():
        value = one["macro_auroc"]
        value = value["mean"] if isinstance(value, dict) else value
        lines.append(f"test macro AUROC, {name}: {'undefined' if value is None else f'{value:.4f}'}")
    if not content["trained_with_dropout"]:
        lines.append("(trained without --drop-image and --drop-text: a modality alone is not what it has learned from)")
    return lines
