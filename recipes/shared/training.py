"""What the training of every recipe needs: a learning rate over steps, checkpoints, what a resumed run may change."""

import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch


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
