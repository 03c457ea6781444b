"""The checkpoints of a run: written in one step, loaded into a model, or to go on with the training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import nn

from recipes.shared.runs import read_json, write_history
from recipes.shared.settings import check_same_settings


def checkpoint_to_resume(config: Any, *, may_change: Sequence[str]) -> Path | None:
    """Returns the checkpoint from which a run goes on, or ``None`` for a new run.

    Args:
        config: Settings of the run: a recipe's ``Config``.
        may_change: Names of the settings in which it may differ from the run that it goes on with.

    Raises:
        ValueError: If the folder holds a run and ``resume`` is off, or that run was started with other settings.
    """
    last = config.out / "checkpoints" / "last.ckpt"
    if not last.exists():
        return None
    if not config.resume:
        raise ValueError(f"{config.out} holds a run already: give --resume to go on with it, or another --out.")
    started_with = type(config).from_json(read_json(config.out / "config.json"))
    check_same_settings(started_with, config, may_change=may_change)
    return last


def load_weights(model: nn.Module, run: Path, checkpoint: str) -> None:
    """Loads the weights of a run into its model.

    Args:
        model: Built from the run's settings.
        run: Folder of the run.
        checkpoint: ``"best"`` or ``"last"``.

    Raises:
        ValueError: If there is no such checkpoint.
    """
    path = run / "checkpoints" / f"{checkpoint}.ckpt"
    if not path.is_file():
        raise ValueError(f"{path} does not exist: train the run first.")
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["model"])


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Writes in one step, so a killed process leaves the old file or the new one."""
    part = path.with_suffix(".part")
    torch.save(content, part)
    part.replace(path)


def save_checkpoints(
    out: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    fabric: Fabric,
    state: dict[str, Any],
    *,
    better: bool,
) -> None:
    """Writes ``checkpoints/last.ckpt``, with ``better`` also ``best.ckpt``, then the curves of ``history.jsonl``.

    Args:
        out: Folder of the run.
        model: Its model.
        optimizer: Its optimiser.
        fabric: Holds the loss scaler of mixed precision.
        state: Progress: ``epoch`` (finished ones), ``history``, and whatever else resuming needs.
        better: Whether these are the best weights so far.
    """
    folder = out / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    weights = model.state_dict()
    scaler = fabric.strategy.precision.state_dict()
    last = {"model": weights, "optimizer": optimizer.state_dict(), "scaler": scaler, **state}
    write_checkpoint(folder / "last.ckpt", last)
    if better:
        write_checkpoint(folder / "best.ckpt", {"model": weights, "epoch": state["epoch"]})
    write_history(out / "history.jsonl", state["history"])


def restore_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, fabric: Fabric
) -> dict[str, Any]:
    """Loads what :func:`save_checkpoints` wrote, and returns the state.

    Raises:
        ValueError: If the optimiser's parameters are grouped otherwise than the checkpoint's, as those of older
            versions are: its state would go to other parameters.
    """
    content = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(content.pop("model"))
    saved = content.pop("optimizer")
    if [group.get("names") for group in saved["param_groups"]] != [group["names"] for group in optimizer.param_groups]:
        raise ValueError(
            f"{path} was written by a version that grouped parameters otherwise (it chose what decays by the number of "
            "dimensions), so training cannot go on from it. Its weights can still be evaluated; to train further, "
            "start another run, or resume with the version that made this one."
        )
    optimizer.load_state_dict(saved)
    fabric.strategy.precision.load_state_dict(content.pop("scaler"))
    return content
