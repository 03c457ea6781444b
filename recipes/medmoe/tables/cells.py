"""The cells of the tables: a pretraining, and evaluations of what it trained or of a released model."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from recipes.medmoe.config import Config
from recipes.medmoe.hints import DRAWN
from recipes.medmoe.inference.session import ModelSession
from recipes.shared.settings import settings_from_json
from recipes.shared.sweeps import Cell
from recipes.shared.sweeps.provenance import file_checksum
from recipes.shared.sweeps.training import go_on_or_begin

WEIGHTS = "checkpoints/best.ckpt"
TRAINED = ("config.json", "training.json", WEIGHTS)
"""Files of a pretraining that later cells read."""
ABOUT = ("preset", "local_branch", "route_on", "data", "pairs", "parameters", "notes")
"""What a table says of a pretraining, of the section ``run`` of its ``metrics.json``."""
PREDICTIONS = "predictions.csv"
RESULT = "result.json"
_READERS = ("phantom", "manifest", "shards")
"""Groups of settings of the data, of which one is read."""
EVALUATED = {"zero-shot": (RESULT, PREDICTIONS), "probe": (RESULT,), "maps": (RESULT, "explain/examples.npz")}
"""Files of each kind of evaluation that tables read."""


def pretrain_cell(model: str, config: Config) -> Cell:
    """Describes a cell that pretrains a model.

    Args:
        model: Its name in the table.
        config: Settings of its run, of one seed.
    """
    values = json.loads(json.dumps(config.to_json(), default=str))
    settings = {key: value for key, value in values.items() if key not in ("out", "resume")}
    unread = {name for name in _READERS if name != _reader(config.data.data)}
    settings["data"] = {key: value for key, value in settings["data"].items() if key not in unread}
    return Cell(f"pretrain/{model}/seed-{config.seeds[0]}", {"kind": "pretrain", "config": settings})


def _reader(data: str) -> str:
    """Returns which group of settings is read with ``--data``."""
    if data == DRAWN:
        return "phantom"
    return "shards" if data.lower().endswith(".tar") else "manifest"


def evaluation_cell(kind: str, what: str, model: str, seed: int | None, settings: Mapping[str, Any]) -> Cell:
    """Describes a cell that evaluates a pretrained or a released model.

    Args:
        kind: ``"zero-shot"``, ``"probe"`` or ``"maps"``.
        what: The set; of maps the data.
        model: Its name in the table.
        seed: Of its pretraining; ``None`` of a released model.
        settings: What decides the result, besides the weights: of a pretrained model ``pretrained`` (the name of its
            cell), else ``released`` (a :class:`~recipes.medmoe.models.choice.ModelChoice` as json).
    """
    name = f"{kind}/{what}/{model}/" + ("released" if seed is None else f"seed-{seed}")
    return Cell(name, {"kind": kind, "cell": name, **settings})


def run_cell(settings: Mapping[str, Any], run: Path) -> Mapping[str, Any]:
    """Runs a cell. On a CPU it has one thread, so that its rounding does not depend on how many run beside it.

    Args:
        settings: Of :func:`pretrain_cell` or :func:`evaluation_cell`.
        run: The cell's folder.

    Returns:
        What tables show of it; of an evaluation also ``weights``, the checksum of those that were pretrained.
    """
    torch.set_num_threads(1)
    result = _KINDS[settings["kind"]](settings, run)
    if "pretrained" not in settings:
        return result
    weights = folder_of_cells(settings, run) / settings["pretrained"] / WEIGHTS
    return {**result, "weights": file_checksum(weights)}


def folder_of_cells(settings: Mapping[str, Any], run: Path) -> Path:
    """Returns the folder in which the runs of all cells lie.

    Args:
        settings: Of a cell.
        run: Its folder.
    """
    return run.parents[len(Path(settings["cell"]).parts) - 1]


def open_cell(settings: Mapping[str, Any], run: Path) -> ModelSession:
    """Opens the model that a cell evaluates.

    Args:
        settings: Of the cell.
        run: Its folder.
    """
    from recipes.medmoe.inference.released import ReleasedSession
    from recipes.medmoe.inference.run import Session
    from recipes.medmoe.models.choice import ModelChoice

    folder = folder_of_cells(settings, run)
    if settings.get("pretrained"):
        return Session.open(folder / settings["pretrained"])
    choice = ModelChoice.from_json(settings["released"])
    if settings.get("data_of"):
        choice = replace(choice, data_of=folder / settings["data_of"])
    return ReleasedSession.open(run, choice)


def _pretrain(settings: Mapping[str, Any], run: Path) -> Mapping[str, Any]:
    from recipes.medmoe.inference.near_duplicates import keep_prints
    from recipes.medmoe.pretrain import stage
    from recipes.medmoe.pretrain.summary import summarise
    from recipes.shared.runs import read_metrics

    config = replace(settings_from_json(Config, settings["config"]), out=run, resume=True)
    go_on_or_begin(run, lambda: stage.main(config))
    print(summarise(run))
    keep_prints(run)
    metrics = read_metrics(run)
    about, training, routing = metrics["run"], metrics["training"], metrics["routing"]
    return {
        "purity": metrics["routing_purity"],
        "routing": routing,
        "epochs": training["epochs"],
        "best_epoch": training["best_epoch"],
        **{
            name: about[name] for name in ("preset", "local_branch", "route_on", "data", "pairs", "parameters", "notes")
        },
    }


def _zero_shot(settings: Mapping[str, Any], run: Path) -> Mapping[str, Any]:
    from recipes.medmoe.tables.evaluate import zero_shot

    return zero_shot(settings, run)


def _probe(settings: Mapping[str, Any], run: Path) -> Mapping[str, Any]:
    from recipes.medmoe.tables.evaluate import probe

    return probe(settings, run)


def _maps(settings: Mapping[str, Any], run: Path) -> Mapping[str, Any]:
    from recipes.medmoe.tables.evaluate import maps

    return maps(settings, run)


_KINDS: dict[str, Callable[[Mapping[str, Any], Path], Mapping[str, Any]]] = {
    "pretrain": _pretrain,
    "zero-shot": _zero_shot,
    "probe": _probe,
    "maps": _maps,
}
