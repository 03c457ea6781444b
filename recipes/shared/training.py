"""What the training of every recipe needs: runs by seed, progress, epochs, early stopping."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from torch import nn

from recipes.shared.checkpoints import restore_checkpoint, save_checkpoints
from recipes.shared.epochs import FIRST_EPOCH
from recipes.shared.loggers import log_record, open_loggers
from recipes.shared.runs import peak_memory_bytes, write_json
from recipes.shared.settings import TrainSettings
from recipes.shared.throughput import run_throughput

NEW_RUN: dict[str, Any] = {"epoch": 0, "best": -math.inf, "best_epoch": 1, "seconds": 0.0}
"""Progress of a run that has not begun: ``epoch`` is the number of finished ones, and ``best_epoch`` counts from 1;
``history`` is added to it."""


def one_run_per_seed(config: Any, train_one: Callable[[Any], None]) -> list[Path]:
    """Trains a run for each of ``config.seeds``.

    Returns:
        The folders of the runs: ``config.out``, or ``config.out/seed-N`` where there are several seeds.

    Raises:
        ValueError: If there is no seed.
    """
    if not config.seeds:
        raise ValueError("seeds (--seeds) must name at least one seed, got none.")
    runs = []
    for seed in config.seeds:
        out = config.out if len(config.seeds) == 1 else config.out / f"seed-{seed}"
        train_one(replace(config, out=out, seeds=(seed,)))
        runs.append(out)
    return runs


def starting_state(
    checkpoint: Path | None, model: nn.Module, optimizer: torch.optim.Optimizer, fabric: Fabric
) -> dict[str, Any]:
    """Returns the progress that a run begins with: none, or that of a checkpoint, which is loaded into the model.

    Args:
        checkpoint: Of :func:`~recipes.shared.checkpoints.checkpoint_to_resume`.
        model: Takes the checkpoint's weights.
        optimizer: Takes the checkpoint's state of the optimiser.
        fabric: Takes the checkpoint's loss scaler.

    Raises:
        ValueError: If the checkpoint does not fit, as for :func:`~recipes.shared.checkpoints.restore_checkpoint`.
    """
    state: dict[str, Any] = NEW_RUN | {"history": []}
    return state if checkpoint is None else state | restore_checkpoint(checkpoint, model, optimizer, fabric)


def is_main_process() -> bool:
    """Tells whether this process alone trains a run, or is the first of those that train it together.

    After a training on several devices every one of its processes goes on with the script.
    """
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def check_on_first_rank(fabric: Fabric, check: Callable[[], object]) -> None:
    """Runs a check on the first rank, and raises its error on all of them: no rank waits for one that has stopped.

    Args:
        fabric: Of the run.
        check: Raises ``ValueError`` for what is wrong.

    Raises:
        ValueError: What the check raised.
    """
    problem = None
    if fabric.is_global_zero:
        try:
            check()
        except ValueError as error:
            problem = str(error)
    problem = fabric.broadcast(problem)
    if problem is not None:
        raise ValueError(problem)


def run_epochs(
    fabric: Fabric,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    settings: TrainSettings,
    *,
    out: Path,
    started: float,
    train_epoch: Callable[[int], dict[str, Any]],
    validate: Callable[[], dict[str, Any]],
    score: Callable[[dict[str, Any]], float],
    line: Callable[[dict[str, Any]], str],
    remedy: str,
    facts: Callable[[dict[str, Any]], dict[str, Any]] = lambda state: {},
) -> None:
    """Trains epoch by epoch until the last one, or until ``patience`` epochs brought no better score.

    After every epoch the checkpoints, ``history.jsonl`` and ``training.json`` are written, and loggers get its record.

    Args:
        fabric: Of the run.
        model: The model itself, not what wraps it.
        optimizer: Its optimiser.
        state: Progress so far (``NEW_RUN`` with a ``history``); it is updated.
        settings: Of the training.
        out: Folder of the run.
        started: ``time.monotonic()`` when the run, or its resumption, began.
        train_epoch: Trains an epoch, of which it gets the place from 0, and returns its record, with ``train_loss``.
        validate: Returns what is added to the record.
        score: What is compared of a record; higher is better.
        line: What to print of a record.
        remedy: What to do about a loss that is not finite, as the beginning of a sentence.
        facts: What ``training.json`` holds besides.

    Raises:
        RuntimeError: If the loss of an epoch is not finite.
    """
    names = settings.loggers if fabric.is_global_zero else ()
    with open_loggers(names, out, finished_epochs=state["epoch"]) as log:
        for epoch in range(state["epoch"], settings.epochs):
            if epoch + 1 - state["best_epoch"] > settings.patience:
                break
            record = train_epoch(epoch)
            if not math.isfinite(record["train_loss"]):
                raise RuntimeError(
                    f"the training loss of epoch {epoch + 1} is {record['train_loss']}: {remedy}. The last checkpoint "
                    "is that of the epoch before."
                )
            # All ranks stop at the same epoch: batch norms of their own may give each of them another score.
            record |= fabric.broadcast(validate())
            better = score(record) > state["best"]
            if better:
                state |= {"best": score(record), "best_epoch": epoch + 1}
            state["history"].append(record)
            state |= {"epoch": epoch + 1, "seconds": state["seconds"] + time.monotonic() - started}
            started = time.monotonic()
            save_checkpoints(out, model, optimizer, fabric, state, better=better)
            if fabric.is_global_zero:
                log_record(log, record)
                progress = {
                    name: state[{"epochs": "epoch"}.get(name, name)] for name in ("epochs", "best_epoch", "seconds")
                }
                measured = {"peak_memory_bytes": peak_memory_bytes(), **run_throughput(state["history"])}
                write_json(out / "training.json", FIRST_EPOCH | progress | measured | facts(state))
            fabric.barrier()
            fabric.print(f"epoch {epoch + 1:3d}/{settings.epochs}  {line(record)}{'  best' if better else ''}")
