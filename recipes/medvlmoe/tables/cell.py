"""One cell of a table: trains and evaluates a run by the stages of the recipe, whatever is in its folder."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from recipes.medvlmoe import evaluate, train
from recipes.medvlmoe.config import Config
from recipes.medvlmoe.sources import unread_settings
from recipes.medvlmoe.tables.pixels import pixel_floor
from recipes.shared.settings import settings_from_json
from recipes.shared.sweeps import Cell
from recipes.shared.sweeps.provenance import checksum
from recipes.shared.sweeps.training import go_on_or_begin

FILES = ("predictions.csv", "metrics.json")
"""What tables read of a run."""


def model_cell(name: str, config: Config, *, bootstrap: int) -> Cell:
    """Describes a cell that trains and evaluates a model.

    Args:
        name: Of the cell.
        config: Settings of its run, of one seed.
        bootstrap: Resamples of patients for the intervals of its evaluation.
    """
    return _cell(name, {"kind": "model", "config": _plain(config), "bootstrap": bootstrap}, config)


def pixel_cell(name: str, config: Config, *, bootstrap: int) -> Cell:
    """Describes a cell that fits a logistic regression to the pixels of a data set; see :func:`model_cell`."""
    about = _plain(config)
    settings = {"kind": "pixels", "config": {key: about[key] for key in ("data", "seeds")}, "bootstrap": bootstrap}
    return _cell(name, settings, config)


def run_cell(settings: Mapping[str, Any], run: Path) -> Mapping[str, Any]:
    """Trains and evaluates a cell.

    A run that a killed attempt began goes on from its last checkpoint; if that cannot be, it begins again. On a CPU a
    cell has one thread, so that its rounding does not depend on how many cells run beside it.

    Args:
        settings: Of :func:`model_cell` or :func:`pixel_cell`.
        run: The run's folder.

    Returns:
        What tables show of it.
    """
    torch.set_num_threads(1)
    config = replace(settings_from_json(Config, settings["config"]), out=run, resume=True)
    if settings["kind"] == "pixels":
        return pixel_floor(config, bootstrap=settings["bootstrap"])
    go_on_or_begin(run, lambda: train.main(config))
    metrics = evaluate.main(run, bootstrap=settings["bootstrap"])
    test, about = metrics["test"], metrics["run"]
    return {
        "macro_auroc": test["macro_auroc"],
        "macro_auroc_ci95": test["macro_auroc_ci95"],
        "val_macro_auroc": metrics["val"]["macro_auroc"],
        "undefined_classes": test["undefined_classes"],
        "studies": about["studies"],
        "patients": test["groups"],
        "classes": about["classes"],
        "task": about["task"],
        "text": about["text_encoder"] is not None,
        "parameters": about["parameters"],
        "epochs": metrics["training"]["epochs"],
        "notes": about["notes"],
    }


def _cell(name: str, settings: Mapping[str, Any], config: Config) -> Cell:
    """Makes a cell of settings without those that its data set does not read, which earlier versions counted too."""
    unread = unread_settings(config.data)
    own = settings["config"]
    read = {**settings, "config": {**own, "data": _without(own["data"], unread)}}
    return Cell(name, read, earlier=(checksum(settings),))


def _without(values: Mapping[str, Any], names: frozenset[str], path: str = "") -> dict[str, Any]:
    """Leaves out settings by their names, such as ``phantom.num_contexts``."""
    return {
        key: _without(value, names, f"{path}{key}.") if isinstance(value, Mapping) else value
        for key, value in values.items()
        if f"{path}{key}" not in names
    }


def _plain(config: Config) -> dict[str, Any]:
    """Returns the settings that decide a run, as json keeps them."""
    values = json.loads(json.dumps(config.to_json(), default=str))
    return {key: value for key, value in values.items() if key not in ("out", "resume")}
