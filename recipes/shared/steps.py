"""The optimiser steps of an epoch: their micro-batches, their gradient, their learning rate.

Nothing here makes the host wait for the device: the step after next is queued while the device still computes.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Generic, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from torch import Tensor, nn
from tqdm import tqdm

from recipes.shared.expert_parallel import average_over_copies_
from recipes.shared.settings import TrainSettings
from recipes.shared.throughput import Throughput

Batch = TypeVar("Batch")


def begin_epoch(
    fabric: Fabric, wrapped: nn.Module, seed: int, epoch: int, kept_in_eval: Iterable[nn.Module] = ()
) -> None:
    """Puts the model in training mode, but for some of its parts, and makes chance depend on seed, epoch and rank."""
    torch.manual_seed((seed * 1_000_003 + epoch) * 4099 + fabric.global_rank)
    wrapped.train()
    for module in kept_in_eval:
        module.eval()


class StepBatches(NamedTuple, Generic[Batch]):
    """What an optimiser step is made of.

    Attributes:
        factor: Of the learning rate.
        micro_batches: Of this rank.
        throughput: Of the epoch so far.
    """

    factor: float
    micro_batches: list[Batch]
    throughput: Throughput


def optimiser_steps(
    fabric: Fabric, loader: Iterable[Batch], batches: int, settings: TrainSettings, epoch: int
) -> Iterator[StepBatches[Batch]]:
    """Yields the optimiser steps of an epoch; whoever takes a step counts its samples in ``throughput``.

    The micro-batches of a step are at hand before the first of them is computed, so that losses can divide by what
    the whole step holds.

    Args:
        fabric: Of the run; the first rank shows a progress bar with samples per second, data wait and memory.
        loader: Gives the micro-batches.
        batches: How many of them make the epoch; the last step may have fewer than the others.
        settings: Of the training.
        epoch: Which one.
    """
    steps = -(-batches // settings.accumulate)
    rest = islice(loader, batches)
    title = f"epoch {epoch + 1}/{settings.epochs}"
    bar = tqdm(range(steps), desc=title, leave=False, disable=not fabric.is_global_zero)
    throughput = Throughput(bar)
    for step in bar:
        factor = lr_factor(epoch * steps + step, steps, epochs=settings.epochs, warmup_epochs=settings.warmup_epochs)
        with throughput.waiting():
            micro_batches = list(islice(rest, settings.accumulate))
        if micro_batches:
            yield StepBatches(factor, micro_batches, throughput)


def take_step(
    fabric: Fabric,
    wrapped: nn.Module,
    optimizer: torch.optim.Optimizer,
    micro_batches: Sequence[Batch],
    *,
    counts_of: Callable[[Batch], Tensor],
    loss_of: Callable[[Batch, Tensor], Tensor] | None = None,
    backward: Callable[[Sequence[Batch], Tensor], None] | None = None,
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
        counts_of: Over how many labels (studies, ...) each of a micro-batch's means goes: ``(N,)`` integers.
        loss_of: Loss of a micro-batch; it receives the micro-batch and the shares of its means.
        backward: In place of ``loss_of``, where the micro-batches have one loss together: computes the gradient of
            all weights, from the micro-batches and the shares of each.
        clip_norm: Largest norm of the gradient; 0 for no limit.
    """
    counts = torch.stack([counts_of(batch) for batch in micro_batches])
    counts = counts.to(fabric.device, torch.float32, non_blocking=True)
    totals = counts.sum(0)
    if fabric.world_size > 1:
        dist.all_reduce(totals)  # that of fabric waits at a barrier first
    shares = fabric.world_size * counts / totals.clamp(min=1)
    if backward is not None:
        backward(micro_batches, shares)
    elif loss_of is not None:
        for number, batch in enumerate(micro_batches):
            with fabric.no_backward_sync(wrapped, enabled=number + 1 < len(micro_batches)):
                fabric.backward(loss_of(batch, shares[number]))
    average_over_copies_(fabric)
    if clip_norm:
        fabric.clip_gradients(wrapped, optimizer, max_norm=clip_norm, error_if_nonfinite=False)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


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
