"""What the training of every recipe needs: runs by seed, epochs, early stopping, optimiser steps, learning rates."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from torch import Tensor, nn
from tqdm import tqdm

from recipes.shared.checkpoints import restore_checkpoint, save_checkpoints
from recipes.shared.loggers import log_record, open_loggers
from recipes.shared.runs import peak_memory_bytes, write_json
from recipes.shared.settings import TrainSettings

Batch = TypeVar("Batch")

NEW_RUN: dict[str, Any] = {"epoch": 0, "best": -math.inf, "best_epoch": 0, "seconds": 0.0}
"""Progress of a run that has not begun; ``history`` is added to it."""


def one_run_per_seed(config: Any, train_one: Callable[[Any], None]) -> list[Path]:
    """Trains a run for each of ``config.seeds``.

    Returns:
        The folders of the runs: ``config.out``, or ``config.out/seed-N`` where there are several seeds.

    Raises:
        ValueError: If there is no seed.
    """
    if not config.seeds:
        raise ValueError("seeds must name at least one seed, got none.")
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
        train_epoch: Trains an epoch and returns its record, with ``train_loss``.
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
            if epoch - state["best_epoch"] > settings.patience:
                break
            record = train_epoch(epoch)
            if not math.isfinite(record["train_loss"]):
                raise RuntimeError(
                    f"the training loss of epoch {epoch + 1} is {record['train_loss']}: {remedy}. The last checkpoint "
                    "is that of the epoch before."
                )
            record |= validate()
            better = score(record) > state["best"]
            if better:
                state |= {"best": score(record), "best_epoch": epoch}
            state["history"].append(record)
            state |= {"epoch": epoch + 1, "seconds": state["seconds"] + time.monotonic() - started}
            started = time.monotonic()
            if fabric.is_global_zero:
                log_record(log, record)
                save_checkpoints(out, model, optimizer, fabric, state, better=better)
                progress = {
                    name: state[{"epochs": "epoch"}.get(name, name)] for name in ("epochs", "best_epoch", "seconds")
                }
                write_json(out / "training.json", progress | {"peak_memory_bytes": peak_memory_bytes()} | facts(state))
            fabric.barrier()
            fabric.print(f"epoch {epoch + 1:3d}/{settings.epochs}  {line(record)}{'  best' if better else ''}")


def begin_epoch(fabric: Fabric, wrapped: nn.Module, seed: int, epoch: int) -> None:
    """Puts the model in training mode, and makes chance depend on ``(seed, epoch, rank)`` only."""
    torch.manual_seed((seed * 1_000_003 + epoch) * 4099 + fabric.global_rank)
    wrapped.train()


def optimiser_steps(
    fabric: Fabric, loader: Iterable[Batch], batches: int, settings: TrainSettings, epoch: int
) -> Iterator[tuple[float, list[Batch]]]:
    """Yields the optimiser steps of an epoch: a factor of the learning rate, and the step's micro-batches.

    The micro-batches of a step are at hand before the first of them is computed, so that losses can divide by what
    the whole step holds.

    Args:
        fabric: Of the run; the first rank shows a progress bar.
        loader: Gives the micro-batches.
        batches: How many of them make the epoch; the last step may have fewer than the others.
        settings: Of the training.
        epoch: Which one.
    """
    steps = -(-batches // settings.accumulate)
    rest = islice(loader, batches)
    title = f"epoch {epoch + 1}/{settings.epochs}"
    for step in tqdm(range(steps), desc=title, leave=False, disable=not fabric.is_global_zero):
        factor = lr_factor(epoch * steps + step, steps, epochs=settings.epochs, warmup_epochs=settings.warmup_epochs)
        micro_batches = list(islice(rest, settings.accumulate))
        if micro_batches:
            yield factor, micro_batches


def take_step(
    fabric: Fabric,
    wrapped: nn.Module,
    optimizer: torch.optim.Optimizer,
    micro_batches: Sequence[Batch],
    *,
    counts_of: Callable[[Batch], Sequence[int]],
    loss_of: Callable[[Batch, Tensor], Tensor],
    clip_norm: float,
) -> None:
    """Updates the weights by the gradient of losses that are means over the whole step: all micro-batches, all ranks.

    A mean over what is known in each micro-batch would weigh a label more the fewer its micro-batch has. So every
    mean is multiplied by its share, ``world_size * count / sum of the counts of the step``: shared means add up over
    micro-batches, and averaged over ranks, as DDP averages gradients, they make the mean over the step.

    Args:
        fabric: Of the run.
        wrapped: The model as fabric set it up.
        optimizer: The optimiser as fabric set it up.
        micro_batches: Of this rank.
        counts_of: Over how many labels (studies, ...) each of a micro-batch's means goes, as many numbers for each.
        loss_of: Loss of a micro-batch; it receives the micro-batch and the shares of its means.
        clip_norm: Largest norm of the gradient; 0 for no limit.
    """
    counts = torch.tensor([counts_of(batch) for batch in micro_batches], dtype=torch.float32, device=fabric.device)
    totals = fabric.all_reduce(counts.sum(0), reduce_op="sum")
    shares = fabric.world_size * counts / totals.clamp(min=1)
    for number, batch in enumerate(micro_batches):
        with fabric.no_backward_sync(wrapped, enabled=number + 1 < len(micro_batches)):
            fabric.backward(loss_of(batch, shares[number]))
    if clip_norm:
        fabric.clip_gradients(wrapped, optimizer, max_norm=clip_norm, error_if_nonfinite=False)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def sum_over_ranks(fabric: Fabric, sums: Tensor) -> list[float]:
    """Adds sums up over the ranks of a run.

    Args:
        fabric: Of the run.
        sums: ``(N,)`` float64 on the CPU. With one rank they stay there: not every accelerator has float64.

    Returns:
        ``N`` numbers.
    """
    if fabric.world_size > 1:
        sums = fabric.all_reduce(sums.clone(), reduce_op="sum")
    return sums.tolist()


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Sets the learning rate of each group to ``factor`` times its ``peak_lr``."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def lr_factor(step: int, steps_per_epoch: int, *, epochs: int, warmup_epochs: float) -> float:
    """Returns a linear warm-up to 1, then a cosine to 0; a function of the step, so there is nothing to resume."""
    warmup = warmup_epochs * steps_per_epoch
    if step < warmup:
        return (step + 1) / warmup
    total = epochs * steps_per_epoch
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
