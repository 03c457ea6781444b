"""The checkpoints of a run: written in one step, loaded into a model, or to go on with the training."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import nn

from recipes.shared.epochs import history_from_one
from recipes.shared.expert_parallel import divided_experts
from recipes.shared.runs import write_history
from recipes.shared.settings import check_same_settings, read_settings
from recipes.shared.shards import (
    complete_model_state,
    complete_optimizer_state,
    held_optimizer_state,
    shard_model_state,
    shard_optimizer_state,
    whole_state,
)

_REMEDY = "Take the run's other checkpoint (--checkpoint last or best), a copy of the file, or train again."
STATE = ("model", "optimizer", "scaler", "epoch", "best", "best_epoch", "history", "seconds")
"""What ``last.ckpt`` holds at least."""


MAY_CHANGE = (
    "epochs",
    "patience",
    "accelerator",
    "workers",
    "cache_images",
    "cache_folder",
    "cache_gigabytes",
    "verify_images",
    "loggers",
    "activation_checkpointing",
    "compile",
    "expert_parallel",
)
"""Settings that a resumed run of any recipe may change: how long it trains, where, and how it computes."""


def checkpoint_to_resume(config: Any, *, may_change: Sequence[str]) -> Path | None:
    """Returns the checkpoint from which a run goes on, or ``None`` for a new run.

    Args:
        config: Settings of the run: a recipe's ``Config``.
        may_change: Names of the settings in which it may differ from the run that it goes on with.

    Raises:
        ValueError: If the folder holds a run and ``resume`` is off, that run was started with other settings, or it
            has lost its last checkpoint.
    """
    last = config.out / "checkpoints" / "last.ckpt"
    if not last.exists():
        if (config.out / "history.jsonl").exists():  # written after the first checkpoint
            raise ValueError(
                f"{last} is missing, but {config.out} holds a run: restore the file, or give another --out."
            )
        return None
    if not config.resume:
        raise ValueError(f"{config.out} holds a run already: give --resume to go on with it, or another --out.")
    started_with = read_settings(type(config), config.out)
    check_same_settings(started_with, config, may_change=may_change)
    return last


def load_weights(model: nn.Module, run: Path, checkpoint: str) -> None:
    """Loads the weights of a run into its model.

    Args:
        model: Built from the run's settings.
        run: Folder of the run.
        checkpoint: ``"best"`` or ``"last"``.

    Raises:
        ValueError: If there is no such checkpoint, or it cannot be read or is of another model.
    """
    path = run / "checkpoints" / f"{checkpoint}.ckpt"
    _load_state(model, read_checkpoint(path)["model"], path)


def read_checkpoint(path: Path, keys: Sequence[str] = ("model",)) -> dict[str, Any]:
    """Reads a checkpoint.

    Args:
        path: The file.
        keys: What it must hold.

    Raises:
        ValueError: If it is missing, empty, cut off, or no checkpoint of a run; the message names it.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist: train the run first.")
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty. {_REMEDY}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    # Damaged bytes fail wherever a reader trips over them: RuntimeError, UnpicklingError, EOFError, KeyError, ...
    except Exception as error:
        reason = str(error).partition("\n")[0][:120] or type(error).__name__
        raise ValueError(f"{path} cannot be read as a checkpoint ({reason}). {_REMEDY}") from error
    missing = [key for key in keys if key not in content] if isinstance(content, dict) else list(keys)
    if missing:
        raise ValueError(f"{path} holds no {' and no '.join(missing)}, so it is no checkpoint of a run. {_REMEDY}")
    return content


