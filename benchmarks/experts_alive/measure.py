"""One run: which experts live on training, and on validation and test together."""

import contextlib
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.experts_alive.sets import RealSet
from recipes.data.studies import StudySplit
from recipes.medvlmoe import train
from recipes.medvlmoe.build import load_model
from recipes.medvlmoe.config import Balance
from recipes.medvlmoe.data import make_loader
from recipes.medvlmoe.inference import Predictions, dataset_of, predict_batches
from recipes.medvlmoe.sources import build_source
from recipes.shared.epochs import training_from_one
from recipes.shared.runs import read_json
from recipes.shared.scores.expert_load import load_measures
from recipes.shared.scores.metrics import evaluate_predictions
from recipes.shared.scores.routing_information import routing_information

Test = dict[str, Any]
"""Probabilities, labels and patients of the test studies, in the order of the split."""


def measure(data: RealSet, method: Balance, seed: int, root: Path, out: Path) -> tuple[dict[str, Any], Test]:
    """Trains a run unless its folder holds a finished one, and measures the weights that it keeps.

    Args:
        data: The set.
        method: How experts are balanced.
        seed: Of the training.
        root: Folder of the sets.
        out: Folder of the run.

    Returns:
        The figures, and the test predictions for paired comparisons.
    """
    config = data.config(root, method, seed, out)
    if not _is_finished(out, config.train.epochs):
        with contextlib.redirect_stdout(io.StringIO()):
            train.main(replace(config, resume=True))  # one that was killed goes on
    model, config, classes, task = load_model(out)
    source = build_source(config.data, config.model.image_size)
    predictions: dict[str, Predictions] = {}
    for name, split in source.splits():
        loader = make_loader(dataset_of(split, config, model), config.train, seed=None)
        predictions[name] = predict_batches(model, loader, device=torch.device("cpu"))
    test = predictions["test"]
    groups = _groups(source.test, test)
    scores = evaluate_predictions(test.probs, test.labels, groups, classes, task=task, bootstrap=0)
    training = training_from_one(read_json(out / "training.json"))
    top_k = config.model.top_k
    record: dict[str, Any] = {
        "method": method,
        "seed": seed,
        "best_epoch": training["best_epoch"],
        "seconds": training["seconds"],
        "macro_auroc": scores["macro_auroc"],
        "router_entropy": float(test.entropy.mean()) if test.entropy is not None else None,
    }
    val_groups = [f"val {each}" for each in _groups(source.val, predictions["val"])]
    for name, parts, patients in (
        ("train", [predictions["train"]], _groups(source.train, predictions["train"])),
        ("val_and_test", [predictions["val"], test], [*val_groups, *(f"test {each}" for each in groups)]),
    ):
        usage = np.concatenate([part.usage for part in parts if part.usage is not None]).astype(np.float64)
        labels = np.concatenate([part.labels for part in parts])
        load = usage.mean(0).tolist()
        record[name] = {
            "load": [round(each, 4) for each in load],
            **load_measures(load, top_k=top_k, decisions=len(usage)),
            "information": routing_information(usage, labels, patients),
        }
    columns = slice(1, 2) if task == "binary-class" else slice(None)
    return record, {"probs": test.probs[:, columns], "labels": test.labels[:, columns], "groups": groups}


def _groups(split: StudySplit, predictions: Predictions) -> list[str]:
    return [split.groups[int(i)] for i in predictions.index]


def _is_finished(out: Path, epochs: int) -> bool:
    path = out / "training.json"
    return path.exists() and read_json(path).get("epochs") == epochs
