"""What the training of every recipe needs: one run per seed, a learning rate over steps, checkpoints, resuming."""

import math
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import nn

from recipes.shared.runs import write_history


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


def last_checkpoint(out: Path, *, resume: bool) -> Path:
    """Where a run's last checkpoint lies, or will.

    Raises:
        ValueError: If there is one already and the run shall not go on from it.
    """
    last = out / "checkpoints" / "last.ckpt"
    if last.exists() and not resume:
        raise ValueError(f"{out} holds a run already: give --resume to go on with it, or another --out.")
    return last


def lr_factor(step: int, steps_per_epoch: int, *, epochs: int, warmup_epochs: float) -> float:
    """Linear warm-up to 1, then a cosine to 0; a function of the step, so there is nothing to resume."""
    warmup = warmup_epochs * steps_per_epoch
    if step < warmup:
        return (step + 1) / warmup
    total = epochs * steps_per_epoch
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


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
    """Loads what :func:`save_checkpoints` wrote, and returns the state."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(content.pop("model"))
    optimizer.load_state_dict(content.pop("optimizer"))
    fabric.strategy.precision.load_state_dict(content.pop("scaler"))
    return content


def check_same_settings(old: Any, new: Any, *, may_change: Sequence[str]) -> None:
    """Refuses to go on with a run under settings that would make it another one.

    Args:
        old: Settings that the run was started with: a dataclass with ``seeds``, ``data``, ``model`` and ``train``.
        new: Settings that it is resumed with.
        may_change: Names of the settings that may differ.

    Raises:
        ValueError: Naming the settings that differ.
    """
    differing = [f"seeds ({old.seeds}, now {new.seeds})"] if old.seeds != new.seeds else []
    for before, after in ((old.data, new.data), (old.model, new.model), (old.train, new.train)):
        for field in fields(before):
            values = getattr(before, field.name), getattr(after, field.name)
            if values[0] != values[1] and field.name not in may_change:
                differing.append(f"{field.name} ({values[0]!r}, now {values[1]!r})")
    if differing:
        raise ValueError(f"a run is resumed with the settings that it was started with, but {', '.join(differing)}.")