def _load_state(model: nn.Module, state: Any, path: Path, elsewhere: Collection[str] = ()) -> None:
    """Loads weights, or says how the file's differ from the model's.

    Those of its ``added_later`` may be missing; those that other processes hold, ``elsewhere``, are passed over.
    """
    own = model.state_dict()
    if isinstance(state, dict):
        state = {name: own[name] for name in getattr(model, "added_later", ()) if name in own} | state
        state = {name: value for name, value in state.items() if name in own or name not in elsewhere}
    names = set(state) if isinstance(state, dict) else set()
    missing, unexpected = sorted(set(own) - names), sorted(names - set(own))
    other = [name for name in names & set(own) if getattr(state[name], "shape", None) != own[name].shape]
    parts = [
        f"{len(some)} {word} (such as {some[0]})"
        for some, word in ((missing, "missing"), (unexpected, "unexpected"), (sorted(other), "of another shape"))
        if some
    ]
    if parts:
        raise ValueError(f"{path} holds the weights of another model: {', '.join(parts)}. {_REMEDY}")
    model.load_state_dict(shard_model_state(state, model))


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
    """Writes with ``better`` ``checkpoints/best.ckpt``, then ``last.ckpt``, then the curves of ``history.jsonl``.

    The first rank writes; every rank must call this, since sharded weights and moments are put together first.

    In this order a process that is killed in between leaves a ``last.ckpt`` from which the epoch is trained again, and
    never one that counts an epoch as the best whose weights were not kept.

    Args:
        out: Folder of the run.
        model: Its model.
        optimizer: Its optimiser.
        fabric: Holds the loss scaler of mixed precision.
        state: Progress: ``epoch`` (finished ones), ``history``, and whatever else resuming needs.
        better: Whether these are the best weights so far.
    """
    weights = whole_state(model.state_dict())
    # What fabric wraps around an optimiser gives its state on the first rank alone.
    moments = whole_state(getattr(optimizer, "optimizer", optimizer).state_dict())
    divided = divided_experts(fabric)
    if divided is not None:
        weights = complete_model_state(weights, divided.state_names, fabric.device)
        moments = complete_optimizer_state(moments, divided.parameter_names, fabric.device)
    if not fabric.is_global_zero:
        return
    folder = out / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    scaler = fabric.strategy.precision.state_dict()
    last = {"model": weights, "optimizer": moments, "scaler": scaler, **state}
    if better:
        write_checkpoint(folder / "best.ckpt", {"model": weights, "epoch": state["epoch"]})
    write_checkpoint(folder / "last.ckpt", last)
    write_history(out / "history.jsonl", state["history"])


def restore_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, fabric: Fabric
) -> dict[str, Any]:
    """Loads what :func:`save_checkpoints` wrote, under whatever strategy, and returns the state.

    Of a checkpoint of an earlier version, which numbered epochs from 0, ``history`` and ``best_epoch`` are renumbered.
    A ``best.ckpt`` that is older than the best epoch is written anew if that epoch is the last one: a version that
    wrote it second may have been killed in between.

    Raises:
        ValueError: If the file cannot be read or is of another model, or ``best.ckpt`` is not of the best epoch. If the
            optimiser's parameters are grouped otherwise than the checkpoint's, as those of older
            versions are: its state would go to other parameters.
    """
    content = read_checkpoint(path, STATE)
    if content["history"] and content["history"][0]["epoch"] == 0:
        content |= {"history": history_from_one(content["history"]), "best_epoch": content["best_epoch"] + 1}
    divided = divided_experts(fabric)
    _load_state(model, content["model"], path, elsewhere=() if divided is None else divided.state_names)
    _check_best(path.with_name("best.ckpt"), content)
    del content["model"]
    saved = content.pop("optimizer")
    if divided is not None:
        own = {name for group in optimizer.param_groups for name in group["names"]}
        saved = held_optimizer_state(saved, set(divided.parameter_names) - own)
    if [group.get("names") for group in saved["param_groups"]] != [group["names"] for group in optimizer.param_groups]:
        raise ValueError(
            f"{path} was written by a version that grouped parameters otherwise (it chose what decays by the number of "
            "dimensions), so training cannot go on from it. Its weights can still be evaluated; to train further, "
            "start another run, or resume with the version that made this one."
        )
    optimizer.load_state_dict(shard_optimizer_state(saved, optimizer))
    fabric.strategy.precision.load_state_dict(content.pop("scaler"))
    return content


def _check_best(best: Path, state: dict[str, Any]) -> None:
    """Makes sure that the best weights are those of the epoch that the state calls the best."""
    epoch = state["best_epoch"]
    kept = read_checkpoint(best, ("model", "epoch"))["epoch"] if best.is_file() else 0
    # A later one is of an epoch after which last.ckpt was not written any more, and which is trained again.
    if kept == epoch or kept > state["epoch"]:
        return
    if epoch != state["epoch"]:
        raise ValueError(
            f"{best} holds the weights of epoch {kept}, but the best epoch of the run is {epoch}, so it cannot be gone "
            "on with. Restore the file, or train again into another folder (--out)."
        )
    write_checkpoint(best, {"model": state["model"], "epoch": epoch})
